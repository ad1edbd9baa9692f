"""Makes the correlations between channels of a feature map agree with the teacher's: inter-channel correlation."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.methods.base import Losses, Method, Paper, Signals, Step, features_of, loss_weight, method
from kdbench.methods.checks import non_negative, positive, same_batch, same_shape
from kdbench.methods.functional import at_depth, kd_loss


def channel_correlations(feature: Tensor) -> Tensor:
    """Inner products (B, C, C) of channels over positions, each row of L2 norm 1.

    Args:
        feature: (B, C, H, W)
    """
    rows = feature.flatten(2)
    return F.normalize(rows @ rows.transpose(1, 2), dim=2)


def channel_correlation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of `channel_correlations`, summed over pairs of channels, over C and over the batch size.

    Args:
        student: (B, C, H, W), already of the teacher's channels.
        teacher: (B, C, H', W'); positions may differ, as they are summed over.

    Raises:
        ValueError: if they are no feature maps of one batch size and as many channels.
    """
    same_batch(student, teacher, dims=4)
    mine, theirs = channel_correlations(student), channel_correlations(teacher)
    same_shape(mine, theirs)
    return (mine - theirs).square().sum() / (student.shape[0] * student.shape[1])


@method
class ICKD(Method):
    """Loss = cross-entropy + kd_weight * T^2 * KL + weight * `channel_correlation_loss` of the last map (ICKD-C).

    weight = 2.5 beside KD of weight 1 at T = 4 is the program's for CIFAR-100, from which its table comes. The
    student's map goes through a 1x1 convolution without bias and batch norm, whether widths differ or not. Its form for
    ImageNet divides by the batch size once more, with a weight of 500.

    Departure: the program also optimises a second embedding that it never uses; there is none here. A re-run of it
    gave 68.34 where the paper prints 72.19. `depth` names the map by relative depth.
    """

    collection = "modern"
    paper = Paper(
        "Exploring Inter-Channel Correlation for Diversity-Preserved Knowledge Distillation",
        "Liu, Huang, Lin, Xie, Wang, Chang, Liang",
        2021,
        "https://arxiv.org/abs/2202.03680",
    )
    equation: ClassVar[str] = (
        r"L = L_{task} + w_{kd} T^2 \, \mathrm{KL}(p_t \| p_s) + \frac{w}{C B} \sum_i \|G^s_i - G^t_i\|_F^2, "
        r"\quad G = \text{rows of } F F^\top \text{ over } \|\cdot\|_2, \; F_s = \mathrm{BN}(W f_s), \; F_t = f_t"
    )
    knowledge = "relation"
    needs = frozenset({"features"})
    weight: float = loss_weight(2.5, "ickd")
    kd_weight: float = 1.0
    temperature: float = 4.0
    depth: float = 1.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(weight=self.weight, kd_weight=self.kd_weight)
        positive(temperature=self.temperature)
        at_depth(2, self.depth)

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """The embedding of the student's map in the teacher's channels."""
        mine, theirs = self._map(student).shape[1], self._map(teachers[0]).shape[1]
        layers = nn.Conv2d(mine, theirs, kernel_size=1, bias=False), nn.BatchNorm2d(theirs)
        return nn.ModuleDict({"embedding": nn.Sequential(*layers)})

    def loss(self, step: Step) -> Losses:
        """Labels, correlations of channels of the maps (B, C, H, W), and soft targets (B, K) if they have a weight."""
        embedded = step.auxiliary["embedding"](self._map(step.student))
        losses = {
            **step.task_loss(),
            "ickd": self.weight * channel_correlation_loss(embedded, self._map(step.teacher)),
        }
        if self.kd_weight:
            losses["kd"] = self.kd_weight * kd_loss(step.student.logits, step.teacher.logits, self.temperature)
        return losses

    def _map(self, signals: Signals) -> Tensor:
        features = features_of(signals)
        return features[at_depth(len(features), self.depth)]
