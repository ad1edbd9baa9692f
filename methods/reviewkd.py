"""Gives each of the teacher's maps what the student's map there and all deeper ones tell: knowledge review."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.methods.base import Losses, Method, Paper, Signals, Step, features_of, loss_weight, method
from kdbench.methods.checks import fraction, non_negative, positive, require, same_shape
from kdbench.methods.functional import even_pairs, warmed_up

WARMUP = 20 / 240
"""The program's 20 of 240 epochs."""
WIDEST = 512
"""Channels at most in which maps are joined."""
LEVELS = (4, 2, 1)
"""Sizes to which maps are pooled, each of half the weight of the one before."""


def context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two maps and of both pooled, over the sum of the weights 1, 1/2, 1/4, ...

    Only levels smaller than the map's height count: of 4 x 4 maps 2 (1/2) and 1 (1/4).

    Args:
        student: (B, C, H, W)
        teacher: (B, C, H, W)

    Raises:
        ValueError: if the shapes differ.
    """
    same_shape(student, teacher)
    total, weight, weights = F.mse_loss(student, teacher), 1.0, 1.0
    for level in (level for level in LEVELS if level < student.shape[2]):
        weight /= 2
        weights += weight
        mine, theirs = (F.adaptive_avg_pool2d(each, level) for each in (student, teacher))
        total = total + weight * F.mse_loss(mine, theirs)
    return total / weights


def hierarchical_context_loss(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
    """Sum of `context_loss` over maps.

    Args:
        students: (B, C_i, H_i, W_i) each, shallow to deep.
        teachers: likewise, of equal shapes.

    Raises:
        ValueError: if there are other numbers of maps, or shapes differ.
    """
    pairs = zip(students, teachers, strict=True)
    return torch.stack([context_loss(mine, theirs) for mine, theirs in pairs]).sum()


class Fusion(nn.Module):
    """A map and what deeper ones told, each times a gate; and from their sum the teacher's map there."""

    def __init__(self, inputs: int, width: int, outputs: int, deepest: bool) -> None:
        """Starts as the program's.

        Args:
            inputs: channels of the student's map.
            width: channels in which maps are joined.
            outputs: channels of the teacher's map.
            deepest: whether there is nothing deeper, and no gate.
        """
        super().__init__()
        reduce, expand = nn.Conv2d(inputs, width, 1, bias=False), nn.Conv2d(width, outputs, 3, padding=1, bias=False)
        for convolution in (reduce, expand):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.reduce = nn.Sequential(reduce, nn.BatchNorm2d(width))
        self.expand = nn.Sequential(expand, nn.BatchNorm2d(outputs))
        self.gates = None if deepest else nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid())

    def forward(self, feature: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The teacher's map (B, outputs, *size) as it is told, and the sum (B, width, *size) for shallower maps.

        Args:
            feature: (B, inputs, H, W)
            deeper: (B, width, H', W'), the sum of the next deeper map.
            size: of the teacher's map.
        """
        joined = self.reduce(feature)
        if self.gates is not None and deeper is not None:
            deeper = F.interpolate(deeper, joined.shape[-2:], mode="nearest")
            gates = self.gates(torch.cat([joined, deeper], dim=1))
            joined = joined * gates[:, :1] + deeper * gates[:, 1:]
        if tuple(joined.shape[-2:]) != size:
            joined = F.interpolate(joined, size, mode="nearest")
        return self.expand(joined), joined


@method
class ReviewKD(Method):
    """Loss = cross-entropy + weight * r * `hierarchical_context_loss`; r rises from 0 to 1 over `warmup`.

    From deep to shallow a student's map goes through a 1x1 convolution and batch norm to at most 512 channels, is
    joined by two gates with the sum of the next deeper map, resized to the teacher's map and taken to its channels by a
    3x3 convolution and batch norm. Maps are those of all stages but a bare stem, then the pooled features. The
    teacher's are taken before the last activation of their stage, the student's after; `student_preactivations` takes
    both before, as the program does on ImageNet. weight = 5 is the program's for wide ResNets, ResNet-32x4 to 8x4 and
    to ShuffleNetV1 on CIFAR-100, where it is 8 to ShuffleNetV2, 0.6 for ResNet-56 to 20 and 1 for ResNet-110 to 32; on
    ImageNet 1, and 8 for MobileNet. One suite's default of 1 is not it.

    Departures: the program's teacher is never set to evaluation mode, so that its batch norm goes on moving; here it is
    frozen. The warm-up is 20 of 240 epochs by epochs from 0; here it is that share of training. Where networks have
    other numbers of stages, as many as the fewer are matched by relative depth. Stages without an activation at their
    end give their map as it is. Published numbers are of a batch of 128, learning rate 0.1 and Nesterov's momentum.
    """

    collection = "modern"
    paper = Paper(
        "Distilling Knowledge via Knowledge Review", "Chen, Liu, Zhao, Jia", 2021, "https://arxiv.org/abs/2104.09044"
    )
    equation: ClassVar[str] = (
        r"L = L_{task} + w \min(\tau / r, 1) \sum_i \frac{\sum_l 2^{-l} \, \overline{(P_l(e_i(h_i)) - P_l(g_i))^2}}"
        r"{\sum_l 2^{-l}}, \quad h_i = \alpha_i \, c_i(f_i) + \beta_i \, U(h_{i+1}), "
        r"\quad P_0 = 1, \; P_l \text{ pools to } 4, 2, 1"
    )
    knowledge = "feature"
    needs = frozenset({"features", "preactivations", "pooled"})
    weight: float = loss_weight(5.0, "review")
    warmup: float = WARMUP
    width: int = WIDEST
    student_preactivations: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(weight=self.weight)
        positive(width=self.width)
        fraction(warmup=self.warmup)

    def calibrated_at(self) -> float:
        """After the warm-up."""
        return self.warmup

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """A fusion for each pair of maps, shallow to deep."""
        pairs = self._maps(student, teachers[0])
        width = min(self.width, pairs[-1][0].shape[1])
        return nn.ModuleDict(
            {
                f"fusion_{place}": Fusion(mine.shape[1], width, theirs.shape[1], place == len(pairs) - 1)
                for place, (mine, theirs) in enumerate(pairs)
            }
        )

    def loss(self, step: Step) -> Losses:
        """Labels, and the teacher's maps (B, C, H, W) as the student's tell them from deep to shallow."""
        pairs, told, deeper = self._maps(step.student, step.teacher), list[Tensor](), None
        for place, (mine, theirs) in reversed(list(enumerate(pairs))):
            output, deeper = step.auxiliary[f"fusion_{place}"](mine, deeper, tuple(theirs.shape[-2:]))
            told.insert(0, output)
        apart = hierarchical_context_loss(told, [theirs for _, theirs in pairs])
        return {**step.task_loss(), "review": self.weight * warmed_up(step.progress, self.warmup) * apart}

    def _maps(self, student: Signals, teacher: Signals) -> list[tuple[Tensor, Tensor]]:
        """Pairs of maps, shallow to deep, then of pooled features (B, D, 1, 1)."""
        mine = features_of(student)
        if self.student_preactivations:
            mine = require("preactivations", student.preactivations)
        theirs = require("preactivations", teacher.preactivations)
        pooled = (require("pooled", each.pooled)[:, :, None, None] for each in (student, teacher))
        return [*even_pairs(mine[student.stem :], theirs[teacher.stem :]), tuple(pooled)]  # type: ignore[list-item]
