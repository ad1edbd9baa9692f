"""A frozen teacher in one epoch of one run: asks its network, or takes the answers that are at hand."""

from __future__ import annotations

import dataclasses
import time
from typing import Protocol

from kdbench.bench.data.batches import Batch
from kdbench.bench.teachers.cache import EpochOutputs
from kdbench.methods.base import Signals
from kdbench.methods.rows import Rows, count
from kdbench.methods.signals import CONSTANT


class Observe(Protocol):
    """Runs the teacher."""

    def __call__(self, inputs: Rows, targets: Rows | None) -> Signals:
        """Its signals for inputs as networks take them; targets for those signals that depend on them."""


class FrozenTeacher:
    """A frozen teacher in one epoch of one run."""

    def __init__(self, observe: Observe, needs: frozenset[str], outputs: EpochOutputs | None, probe: Signals) -> None:
        """Opens the epoch's outputs.

        Args:
            observe: runs the teacher.
            needs: signals that it is asked for beyond the logits.
            outputs: its answers, if they can be shared.
            probe: what it said of two samples, which has all that is the same for every batch.
        """
        self.constant = {name: getattr(probe, name) for name in (needs & CONSTANT) | {"stem"}}
        self.observe, self.outputs = observe, outputs
        self.answers = (needs | {"logits"}) - CONSTANT
        self.samples, self.seconds = 0, 0.0
        """What the network was run on in this run, and how long that took on the host."""
        if outputs:
            outputs.open(self.answers, self._ask)

    def answer(self, step: int, batch: Batch) -> Signals:
        """What the teacher says of a batch of the epoch, without history."""
        if self.outputs is None:
            return self._ask(batch.inputs, batch.targets)
        signals = self.outputs.answer(step, batch, self.answers, self._ask)
        return dataclasses.replace(signals, **self.constant)

    def close(self, steps: int) -> None:
        """Ends an epoch of so many batches."""
        if self.outputs:
            self.outputs.close(steps)

    def _ask(self, inputs: Rows, targets: Rows | None = None) -> Signals:
        start = time.perf_counter()
        signals = self.observe(inputs, targets)
        self.samples, self.seconds = self.samples + count(inputs), self.seconds + time.perf_counter() - start
        return signals
