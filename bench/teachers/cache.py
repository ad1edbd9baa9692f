"""What frozen teachers say of the views, asked once: shared by runs side by side, and kept for later ones.

The views of an epoch depend on the data, the augmentation, the seed and the epoch's number alone, so every student that
asks about the same epoch can be given the same answers. They are kept without loss: a student is taught bitwise what
the teacher said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from weakref import WeakValueDictionary

import timm
import torch
from torch import Tensor

from kdbench.bench.data.batches import Batch, Batches
from kdbench.bench.data.splits import EVALUATION_BATCH, content
from kdbench.bench.spec import NUMBERS
from kdbench.bench.teachers.backends import CacheBackend, Tensors, layout, nbytes
from kdbench.bench.teachers.flatten import flat, lossless, signal, signals_of, unflat
from kdbench.methods.base import Signals
from kdbench.methods.rows import Rows, split
from kdbench.methods.signals import CONSTANT

ORIGIN = (3, NUMBERS, torch.__version__, timm.__version__)
"""Enters every name: answers of other code are not taken. The first number is raised with how answers are kept."""
WINDOW = 2
"""Batches whose answers are held for students side by side where they are too large to be kept."""
FIXED = 2**30
"""Bytes that answers about all samples as they are may take. The backend has no say: batches of other sizes give other
bits, so a run asks about the same batches whether or not it has a backend."""

Ask = Callable[[Rows], Signals]
"""Runs the teacher on inputs as networks take them."""
Prepare = Callable[[Rows, torch.device], Rows]
"""Makes of a part's inputs what networks take, as `kdbench.bench.tasks.Task.prepared`."""


class EpochOutputs:
    """One teacher's answers to the batches of one epoch; or to the samples as they are, where these never change."""

    def __init__(
        self, name: str, backend: CacheBackend | None, batches: Batches, prepare: Prepare, fixed: bool
    ) -> None:
        """Has the answers that the backend has.

        Args:
            name: of all that decides the answers.
            backend: where answers are kept.
            batches: what is asked about.
            prepare: makes what networks take, where it is about the samples as they are.
            fixed: whether it is about the samples as they are, not about an epoch.
        """
        self.name, self.backend, self.batches, self.prepare, self.fixed = name, backend, batches, prepare, fixed
        self.stored: Tensors = (backend.get(name) if backend else None) or {}
        self.heard: dict[int, Tensors] = {}
        self.kept: frozenset[str] = frozenset()
        """Signals of this epoch that are to be kept."""

    def open(self, needs: frozenset[str], ask: Ask) -> None:
        """Before an epoch: has all samples answered, where they never change."""
        if self.fixed and not needs <= signals_of(self.stored):
            parts = split(self.batches.inputs, EVALUATION_BATCH)
            self._keep([flat(ask(self.prepare(part, self.batches.device)), needs) for part in parts])

    def answer(self, step: int, batch: Batch, needs: frozenset[str], ask: Ask) -> Signals:
        """The teacher's signals for a batch, without history."""
        if needs <= signals_of(self.stored):
            return unflat(self._rows(step, batch, needs))
        if not needs <= signals_of(self.heard.get(step, {})):
            self.heard[step] = self.heard.get(step, {}) | flat(ask(batch.inputs), needs)
            old = self.heard.pop(step - WINDOW, {})
            if kept := {key: tensor for key, tensor in old.items() if signal(key) in self.kept}:
                self.heard[step - WINDOW] = kept
        return unflat({key: tensor for key, tensor in self.heard[step].items() if signal(key) in needs})

    def close(self, steps: int) -> None:
        """After an epoch of so many batches: keeps what is to be kept and was heard of every batch."""
        if self.kept and len(self.heard) == steps:
            parts = [self.heard[step] for step in range(steps)]
            kept = self.kept.intersection(*map(signals_of, parts))
            self._keep([{key: tensor for key, tensor in part.items() if signal(key) in kept} for part in parts])
        self.kept = frozenset()

    def _keep(self, parts: list[Tensors]) -> None:
        for key, first in parts[0].items():
            whole = torch.cat([part[key] for part in parts]).contiguous(memory_format=layout(first))
            self.stored = self.stored | {key: lossless(whole)}
        self.heard = {}
        if self.backend:
            self.backend.put(self.name, self.stored)

    def _rows(self, step: int, batch: Batch, needs: frozenset[str]) -> Tensors:
        """The batch's part of what is stored; a tensor has one row for each sample, or several, as one a decision."""
        samples, part = self.batches.samples if self.fixed else self.batches.used, {}
        first = step * self.batches.batch_size
        for key in (key for key in self.stored if signal(key) in needs):
            tensor = self.stored[key]
            each = tensor.unflatten(0, (samples, -1))
            rows = each[batch.indices.to(tensor.device)] if self.fixed else each[first : first + len(batch.indices)]
            part[key] = rows.flatten(0, 1).to(self.batches.device).contiguous(memory_format=layout(tensor))
        return part


class TeacherCache:
    """Gives the runs of a process the epochs that they share."""

    def __init__(self, backend: CacheBackend | None = None) -> None:
        """Holds no outputs yet.

        Args:
            backend: where answers are kept beyond the moment; by default nowhere.
        """
        self.backend = backend
        self.epochs: WeakValueDictionary[str, EpochOutputs] = WeakValueDictionary()

    def outputs(
        self,
        teacher: str,
        batches: Batches,
        prepare: Prepare,
        epoch: tuple[int, int],
        epochs: int,
        needs: frozenset[str],
        probe: Signals,
    ) -> EpochOutputs:
        """The outputs of an epoch, which all who ask for the same share.

        Args:
            teacher: identity of the network, which names all that decides what it says.
            batches: of the stage.
            prepare: makes of the stage's inputs what networks take.
            epoch: seed and number of the epoch that the batches are of.
            epochs: of the stage; answers are kept only if the backend can hold those of all its epochs.
            needs: signals that will be asked for.
            probe: the teacher's signals for two samples, which tell the size of its answers.
        """
        limit = self.backend.limit if self.backend else 0
        needs = (needs | {"logits"}) - CONSTANT
        size = nbytes(flat(probe, needs)) / 2 * batches.views
        samples, drawn = batches.samples, batches.used
        fixed = batches.fixed and size * samples <= FIXED and samples <= drawn + 1
        name = digest(*ORIGIN, teacher, batches.stream, *(() if fixed else epoch))
        outputs = self.epochs.get(name)
        if outputs is None:
            outputs = self.epochs[name] = EpochOutputs(name, self.backend, batches, prepare, fixed)
        if not fixed and size * drawn * epochs <= limit:
            outputs.kept |= needs
        return outputs

    def predictions(self, teacher: str, inputs: Rows, predict: Callable[[], Tensor]) -> tuple[Tensor, bool]:
        """Logits (M, K) of inputs as they are; and whether they were at hand."""
        if not (self.backend and teacher):
            return predict(), False
        name = digest(*ORIGIN, teacher, "predictions", content(inputs))
        if stored := self.backend.get(name):
            return stored["logits"].float().cpu(), True
        logits = predict()
        self.backend.put(name, {"logits": lossless(logits)})
        return logits, False


def digest(*names: object) -> str:
    """32 hexadecimal digits of what the names say."""
    return hashlib.sha256("/".join(map(str, names)).encode()).hexdigest()[:32]
