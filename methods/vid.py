"""Maximises what the student's features tell about the teacher's: variational information distillation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.methods.base import Losses, Method, Paper, Signals, Step, features_of, loss_weight, method
from kdbench.methods.checks import non_negative, one_of, positive, require, same_shape
from kdbench.methods.functional import check_depths, kd_loss, matched, pooled_alike

SMALLEST_VARIANCE = 1e-5
HEADS = ("tian", "authors")


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


def convolutions(inputs: int, outputs: int, form: str) -> nn.Module:
    """1x1 convolutions without biases, (B, inputs, H, W) to (B, outputs, H, W).

    Args:
        inputs: channels of the student's map.
        outputs: channels of the teacher's.
        form: tian, three with ReLUs between; or authors, two with nothing between.
    """
    first = nn.Conv2d(inputs, outputs, kernel_size=1, bias=False)
    others = [nn.Conv2d(outputs, outputs, kernel_size=1, bias=False) for _ in range(2 if form == "tian" else 1)]
    if form == "authors":
        return nn.Sequential(first, *others)
    return nn.Sequential(first, nn.ReLU(), others[0], nn.ReLU(), others[1])


@method
class VID(Method):
    """Loss = cross-entropy + weight * (sum over stages of `variational_loss` + logit_weight * the same on logits).

    The variance of a channel is softplus of a parameter plus 1e-5, starts at `variance`, and does not depend on the
    image. `head` is the form of the means, which both have no biases: "tian", the default, three 1x1 convolutions with
    ReLUs between and weight 1 (Tian et al. 2020); "authors", the released program's two with nothing between, where the
    weight is 0.1 on CIFAR-10 and KD at T = 2 stands beside it: `kd_weight` = 1 adds kd_weight * T^2 * KL.

    Choices: `logit_weight` = 0, as neither program has a term on logits; with one the mean is linear in the student's
    pooled output, as in the paper's VID-LP. Where sizes differ the larger map is average-pooled, as in Tian et al.'s;
    the paper's CIFAR networks also use transposed convolutions.
    """

    collection = "survey"
    paper = Paper(
        "Variational Information Distillation for Knowledge Transfer",
        "Ahn, Hu, Damianou, Lawrence, Dai",
        2019,
        "https://arxiv.org/abs/1904.05835",
    )
    equation = (
        r"\mathcal{L} = \mathcal{L}_{\text{task}}(z_s, y) + \lambda \Big( \sum_{l} V(f_t^l, \mu^l(f_s^l)) + "
        r"\lambda_z V(z_t, \mu^z(h_s)) \Big) + \kappa\,T^2\,\text{KL}(\sigma(z_t/T) \parallel \sigma(z_s/T))"
        "\n"
        r"V(t, \mu) = \frac{1}{2} \, \text{mean} \Big( \frac{(t - \mu)^2}{\sigma_c^2} + \log \sigma_c^2 \Big)"
        "\n"
        r"\lambda = \text{weight}, \quad \lambda_z = \text{logit\_weight}, \quad \kappa = \text{kd\_weight}, "
        r"\quad h_s = \text{pooled features}"
    )
    knowledge = "feature"
    needs = frozenset({"features"})
    weight: float = loss_weight(1.0, "vid", "vid_logits")
    logit_weight: float = 0.0
    kd_weight: float = 0.0
    temperature: float = 2.0
    head: str = "tian"
    variance: float = 5.0
    depths: tuple[float, ...] = (0.33, 0.67, 1.0)
    teacher_depths: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(weight=self.weight, logit_weight=self.logit_weight, kd_weight=self.kd_weight)
        positive(variance=self.variance, temperature=self.temperature)
        one_of(HEADS, head=self.head)
        check_depths(self.depths, self.teacher_depths)
        if self.variance <= SMALLEST_VARIANCE:
            raise ValueError(f"variance must be above {SMALLEST_VARIANCE}, but got variance={self.variance}.")

    def needed(self) -> frozenset[str]:
        """Feature maps, and what the classifier sees if logits have a term."""
        return self.needs | {"pooled"} if self.logit_weight else self.needs

    def loss_weights(self) -> dict[str, tuple[str, ...]]:
        """The weight of all terms that are likelihoods."""
        return {"weight": ("vid", "vid_logits") if self.logit_weight else ("vid",)}

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """A head for each of `depths`, and one for the logits if they have a term."""
        pairs = matched(features_of(student), features_of(teachers[0]), self.depths, self.teacher_depths)
        heads: dict[str, nn.Module] = {
            f"head_{index}": Variational(convolutions(*channels, self.head), channels[1], self.variance)
            for index, channels in enumerate((mine.shape[1], theirs.shape[1]) for mine, theirs in pairs)
        }
        if self.logit_weight:
            classes, width = teachers[0].logits.shape[1], require("pooled", student.pooled).shape[1]
            heads["logits"] = Variational(nn.Linear(width, classes), classes, self.variance)
        return nn.ModuleDict(heads)

    def loss(self, step: Step) -> Losses:
        """Labels, the heads' likelihood of the teacher's maps (B, C, H, W) and logits (B, K), and soft targets."""
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
        if self.kd_weight:
            losses["kd"] = self.kd_weight * kd_loss(step.student.logits, step.teacher.logits, self.temperature)
        return losses
