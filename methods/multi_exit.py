"""Gives the student a classifier at every stage and teaches the early exits by the last."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

from kdbench.methods.base import (
    Losses,
    Method,
    Net,
    Paper,
    Signals,
    Stage,
    Step,
    Unsupported,
    as_given,
    features_of,
    method,
    tuned,
)
from kdbench.methods.checks import fraction, non_negative, one_of
from kdbench.methods.functional import kd_loss, with_unlabelled


class Temperature(nn.Module):
    """A temperature that rises whenever the softened teacher is too confident."""

    value: Tensor

    def __init__(self, start: float) -> None:
        """Starts at `start`."""
        super().__init__()
        self.register_buffer("value", torch.tensor(float(start)))

    @torch.no_grad()
    def update(self, teacher_logits: Tensor, limit: float, factor: float) -> Tensor:
        """The temperature, which is then multiplied by `factor` if the mean largest probability passes `limit`.

        Args:
            teacher_logits: (B, K)
            limit: the confidence limit, mu.
            factor: above 1.
        """
        confidence = F.softmax(teacher_logits / self.value, dim=1).amax(dim=1).mean()
        before = self.value.clone()
        self.value.mul_(torch.where(confidence > limit, factor, 1.0))
        return before


class Exit(nn.Sequential):
    """A classifier on a feature map: batch norm, ReLU, global average pooling, linear.

    With a width, two 3x3 convolutions of stride 2 and that many channels, each with batch norm and ReLU, take the place
    of the first two (Huang et al. 2018, section 4).
    """

    def __init__(self, channels: int, classes: int, width: int = 0) -> None:
        """Maps (B, channels, H, W) to (B, classes)."""
        layers: list[nn.Module] = [] if width else [nn.BatchNorm2d(channels), nn.ReLU()]
        for inputs in (channels, width) if width else ():
            convolution = nn.Conv2d(inputs, width, 3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width or channels, classes))


def exit_loss(exit_logits: Sequence[Tensor], teacher_logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Mean over exits of `kd_loss` against the teacher exit, which receives no gradient (equations 3 and 4).

    Args:
        exit_logits: one (B, K) for each exit that learns from the teacher exit.
        teacher_logits: (B, K)
        temperature: T, positive.
    """
    losses = [kd_loss(logits, teacher_logits.detach(), temperature) for logits in exit_logits]
    return torch.stack(losses).mean()


@method
class MultiExit(Method):
    """Loss = mean over exits of cross-entropy + weight * `exit_loss` with the temperature annealed.

    The temperature starts at 1 and is multiplied by 1.05 whenever the teacher exit's mean confidence passes the limit
    mu = 0.5 (the authors' code). Departures: the paper's networks are MSDNets with 11 exits (on CIFAR); here an exit
    stands on every inner stage of any network with stages, and none on a bare stem. `weight` is the paper's 1; the
    authors' code sums over exits under one scale, so its distillation is lighter than this mean by (n - 1) / n for n
    exits; at 0 labels alone teach exits. `exit_width` gives inner exits the two convolutions that MSDNet's have (128
    channels on CIFAR). `unlabelled` is the paper's semi-supervised setting: images without labels take part in
    distillation alone, mixed into batches.

    The headline is the last exit, which is the student as every other method deploys it. Beside it are scored, and
    costed by what they run: each inner exit, "stage_i" on the network's i-th feature map (a stem's counts, so a
    ResNet's first exit is "stage_2"); the ensemble of all (mean probability); with `anytime`, that of the exits so far,
    "upto_stage_i", from the second exit on.
    """

    collection = "survey"
    paper = Paper(
        "Distillation-Based Training for Multi-Exit Architectures",
        "Phuong, Lampert",
        2019,
        "https://openaccess.thecvf.com/content_ICCV_2019/html/"
        "Phuong_Distillation-Based_Training_for_Multi-Exit_Architectures_ICCV_2019_paper.html",
    )
    equation = (
        r"\mathcal{L} = \frac{1}{n} \sum_{e=1}^{n} \mathcal{L}_{\text{task}}(z_e, y) + \lambda \, "
        r"\frac{1}{n-1} \sum_{e=1}^{n-1} T^2\,\text{KL}(\sigma(z_n/T) \parallel \sigma(z_e/T))"
        "\n"
        r"T \leftarrow a\,T \quad \text{whenever} \quad \underset{\text{batch}}{\text{mean}} \max_k "
        r"\sigma(z_n/T)_k > \mu"
        "\n"
        r"\lambda = \text{weight}, \quad a = \text{annealing}, \quad \mu = \text{confidence\_limit}"
    )
    needs_teacher = False
    needs = frozenset({"features", "class_targets"})
    weight: float = tuned(1.0, FloatDistribution(0.1, 5.0, log=True))
    """Searched as it is: untrained exits agree, so there is nothing to calibrate by."""
    confidence_limit: float = tuned(0.5, FloatDistribution(0.1, 0.9))
    annealing: float = 1.05
    teacher_exit: str = "last"
    unlabelled: bool = False
    exit_width: int = 0
    anytime: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(weight=self.weight, exit_width=self.exit_width)
        fraction(confidence_limit=self.confidence_limit)
        one_of(("last", "ensemble"), teacher_exit=self.teacher_exit)
        if not 1 <= self.annealing < math.inf:
            raise ValueError(f"annealing must be finite and at least 1, but got annealing={self.annealing}.")

    def uses_unlabelled(self) -> bool:
        """They take part in distillation, if so asked."""
        return self.unlabelled

    def stages_run(self, prediction: str) -> int:
        """Of an exit or an ensemble of the first exits: as many stages as its last exit stands on."""
        kind, _, number = prediction.rpartition("_")
        return int(number) if kind in ("stage", "upto_stage") else 0

    def combines_exits(self, prediction: str) -> bool:
        """Whether a prediction is an ensemble."""
        return prediction == "ensemble" or prediction.startswith("upto_")

    def stages(self, teachers: tuple[Net, ...]) -> Iterable[Stage]:
        """One stage; no teacher but the student's own exit."""
        return (Stage("train", self.loss, teachers=(), data=with_unlabelled if self.unlabelled else as_given),)

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """An exit for every stage but the last, and the temperature."""
        inner, classes = _inner(student), student.logits.shape[1]
        if not inner:
            raise Unsupported("the student has one stage alone, so there is no place for an earlier exit.")
        exits = {name: Exit(feature.shape[1], classes, self.exit_width) for name, feature in inner.items()}
        return nn.ModuleDict({**exits, "temperature": Temperature(1.0)})

    def predictions(self, student: Signals, auxiliary: nn.ModuleDict) -> dict[str, Tensor]:
        """Logits (B, K) of the last exit, of each inner exit, and of ensembles (log of the mean probability)."""
        exits = self._exits(student, auxiliary)
        inner = {name: logits for name, logits in exits.items() if name != "last"}
        probabilities = torch.stack([F.softmax(logits, dim=1) for logits in (*inner.values(), student.logits)])
        some = list(enumerate(inner, start=1))[1:] if self.anytime else ()
        so_far = {f"upto_{name}": _logarithm(probabilities[:count].mean(dim=0)) for count, name in some}
        return exits | so_far | {"ensemble": _logarithm(probabilities.mean(dim=0))}

    def fine_tuning_loss(self, step: Step) -> Losses:
        """Labels at every exit, as all are deployed."""
        outputs = self._exits(step.student, step.auxiliary)
        return _mean_task_loss(step, outputs.values())

    def loss(self, step: Step) -> Losses:
        """Labels at every exit, and the teacher exit's logits (B, K) for the others."""
        outputs = self._exits(step.student, step.auxiliary)
        teacher = outputs["last"]
        if self.teacher_exit == "ensemble":
            teacher = self.predictions(step.student, step.auxiliary)["ensemble"]
        learners = [logits for name, logits in outputs.items() if name != self.teacher_exit]
        temperature = step.auxiliary["temperature"].update(teacher, self.confidence_limit, self.annealing)  # type: ignore[operator]
        hard = _mean_task_loss(step, outputs.values())
        return {**hard, "exits": self.weight * exit_loss(learners, teacher, temperature)}

    def _exits(self, student: Signals, auxiliary: nn.ModuleDict) -> dict[str, Tensor]:
        """Logits (B, K) of the last exit, then of each inner one."""
        return {"last": student.logits} | {name: auxiliary[name](feature) for name, feature in _inner(student).items()}


def _inner(student: Signals) -> dict[str, Tensor]:
    """The feature maps (B, C, H, W) on which inner exits stand, by the exit's name: not a bare stem's, nor the last."""
    return {f"stage_{i + 1}": feature for i, feature in enumerate(features_of(student)[:-1]) if i >= student.stem}


def _mean_task_loss(step: Step, exits: Iterable[Tensor]) -> Losses:
    """The task's own losses on hard targets, the mean over exits of logits (B, K)."""
    losses = [step.task_loss(logits=logits) for logits in exits]
    return {name: torch.stack([each[name] for each in losses]).mean() for name in losses[0]}


def _logarithm(probabilities: Tensor) -> Tensor:
    return probabilities.clamp_min(1e-12).log()
