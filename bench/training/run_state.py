"""Where a run is, what it has cost, and its best epoch so far; how that is saved, and taken up again."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from kdbench.bench.record import Metric
from kdbench.bench.training.train_state import TrainState, Weights

FORMAT = 2
"""Of a checkpoint; one of another is not taken up, and the run starts anew."""
TEACHER_COSTS = ("teacher_forwards", "teacher_cached", "teacher_seconds")
"""Costs of teachers: samples that they were asked about, those whose answers were at hand, and the time that the
others took."""


class Diverged(Exception):
    """A loss, a weight or a prediction is no longer a finite number."""


@dataclass
class Best:
    """The epoch of the best validation score in the last stage."""

    number: int = 0
    score: float | None = None
    students: dict[str, Weights] = field(default_factory=dict)
    """Weights by the student's name."""

    def beaten_by(self, score: float, metric: Metric) -> bool:
        """Whether a score is better; NaN is not."""
        return score == score if self.score is None else metric.sign * score > metric.sign * self.score


@dataclass
class RunState:
    """All of a run that changes, but its networks and their train states."""

    stage: int = 0
    epoch: int = 0
    """Whole epochs of the stage."""
    number: int = 0
    """Whole epochs of the run."""
    best: Best = field(default_factory=Best)
    cost: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(
            ("seconds", "samples", "updates", *TEACHER_COSTS, "epochs", "training_set"), 0
        )
    )
    auxiliary: dict[str, nn.ModuleDict] = field(default_factory=dict)
    """The method's own modules, by the name of the student that they are for."""


def saved(state: RunState, networks: dict[str, nn.Module], students: list[TrainState]) -> bytes:
    """A checkpoint: all that the rest of the run depends on; random draws depend on seed and epoch alone.

    Args:
        state: where the run is.
        networks: that were trained so far, by name.
        students: of the current stage.
    """
    buffer = io.BytesIO()
    values = {
        "format": FORMAT,
        "place": (state.stage, state.epoch, state.number),
        "cost": state.cost,
        "networks": {name: network.state_dict() for name, network in networks.items()},
        "auxiliary": {name: modules.state_dict() for name, modules in state.auxiliary.items()},
        "optimizers": [student.optimizer.state_dict() for student in students],
        "best": vars(state.best),
    }
    torch.save(values, buffer)
    return buffer.getvalue()


def opened(file: bytes, device: torch.device) -> dict[str, Any] | None:
    """What a checkpoint holds; None if it is of another format."""
    values: dict[str, Any] = torch.load(io.BytesIO(file), map_location=device, weights_only=True)
    return values if values.get("format") == FORMAT else None


def restored(values: dict[str, Any]) -> RunState:
    """Where the run of a checkpoint was."""
    stage, epoch, number = values["place"]
    return RunState(stage, epoch, number, Best(**values["best"]), values["cost"])


def load_weights(
    values: dict[str, Any], state: RunState, networks: dict[str, nn.Module], students: list[TrainState]
) -> None:
    """Puts a checkpoint's weights and optimizers into networks that have been built for its stage."""
    for name, weights in values["networks"].items():
        networks[name].load_state_dict(weights)
    for name, weights in values["auxiliary"].items():
        state.auxiliary[name].load_state_dict(weights)
    for student, optimizer in zip(students, values["optimizers"], strict=True):
        student.optimizer.load_state_dict(optimizer)
