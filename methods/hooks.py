"""What few methods say of themselves beyond a loss and stages; `base.py` comes first, and is enough for most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

if TYPE_CHECKING:
    from kdbench.methods.base import Data, Losses, Networks, Signals, Step


def nothing(networks: Networks) -> None:
    """Leaves the networks as they are."""


@dataclass(frozen=True)
class StageOptions:
    """How a stage is trained, where that differs from the recipe and from one update of all students at once."""

    prepare: Callable[[Networks], None] = nothing
    """The one place where a method may write weights, before the stage's first update."""
    in_turn: bool = False
    """Whether students are updated one after another, each taught by what its fellow students predict by then."""
    lr: float = 1.0
    """A factor on the recipe's learning rate."""
    clip_norm: float = 0.0
    """Largest gradient norm of a student; 0 is as the recipe says."""
    needs: frozenset[str] | None = None
    """What the stage's loss reads, if that is less than the method needs; None is all of it."""


class Hooks:
    """What a method may override beyond `Method`'s own; the defaults serve nearly all."""

    role: ClassVar[Literal["", "control", "baseline"]] = ""
    """What tables use it as: the control that learns without a teacher, or the distillation that others must beat."""
    collection: ClassVar[Literal["", "survey", "modern"]] = ""
    """Which set it belongs to: the survey's, or those that today's papers compare with; a user's own to none."""
    several_teachers: ClassVar[bool] = False
    """Whether it takes more than one teacher."""
    composition: ClassVar[str] = ""
    """The hyperparameter that takes a composition such as "kd+at", of the method that composes others."""
    composed_with: ClassVar[dict[str, Any]] = {}
    """Hyperparameters that it has beside, unless they are given, where a composition stands for a method."""
    deploys_modules: ClassVar[bool] = False
    """Whether its predictions run auxiliary modules that a user of the student must run too: these count in its cost,
    their parameters also where they are frozen."""
    needs: ClassVar[frozenset[str]]

    def needed(self) -> frozenset[str]:
        """`needs`, unless what is needed depends on hyperparameters."""
        return self.needs

    def assistants(self) -> dict[str, str]:
        """Architectures, by the `model` of stages' Nets, of networks beside the student and its teachers.

        Each is trained by a stage of the run before it teaches. An empty name stands for the student's architecture.
        """
        return {}

    def uses_unlabelled(self) -> bool:
        """Whether it is given the samples without labels: a stage's data have some of them."""
        return False

    def calibrated_at(self) -> float:
        """The share of training at which loss weights are measured: 0, or where a warm-up of theirs has ended."""
        return 0.0

    def predictions(self, student: Signals, auxiliary: nn.ModuleDict) -> dict[str, Tensor]:
        """Named logits (M, K) that evaluation scores: the student's own, unless more than these are deployed.

        The first is the headline, by which the method is judged.
        """
        return {"logits": student.logits}

    def class_groups(self, classes: int) -> dict[str, tuple[int, ...]]:
        """Named groups of classes whose accuracy is reported apart, as base and novel ones."""
        return {}

    def fine_tuning_loss(self, step: Step) -> Losses:
        """The losses of a fine-tuning stage on hard targets: the task's, of the headline prediction."""
        headline = next(iter(self.predictions(step.student, step.auxiliary).values()))
        return step.task_loss(logits=headline)

    def fine_tuning_data(self, data: Data, networks: Networks) -> Data:
        """The data of a fine-tuning stage: as given, unless the method withholds some targets."""
        return data

    def stages_run(self, prediction: str) -> int | None:
        """How many stages of the student a named prediction runs, so that it is costed by itself.

        Zero is the whole student; None, the default, says that predictions are not costed one by one.
        """
        return None

    def combines_exits(self, prediction: str) -> bool:
        """Whether a named prediction is of several exits together."""
        return False
