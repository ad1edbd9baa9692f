"""Makes the places that channels respond to be distributed as the teacher's are: neuron selectivity transfer."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.methods.base import Losses, Method, Paper, Step, features_of, loss_weight, method
from kdbench.methods.checks import non_negative
from kdbench.methods.functional import check_depths, matched, pooled_alike


def kernel_mean(first: Tensor, second: Tensor) -> Tensor:
    """Mean over images and pairs of channels of the squared inner product over positions.

    Args:
        first: (B, C, N)
        second: (B, C', N)
    """
    return (first @ second.transpose(1, 2)).square().mean()


def nst_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Squared maximum mean discrepancy of channels with the kernel $(a \cdot b)^2$; the larger map is pooled.

    Each channel is divided by its L2 norm over positions. The loss is the mean kernel of the teacher's channels with
    each other, plus that of the student's, minus twice that between them, mean over the batch.

    Args:
        student: (B, C, H, W)
        teacher: (B, C', H', W')

    Raises:
        ValueError: if they are no feature maps of one batch size.
    """
    mine, theirs = (F.normalize(each.flatten(2), dim=2) for each in pooled_alike(student, teacher))
    return kernel_mean(theirs, theirs).detach() + kernel_mean(mine, mine) - 2 * kernel_mean(mine, theirs)


@method
class NST(Method):
    """Loss = cross-entropy + weight * sum over the chosen stages of `nst_loss`.

    weight = 50 and three stages are those of Tian et al. (2020), from which published tables on CIFAR come; the paper's
    kernel there is the polynomial one of degree 2, and so here. It is known to harm where a student's channels are
    raw sums, as MobileNetV2's linear bottlenecks (58.16 in Tian et al.'s table, 64.60 for the student alone).

    Choices: the larger map is average-pooled to the smaller's height and width, the program's to a square of the
    smaller's height; kernels are products of matrices, which need B * C * C' numbers and not those times positions.

    In a composition, as "kd+nst", the name means TextBrewer's match of hidden states, which had it first.
    """

    collection = "modern"
    paper = Paper(
        "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
        "Huang, Wang",
        2017,
        "https://arxiv.org/abs/1707.01219",
    )
    equation: ClassVar[str] = (
        r"L = L_{task} + w \sum_l \left[\overline{k(t, t)} + \overline{k(s, s)} - 2 \, \overline{k(s, t)}\right], "
        r"\quad k(a, b) = (a^\top b)^2 \text{ of channels over } \|\cdot\|_2, \text{ means over pairs and batch}"
    )
    knowledge = "feature"
    needs = frozenset({"features"})
    weight: float = loss_weight(50.0, "nst")
    depths: tuple[float, ...] = (0.33, 0.67, 1.0)
    teacher_depths: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(weight=self.weight)
        check_depths(self.depths, self.teacher_depths)

    def loss(self, step: Step) -> Losses:
        """Labels, and the maps (B, C, H, W) at each of `depths`."""
        pairs = matched(features_of(step.student), features_of(step.teacher), self.depths, self.teacher_depths)
        apart = torch.stack([nst_loss(mine, theirs) for mine, theirs in pairs])
        return {**step.task_loss(), "nst": self.weight * apart.sum()}
