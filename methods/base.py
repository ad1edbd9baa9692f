"""The vocabulary in which every distillation method is written: what it sees, what it returns, how it is registered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from optuna.distributions import BaseDistribution
from torch import Tensor, nn

from kdbench.methods.checks import require
from kdbench.methods.hooks import Hooks, StageOptions
from kdbench.methods.registry import identity, registered
from kdbench.methods.rows import Rows
from kdbench.methods.signals import SAMPLES as SAMPLES
from kdbench.methods.signals import SIGNALS as SIGNALS
from kdbench.methods.signals import Signals as Signals

Losses = dict[str, Tensor]
"""Named scalar losses; the engine adds them up for the backward pass and logs each by its name."""

KNOWLEDGE = ("none", "response", "feature", "relation", "self-attention", "cross-modal")
"""The kinds of knowledge a method may transfer, in the survey's words; "none" is the control."""


class Unsupported(Exception):
    """A method cannot work on this pair, task or data: a result with a reason, not a crash."""


@dataclass(frozen=True)
class Step:
    """What a loss sees: one batch, one student, this moment."""

    inputs: Rows
    """As networks take them, augmented: images (B, C, H, W) in [0, 1]."""
    targets: Rows
    """As the task has them; where a sample is one decision (B,) classes, or (B, K) probabilities, of which a row of
    zeros is a sample without a label."""
    student: Signals
    teachers: tuple[Signals, ...]
    """The stage's frozen teachers, then its other students; all detached."""
    auxiliary: nn.ModuleDict
    """The method's own trainable modules for this student."""
    hard_loss: Callable[[Signals, Rows], Losses]
    """The task's own losses of signals on hard targets; methods call `task_loss`."""
    progress: float
    """Through the stage, 0 to 1."""
    indices: Tensor | None = None
    """(B,) int64 on the CPU: which samples of the stage's data these are."""

    @property
    def teacher(self) -> Signals:
        """The only teacher.

        Raises:
            ValueError: if there is none, or more than one.
        """
        if len(self.teachers) != 1:
            raise ValueError(f"this loss takes one teacher, but the stage has {len(self.teachers)}.")
        return self.teachers[0]

    def task_loss(self, weight: float = 1.0, logits: Tensor | None = None, targets: Rows | None = None) -> Losses:
        """The task's own losses on hard targets, as cross-entropy {"ce": ...} of a classification, times a weight.

        Args:
            weight: a factor on each.
            logits: (M, K), other decisions than the student's.
            targets: others than the batch's.
        """
        student = self.student if logits is None else dataclasses.replace(self.student, logits=logits)
        losses = self.hard_loss(student, self.targets if targets is None else targets)
        return {name: weight * loss for name, loss in losses.items()}


@dataclass(frozen=True)
class Net:
    """A network of the run: one copy of one of the spec's models ("student", "teacher", "teacher_2", ...)."""

    model: str = "student"
    copy: str = ""
    model_args: tuple[tuple[str, Any], ...] = ()
    """Constructor arguments on top of the model's own, where it takes them, as dropout for a noised student."""

    @property
    def name(self) -> str:
        """Names the network in seeds, losses and records."""
        return f"{self.model}.{self.copy}" if self.copy else self.model


STUDENT = Net("student")
TEACHER = Net("teacher")


@dataclass(frozen=True)
class Data:
    """The samples that a stage trains on."""

    inputs: Rows
    """Images (N, C, H, W) uint8, or what stands for them while they are in their files; or as another task has them."""
    targets: Rows
    """(N,) int64 classes, or (N, K) float probabilities or logits, of which a row of zeros is a sample without a label;
    or as another task has them."""
    unlabelled: Rows
    """Inputs of the rest of the training part, its targets withheld; there may be none."""
    classes: int
    augment: str = "none"
    """Names of the task's augmentations joined by "+", as crop+flip; or none."""
    magnitude: int = 9
    """Strength of randaugment, 0 to 30."""
    second: str = ""
    """Augmentations of a second view of each sample, if there is one: a batch then has twice as many inputs and targets
    as samples, each sample's first view and its second in turn. Only where the task offers `views`."""
    additional: int = 0
    """How many of the samples, the last ones, are drawn on top of a batch: those that the run has no label of. So every
    batch has as many of the others, whatever else a method is given."""
    additional_ratio: float = 1.0
    """Additional samples of a batch for each of the others."""


class Networks(Protocol):
    """The networks of a run, as a stage's `data` and `prepare` may use them."""

    def predict(self, net: Net, inputs: Rows) -> Tensor:
        """Logits (M, K) of a frozen network for inputs as `Data` has them, without augmentation."""

    def model(self, net: Net) -> nn.Module:
        """The model inside a network that the stage names, as timm built it."""

    def share_normalisation(self, net: Net, source: Net) -> None:
        """Makes a network normalise its input as another does."""

    def generator(self, name: str) -> torch.Generator:
        """Random numbers on the CPU that depend on the run's seed and this name alone."""


def as_given(data: Data, networks: Networks) -> Data:
    """The training data unchanged."""
    return data


@dataclass(frozen=True)
class Stage:
    """Train these students, from these teachers, on these data, by this loss."""

    name: str
    loss: Callable[[Step], Losses]
    students: tuple[Net, ...] = (STUDENT,)
    teachers: tuple[Net, ...] = (TEACHER,)
    epochs: float = 1.0
    """In units of the recipe's epochs: 1.0 is the whole budget of a run."""
    data: Callable[[Data, Networks], Data] = as_given
    options: StageOptions = field(default_factory=StageOptions)


@dataclass(frozen=True)
class Paper:
    """Where a method comes from."""

    title: str
    authors: str
    year: int
    link: str = ""


class Method(Hooks):
    """A distillation method; a subclass under `@method` is a frozen dataclass of its hyperparameters.

    A loss-only method writes `loss`. One with several stages, students or kinds of data writes `stages`. Networks of
    its own come from `auxiliary_modules`. What few methods need beyond that is in `hooks.py`.
    """

    id: ClassVar[str]
    paper: ClassVar[Paper]
    equation: ClassVar[str] = ""
    """The loss as it is written here, in LaTeX: a line for each equation; the last may say which fields symbols are."""
    knowledge: ClassVar[str] = "response"
    needs: ClassVar[frozenset[str]] = frozenset()
    """Names of `SIGNALS` beyond the logits, and of `SAMPLES`. A task that has not all of them is refused."""
    needs_teacher: ClassVar[bool] = True
    """Whether the pair's teacher takes part in training."""

    def loss(self, step: Step) -> Losses:
        """The losses of one student on one batch."""
        raise TypeError(f"{type(self).__name__} must write loss or stages.")

    def stages(self, teachers: tuple[Net, ...]) -> Iterable[Stage]:
        """What is trained, in order; by default one stage by `loss`."""
        return (Stage("train", self.loss, teachers=teachers if self.needs_teacher else ()),)

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """Modules trained along with a student, sized from a probe of two samples."""
        return nn.ModuleDict()

    def modules_of_data(self, student: Signals, teachers: tuple[Signals, ...], data: Data) -> nn.ModuleDict:
        """`auxiliary_modules`, where they depend on the training data too, as a memory of every sample does."""
        return self.auxiliary_modules(student, teachers)

    def hyperparameters(self) -> dict[str, Any]:
        """Every hyperparameter and its value, by name."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}  # type: ignore[arg-type]

    def space(self) -> dict[str, BaseDistribution]:
        """What is searched in a range of its own: the distribution of every `tuned` field that is in play, by name."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {each.name: each.metadata["space"] for each in fields if "space" in each.metadata}

    def loss_weights(self) -> dict[str, tuple[str, ...]]:
        """What is searched in units of its calibrated value: every `loss_weight` field, and the terms that it weighs.

        A method whose terms depend on its hyperparameters names those alone that are in play.
        """
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {each.name: each.metadata["terms"] for each in fields if "terms" in each.metadata}


T = TypeVar("T")
M = TypeVar("M", bound=type[Method])


def tuned(default: T, space: BaseDistribution) -> T:
    """A hyperparameter that is also searched: its default, which is the paper's, and its distribution."""
    return dataclasses.field(default=default, metadata={"space": space})


def loss_weight(default: float, *terms: str) -> float:
    """The weight of terms of a loss; its default is the paper's. It is searched in units of its calibrated value.

    A weight that a paper chose for its data, networks and batch says little elsewhere. The calibrated one is that with
    which the terms' gradient on the student is as large as the task's own loss's, before training.

    Args:
        default: the paper's, or its authors' program's.
        terms: names of the losses that are proportional to it.
    """
    return dataclasses.field(default=default, metadata={"terms": terms})


def method(cls: M) -> M:
    """Registers a method under the name of its file, or of its class and its source if it is from outside.

    Raises:
        TypeError: if the class lacks its paper, or names an unknown need or kind of knowledge.
        ValueError: if the id is taken.
    """
    cls.id = identity(cls)
    if not isinstance(getattr(cls, "paper", None), Paper):
        raise TypeError(f"method {cls.id} must name its paper: paper = Paper(title, authors, year).")
    if unknown := cls.needs - SIGNALS - SAMPLES:
        raise TypeError(
            f"method {cls.id} needs unknown signals {sorted(unknown)}; there are {sorted(SIGNALS | SAMPLES)}."
        )
    if cls.knowledge not in KNOWLEDGE:
        raise TypeError(f"method {cls.id}: knowledge must be one of {KNOWLEDGE}, but got {cls.knowledge!r}.")
    dataclass(frozen=True)(cls)
    return registered(cls)


def features_of(signals: Signals) -> tuple[Tensor, ...]:
    """The feature maps, which the method must name in its `needs`."""
    return require("features", signals.features)
