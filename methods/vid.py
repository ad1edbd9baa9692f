"""Maximises what the student's features tell about the teacher's: variational information distillation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

from methods.base import Losses, Method, Paper, Signals, Step, features_of, method, tuned
from methods.checks import non_negative, positive, require, same_shape
from methods.functional import check_depths, matched, pooled_alike

SMALLEST_VARIANCE = 1e-5


def variational_loss(mean: Tensor, variance: Tensor, teacher_feature: Tensor) -> Tensor:
    r"""Mean of $((t - \mu)^2 / \sigma^2 + \log \sigma^2) / 2$: without its constant.

    Args:
        mean: (B, C, ...), the student's prediction of the teacher's feature.
        variance: (C,), learned for each channel, positive.
        teacher_feature: (B, C, ...)

    Raises:
        ValueError: if mean and feature have different shapes, or there is not one variance a channel.
    """
    same_shape(mean, teacher_feature)
    if variance.shape != mean.shape[1:2]:
        shapes = f"{tuple(variance.shape)} and {tuple(mean.shape)}"
        raise ValueError(f"there must be one variance a channel, but got {shapes}.")
    scale = variance.view(1, -1, *[1] * (mean.dim() - 2))
    return ((teacher_feature - mean).square() / scale + scale.log()).mean() / 2


class Variational(nn.Module):
    """Predicts the teacher's feature by a Gaussian: a mean from the student's feature, a variance for each channel."""

    def __init__(self, mean: nn.Module, channels: int, start: float) -> None:
        """Starts with one variance for all channels.

        Args:
            mean: maps the student's feature to the mean.
            channels: of the teacher's feature.
            start: the first variance.
        """
        super().__init__()
        self.mean = mean
        self.raw = nn.Parameter(torch.full((channels,), math.log(math.expm1(start - SMALLEST_VARIANCE))))

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """`variational_loss` of the teacher's feature; the variance is softplus(raw) + 1e-5."""
        return variational_loss(self.mean(student), F.softplus(self.raw) + SMALLEST_VARIANCE, teacher)


def convolutions(inputs: int, outputs: int) -> nn.Module:
    """Three 1x1 convolutions with ReLUs between, (B, inputs, H, W) to (B, outputs, H, W)."""
    widths = (inputs, outputs, outputs, outputs)
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv2d(before, after, kernel_size=1), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@method
class VID(Method):
    """Loss = cross-entropy + weight * (sum over stages of `variational_loss` + logit_weight * the same on logits).

    The variance of a channel is softplus of a parameter plus 1e-5, starts at `variance` = 5, and does not depend on
    the image. On logits the mean is linear in the student's pooled output, as in the paper's VID-LP.

    Choices: weight = 1 is Tian et al.'s (2020) for this same mean; the authors' released program has 0.1 for CIFAR-10.
    Heads are three 1x1 convolutions, as there; the paper's CIFAR networks also use transposed convolutions where sizes
    differ, and here the larger map is average-pooled to the smaller.
    """

    paper = Paper(
        "Variational Information Distillation for Knowledge Transfer",
        "Ahn, Hu, Damianou, Lawrence, Dai",
        2019,
        "https://arxiv.org/abs/1904.05835",
    )
    knowledge = "feature"
    needs = frozenset({"features", "pooled"})
    weight: float = tuned(1.0, FloatDistribution(0.01, 10.0, log=True))
    logit_weight: float = 1.0
    variance: float = 5.0
    depths: tuple[float, ...] = (0.33, 0.67, 1.0)
    teacher_depths: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(weight=self.weight, logit_weight=self.logit_weight)
        positive(variance=self.variance)
        check_depths(self.depths, self.teacher_depths)
        if self.variance <= SMALLEST_VARIANCE:
            raise ValueError(f"variance must be above {SMALLEST_VARIANCE}, but got variance={self.variance}.")

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """A head for each of `depths`, and one for the logits."""
        pairs = matched(features_of(student), features_of(teachers[0]), self.depths, self.teacher_depths)
        heads: dict[str, nn.Module] = {
            f"head_{index}": Variational(convolutions(mine.shape[1], theirs.shape[1]), theirs.shape[1], self.variance)
            for index, (mine, theirs) in enumerate(pairs)
        }
        if self.logit_weight:
            classes, width = teachers[0].logits.shape[1], require("pooled", student.pooled).shape[1]
            heads["logits"] = Variational(nn.Linear(width, classes), classes, self.variance)
        return nn.ModuleDict(heads)

    def loss(self, step: Step) -> Losses:
        """Labels, and the heads' likelihood of the teacher's maps (B, C, H, W) and logits (B, K)."""
        pairs = matched(features_of(step.student), features_of(step.teacher), self.depths, self.teacher_depths)
        terms = [
            step.auxiliary[f"head_{index}"].loss(*pooled_alike(mine, theirs))  # type: ignore[operator]
            for index, (mine, theirs) in enumerate(pairs)
        ]
        losses = {
            **step.task_loss(),
            "vid": self.weight * torch.stack(terms).sum(),
        }
        if self.logit_weight:
            pooled = require("pooled", step.student.pooled)
            likelihood = step.auxiliary["logits"].loss(pooled, step.teacher.logits)  # type: ignore[operator]
            losses["vid_logits"] = self.weight * self.logit_weight * likelihood
        return losses
