"""The vocabulary in which every distillation method is written: what it sees, what it returns, how it is registered."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import torch
import torch.nn.functional as F
from optuna.distributions import BaseDistribution
from torch import Tensor, nn

Losses = dict[str, Tensor]
"""Named scalar losses; the engine adds them up for the backward pass and logs each by its name."""

KNOWLEDGE = ("none", "response", "feature", "relation", "self-attention", "cross-modal")
"""The kinds of knowledge a method may transfer, in the survey's words; "none" is the control."""


class Unsupported(Exception):
    """A method cannot work on this pair or these data: a result with a reason, not a crash."""


@dataclass(frozen=True)
class Signals:
    """What one network emits for one batch; a field that nobody asked for is None."""

    logits: Tensor
    """(B, K)"""
    features: tuple[Tensor, ...] | None = None
    """One map a stage, (B, C_i, H_i, W_i), shallow to deep."""
    pooled: Tensor | None = None
    """(B, D), what the classifier sees."""
    classifier: Tensor | None = None
    """(K, D), the weights of the classifier: one vector a class, in the space of `pooled`."""
    tokens: tuple[Tensor, ...] | None = None
    """The embedding, then the output of each transformer block: (B, N, D) each, so blocks + 1 of them."""
    qkv: tuple[tuple[Tensor, Tensor, Tensor], ...] | None = None
    """Queries, keys and values of each attention, (B, heads, N, d) each; B counts windows where attention has them."""
    input_grad: Tensor | None = None
    """(B, C, H, W), the gradient of each image's cross-entropy with respect to its pixels in [0, 1]."""
    mirrored_grad: Tensor | None = None
    """(B, C, H, W), the same for the horizontally mirrored image, mirrored back."""

    def detached(self) -> Signals:
        """The same values without their history, as a fellow student may use them."""
        return Signals(**{field.name: _detached(getattr(self, field.name)) for field in dataclasses.fields(self)})


def _detached(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_detached(item) for item in value)
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value.detach()
    return value


SIGNALS = frozenset(field.name for field in dataclasses.fields(Signals)) - {"logits"}
"""What a method may name in `needs`."""


@dataclass(frozen=True)
class Step:
    """What a loss sees: one batch, one student, this moment."""

    inputs: Tensor
    """(B, C, H, W) in [0, 1], augmented."""
    labels: Tensor
    """(B,) classes, or (B, K) probabilities; a row of zeros is an image without a label."""
    student: Signals
    teachers: tuple[Signals, ...]
    """The stage's frozen teachers, then its other students; all detached."""
    auxiliary: nn.ModuleDict
    """The method's own trainable modules for this student."""
    progress: float
    """Through the stage, 0 to 1."""
    epoch: float = 0.0
    """Epochs of the stage so far."""

    @property
    def teacher(self) -> Signals:
        """The only teacher.

        Raises:
            ValueError: if there is none, or more than one.
        """
        if len(self.teachers) != 1:
            raise ValueError(f"this loss takes one teacher, but the stage has {len(self.teachers)}.")
        return self.teachers[0]


@dataclass(frozen=True)
class Net:
    """A network of the run: one copy of one of the spec's models ("student", "teacher", "teacher_2", ...)."""

    model: str = "student"
    copy: str = ""
    model_args: tuple[tuple[str, Any], ...] = ()
    """Constructor arguments on top of the model's own, as dropout for a noised student."""

    @property
    def name(self) -> str:
        """Names the network in seeds, losses and records."""
        return f"{self.model}.{self.copy}" if self.copy else self.model


STUDENT = Net("student")
TEACHER = Net("teacher")


@dataclass(frozen=True)
class Data:
    """The images a stage trains on."""

    images: Tensor
    """(N, C, H, W) uint8, or what stands for it while the images stay in their files"""
    labels: Tensor
    """(N,) int64 classes, or (N, K) float probabilities or logits; a row of zeros is an image without a label."""
    unlabelled: Tensor
    """(M, C, H, W) uint8: the rest of the training part, its labels withheld; M may be 0."""
    classes: int
    augment: str = "none"
    """Names of augmentations joined by "+": crop, crop-reflect, resized-crop, flip, randaugment; or none."""
    magnitude: int = 9
    """Strength of randaugment, 0 to 30."""


class Networks(Protocol):
    """The networks of a run, as a stage's `data` and `prepare` may use them."""

    def predict(self, net: Net, images: Tensor) -> Tensor:
        """Logits (N, K) of a frozen network for images (N, C, H, W) uint8, without augmentation."""

    def model(self, net: Net) -> nn.Module:
        """The timm model of a network that the stage names."""

    def share_normalisation(self, net: Net, source: Net) -> None:
        """Makes a network normalise its input as another does."""

    def generator(self, name: str) -> torch.Generator:
        """Random numbers on the CPU that depend on the run's seed and this name alone."""


def as_given(data: Data, networks: Networks) -> Data:
    """The training data unchanged."""
    return data


def nothing(networks: Networks) -> None:
    """Leaves the networks as they are."""


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
    prepare: Callable[[Networks], None] = nothing
    """The one place where a method may write weights, before the stage's first update."""
    in_turn: bool = False
    """Whether students are updated one after another, each taught by what its fellows predict by then."""
    lr: float = 1.0
    """A factor on the recipe's learning rate."""
    clip_norm: float = 0.0
    """Largest gradient norm of a student; 0 is as the recipe says."""
    needs: frozenset[str] | None = None
    """What its loss reads, if less than the method needs."""


@dataclass(frozen=True)
class Paper:
    """Where a method comes from."""

    title: str
    authors: str
    year: int
    link: str = ""


class Method:
    """A distillation method; a subclass under `@method` is a frozen dataclass of its hyperparameters.

    A loss-only method writes `loss`. One with several stages, students or kinds of data writes `stages`. Networks of
    its own come from `auxiliary`, and more outputs than the student's logits from `predictions`.
    """

    id: ClassVar[str]
    paper: ClassVar[Paper]
    knowledge: ClassVar[str] = "response"
    needs: ClassVar[frozenset[str]] = frozenset()
    """Names of `Signals` fields beyond the logits."""
    needs_teacher: ClassVar[bool] = True
    """Whether the pair's teacher takes part in training."""
    several_teachers: ClassVar[bool] = False
    """Whether it takes more than one teacher."""
    composition: ClassVar[str] = ""
    """The hyperparameter that takes a composition such as "kd+at", of the method that composes others."""

    def loss(self, step: Step) -> Losses:
        """The losses of one student on one batch."""
        raise TypeError(f"{type(self).__name__} must write loss or stages.")

    def stages(self, teachers: tuple[Net, ...]) -> Iterable[Stage]:
        """What is trained, in order; by default one stage by `loss`."""
        return (Stage("train", self.loss, teachers=teachers if self.needs_teacher else ()),)

    def auxiliary(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """Modules trained along with a student, sized from a probe of two images."""
        return nn.ModuleDict()

    def predictions(self, student: Signals, auxiliary: nn.ModuleDict) -> dict[str, Tensor]:
        """Named logits (B, K) that evaluation scores; the first is the headline.

        One that is named stage_1, stage_2, ... runs the student up to that stage alone, and is costed so.
        """
        return {"logits": student.logits}

    def hard_loss(self, step: Step) -> Losses:
        """The losses of a fine-tuning stage: cross-entropy of the headline, unless more than it is deployed."""
        headline = next(iter(self.predictions(step.student, step.auxiliary).values()))
        return {"ce": F.cross_entropy(headline, step.labels)}

    def labelled(self, data: Data, networks: Networks) -> Data:
        """The data of a fine-tuning stage on hard labels: as given, unless the method withholds some."""
        return data

    def needed(self) -> frozenset[str]:
        """`needs`, unless it depends on hyperparameters."""
        return self.needs

    def groups(self, classes: int) -> dict[str, tuple[int, ...]]:
        """Named groups of classes whose accuracy is reported apart, as base and novel ones."""
        return {}

    def hyperparameters(self) -> dict[str, Any]:
        """Every hyperparameter and its value, by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def space(cls) -> dict[str, BaseDistribution]:
        """The search space: the distribution of every tuned field, by name."""
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        return {field.name: field.metadata["space"] for field in fields if "space" in field.metadata}


REGISTRY: dict[str, type[Method]] = {}
"""Every method by its id, which is the name of its file."""

S = TypeVar("S")
T = TypeVar("T")
M = TypeVar("M", bound=type[Method])


def tuned(default: T, space: BaseDistribution) -> T:
    """A hyperparameter that is also searched: its default, which is the paper's, and its distribution."""
    return dataclasses.field(default=default, metadata={"space": space})


def method(cls: M) -> M:
    """Registers a method under the name of its file.

    Raises:
        TypeError: if the class lacks its paper, or names an unknown signal or kind of knowledge.
        ValueError: if the id is taken.
    """
    cls.id = cls.__module__.rpartition(".")[2]
    if not isinstance(getattr(cls, "paper", None), Paper):
        raise TypeError(f"method {cls.id} must name its paper: paper = Paper(title, authors, year).")
    if unknown := cls.needs - SIGNALS:
        raise TypeError(f"method {cls.id} needs unknown signals {sorted(unknown)}; there are {sorted(SIGNALS)}.")
    if cls.knowledge not in KNOWLEDGE:
        raise TypeError(f"method {cls.id}: knowledge must be one of {KNOWLEDGE}, but got {cls.knowledge!r}.")
    if cls.id in REGISTRY:
        raise ValueError(f"method id {cls.id} is taken by {REGISTRY[cls.id].__module__}.")
    REGISTRY[cls.id] = dataclass(frozen=True)(cls)
    return cls


def positive(**values: float) -> None:
    """Checks that each named value is a positive number.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive, but got {name}={value}.")


def non_negative(**values: float) -> None:
    """Checks that each named value is zero or a positive number.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must not be negative, but got {name}={value}.")


def fraction(**values: float) -> None:
    """Checks that each named value lies between 0 and 1, both included.

    Raises:
        ValueError: naming the first that does not.
    """
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie between 0 and 1, but got {name}={value}.")


def one_of(choices: tuple[str, ...], **values: str) -> None:
    """Checks that each named value is one of the choices.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, value in values.items():
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, but got {name}={value}.")


def same_shape(first: Tensor, second: Tensor) -> None:
    """Checks that two tensors have one shape.

    Raises:
        ValueError: naming both shapes.
    """
    if first.shape != second.shape:
        raise ValueError(f"shapes must be equal, but got {tuple(first.shape)} and {tuple(second.shape)}.")


def same_batch(first: Tensor, second: Tensor, dims: int) -> None:
    """Checks that two tensors have `dims` dimensions and one batch size.

    Raises:
        ValueError: naming both shapes.
    """
    if first.dim() != dims or second.dim() != dims or first.shape[0] != second.shape[0]:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"expected two tensors of {dims} dimensions and one batch size, but got {shapes}.")


def features_of(signals: Signals) -> tuple[Tensor, ...]:
    """The feature maps, which the method must have asked for by `needs`."""
    return require("features", signals.features)


def require(name: str, signal: S | None) -> S:
    """A signal that the method must have asked for.

    Raises:
        TypeError: if it has not.
    """
    if signal is None:
        raise TypeError(f"a method that reads {name} must name it in needs.")
    return signal
