"""What frozen teachers say of the views, asked once: shared by runs side by side, and kept for later ones.

The views of an epoch depend on the data, the augmentation, the seed and the epoch's number alone, so every student that
asks about the same epoch can be given the same answers. They are kept without loss: a student is taught bitwise what
the teacher said.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import timm
import torch
from torch import Tensor

from bench.data.batches import Batch, Views
from bench.data.datasets import content
from bench.data.splits import EVALUATION_BATCH
from bench.networks.network import Network
from bench.networks.signals import observe
from bench.spec import NUMBERS
from bench.teachers.backends import CacheBackend, Tensors, layout, nbytes
from methods.base import Signals

ORIGIN = (2, NUMBERS, torch.__version__, timm.__version__)
"""Enters every name: answers of other code are not taken. The first number is raised with how answers are kept."""
WINDOW = 2
"""Batches whose answers are held for students side by side where they are too large to be kept."""
FIXED = 2**30
"""Bytes that answers about all images as they are may take. The backend has no say: batches of other sizes give other
bits, so a run asks about the same batches whether or not it has a backend."""

Ask = Callable[[Tensor], Signals]
"""Runs the teacher on inputs (B, C, H, W)."""


class EpochOutputs:
    """One teacher's answers to the batches of one epoch; or to the images as they are, where views are fixed."""

    def __init__(self, name: str, backend: CacheBackend | None, views: Views, fixed: bool) -> None:
        """Has the answers that the backend has.

        Args:
            name: of all that decides the answers.
            backend: where answers are kept.
            views: what is asked about.
            fixed: whether it is about the images as they are, not about an epoch.
        """
        self.name, self.backend, self.views, self.fixed = name, backend, views, fixed
        self.stored: Tensors = (backend.get(name) if backend else None) or {}
        self.heard: dict[int, Tensors] = {}
        self.kept: frozenset[str] = frozenset()
        """Signals of this epoch that are to be kept."""

    def open(self, needs: frozenset[str], ask: Ask) -> None:
        """Before an epoch: has all images answered, where views are fixed."""
        if self.fixed and not needs <= signals_of(self.stored):
            parts = self.views.images.split(EVALUATION_BATCH)
            self._keep([flat(ask(part.to(self.views.device).float().div_(255)), needs) for part in parts])

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
        """The batch's part of what is stored; a tensor has one row for each image, or one for each of its windows."""
        images, part = len(self.stored["logits"]), {}
        first = step * self.views.batch_size
        for key in (key for key in self.stored if signal(key) in needs):
            tensor = self.stored[key]
            each = tensor.unflatten(0, (images, -1))
            rows = each[batch.indices.to(tensor.device)] if self.fixed else each[first : first + len(batch.inputs)]
            part[key] = rows.flatten(0, 1).to(batch.inputs.device).contiguous(memory_format=layout(tensor))
        return part


class FrozenTeacher:
    """A frozen teacher in one epoch of one run."""

    def __init__(
        self, network: Network, needs: frozenset[str], outputs: EpochOutputs | None, classifier: Tensor | None = None
    ) -> None:
        """Opens the outputs.

        Args:
            network: the teacher.
            needs: signals that it is asked for beyond the logits.
            outputs: its answers, if they can be shared.
            classifier: the teacher's, if that is needed; it is the same for every batch.
        """
        self.classifier = classifier if "classifier" in needs else None
        self.network, self.needs, self.outputs = network, needs, outputs
        self.answers = (needs | {"logits"}) - {"classifier"}
        self.images, self.seconds = 0, 0.0
        """What the network was run on in this run, and how long that took on the host."""
        if outputs:
            outputs.open(self.answers, self._ask)

    def answer(self, step: int, batch: Batch) -> Signals:
        """What the teacher says of a batch of the epoch, without history."""
        if self.outputs is None:
            return self._ask(batch.inputs, batch.labels)
        signals = self.outputs.answer(step, batch, self.answers, self._ask)
        return dataclasses.replace(signals, classifier=self.classifier)

    def close(self, steps: int) -> None:
        """Ends an epoch of so many batches."""
        if self.outputs:
            self.outputs.close(steps)

    def _ask(self, inputs: Tensor, labels: Tensor | None = None) -> Signals:
        start = time.perf_counter()
        if labels is None:
            labels = torch.zeros(len(inputs), dtype=torch.long, device=inputs.device)
        signals = observe(self.network, inputs, labels, self.needs)
        self.images, self.seconds = self.images + len(inputs), self.seconds + time.perf_counter() - start
        return signals


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
        self, teacher: str, views: Views, epoch: tuple[int, int], epochs: int, needs: frozenset[str], probe: Signals
    ) -> EpochOutputs:
        """The outputs of an epoch, which all who ask for the same share.

        Args:
            teacher: identity of the network, which names all that decides what it says.
            views: of the stage.
            epoch: seed and number of the views.
            epochs: of the stage; answers are kept only if the backend can hold those of all its epochs.
            needs: signals that will be asked for.
            probe: the teacher's signals for two images, which tell the size of its answers.
        """
        limit = self.backend.limit if self.backend else 0
        needs = (needs | {"logits"}) - {"classifier"}
        size = nbytes(flat(probe, needs)) / 2
        drawn = min(len(views.images), views.steps * views.batch_size)
        fixed = views.fixed and size * len(views.images) <= FIXED and len(views.images) <= drawn + 1
        name = digest(*ORIGIN, teacher, views.stream, *(() if fixed else epoch))
        outputs = self.epochs.get(name)
        if outputs is None:
            outputs = self.epochs[name] = EpochOutputs(name, self.backend, views, fixed)
        if not fixed and size * drawn * epochs <= limit:
            outputs.kept |= needs
        return outputs

    def predictions(self, teacher: str, images: Tensor, predict: Callable[[], Tensor]) -> tuple[Tensor, bool]:
        """Logits (N, K) of images (N, C, H, W) uint8 as they are; and whether they were at hand."""
        if not (self.backend and teacher):
            return predict(), False
        name = digest(*ORIGIN, teacher, "predictions", content(images))
        if stored := self.backend.get(name):
            return stored["logits"].float().cpu(), True
        logits = predict()
        self.backend.put(name, {"logits": lossless(logits)})
        return logits, False


def digest(*names: object) -> str:
    """32 hexadecimal digits of what the names say."""
    return hashlib.sha256("/".join(map(str, names)).encode()).hexdigest()[:32]


def signal(key: str) -> str:
    """The signal that a flat tensor is part of."""
    return key.partition(".")[0]


def signals_of(tensors: Tensors) -> frozenset[str]:
    """The signals that flat tensors make up."""
    return frozenset(map(signal, tensors))


def flat(signals: Signals, needs: frozenset[str]) -> Tensors:
    """Signals as tensors by names such as features.0 and qkv.2.1, laid out in memory as they will be if kept."""
    found: Tensors = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            found[name] = value.contiguous(memory_format=layout(value))
        for index, item in enumerate(value if isinstance(value, tuple) else ()):
            add(f"{name}.{index}", item)

    for name in needs:
        add(name, getattr(signals, name))
    return found


def unflat(tensors: Tensors) -> Signals:
    """The inverse of `flat`, in float32."""
    tree: dict[str, Any] = {}
    for key in sorted(tensors, key=lambda key: [int(part) if part.isdigit() else -1 for part in key.split(".")]):
        *path, last = key.split(".")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = tensors[key].float()
    return Signals(**{name: _tuples(value) for name, value in tree.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value.values())) if isinstance(value, dict) else value


def lossless(tensor: Tensor) -> Tensor:
    """The tensor in bf16 if that has the same values: outputs of a network that computes in bf16."""
    half = tensor.bfloat16()
    return half if torch.equal(half.float(), tensor) else tensor
