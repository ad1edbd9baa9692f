"""What a run emits, in plain values: one record an epoch, one outcome at the end, and who receives them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

STATUSES = ("done", "diverged", "unsupported", "failed")
"""How a run can end. The first three are results; a failed run is not kept as one."""


class Stopped(Exception):
    """Raised by a sink to end a run early, as a pruner does; the run may go on later from its checkpoint."""


@dataclass(frozen=True)
class Epoch:
    """One epoch of one stage."""

    number: int
    """Counts through the whole run, from 1."""
    of: int
    stage: str
    losses: dict[str, float]
    """Mean over the epoch, by "student/loss"."""
    train_accuracy: float
    """Of the first student on its augmented batches; soft labels count by their largest class."""
    validation_accuracy: float
    """Of the first student's headline prediction."""
    learning_rate: float
    images: int
    """Images that students were trained on; an image counts once for each student."""
    teacher_forwards: int
    """Images that frozen teachers were asked about for training."""
    seconds: float
    """Of this run alone, where others are trained side by side."""
    teacher_cached: int = 0
    """Those of `teacher_forwards` whose answers were at hand."""


@dataclass(frozen=True)
class Outcome:
    """The end of a run.

    `scores` maps "last" and "best" (the epoch of best validation accuracy) to {"epoch": int, "validation": S,
    "test": S}; S maps each student's name to its predictions' names to metrics by name, the first student and the first
    prediction being the headline. There is no "test" in a tuning run. `teacher` holds the pair's teacher's metrics by
    part, and `confusion` counts the headline's decisions of the last epoch on the last part: rows are classes.
    """

    status: str
    reason: str = ""
    scores: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, dict[str, float]] = field(default_factory=dict)
    confusion: list[list[int]] = field(default_factory=list)

    def headline(self, epoch: str, part: str, metric: str = "accuracy") -> float | None:
        """A metric of the headline prediction, or None if it was not measured."""
        students = self.scores.get(epoch, {}).get(part, {})
        for predictions in students.values():
            for metrics in predictions.values():
                value = metrics.get(metric)
                return None if value is None else float(value)
        return None


class Sink(Protocol):
    """Receives what a run emits and keeps what an interrupted one needs to go on."""

    def checkpoint(self) -> bytes | None:
        """The last whole checkpoint of this run, if it was interrupted."""

    def epoch(self, record: Epoch, state: Callable[[], bytes]) -> None:
        """Takes an epoch; calls `state` if it keeps a checkpoint now.

        Raises:
            Stopped: if the run should end here.
        """

    def weights(self, reference: str) -> bytes:
        """The verified safetensors file of a stored network."""


def plain(record: Epoch | Outcome) -> dict[str, Any]:
    """A record as plain dicts, for JSON."""
    return dataclasses.asdict(record)
