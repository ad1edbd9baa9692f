"""Lets each image decide which of the teacher's stages teaches which of the student's: cross-layer distillation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.methods.base import Losses, Method, Paper, Signals, Step, features_of, loss_weight, method
from kdbench.methods.checks import non_negative, positive, same_shape
from kdbench.methods.functional import kd_loss, pooled_alike

SHARE = 4
"""The program's number of images for each number of a query or key."""


def semckd_loss(
    students: Sequence[Sequence[Tensor]], teachers: Sequence[Sequence[Tensor]], attention: Tensor
) -> Tensor:
    """Each image's mean squared difference of every pair of stages times its attention: summed, over B and over S.

    Args:
        students: (B, C_t, H, W) of each of the student's S stages for each of the teacher's T stages.
        teachers: of equal shapes.
        attention: (B, S, T), which sums to 1 over T.

    Raises:
        ValueError: if shapes differ.
    """
    rows = []
    for mine, theirs in zip(students, teachers, strict=True):
        for first, second in zip(mine, theirs, strict=True):
            same_shape(first, second)
        rows.append([(a - b).square().flatten(1).mean(dim=1) for a, b in zip(mine, theirs, strict=True)])
    apart = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    same_shape(apart, attention)
    return (attention * apart).sum() / (attention.shape[0] * attention.shape[1])


class Similarities(nn.Module):
    """A unit vector for each image, of how alike the others of its batch are to it at a stage."""

    def __init__(self, images: int) -> None:
        """Two linear layers with a ReLU between.

        Args:
            images: of a batch, at most; of larger ones the first count.
        """
        super().__init__()
        self.images, width = images, max(1, images // SHARE)
        self.layers = nn.Sequential(nn.Linear(images, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, feature: Tensor) -> Tensor:
        """(B, images / 4) of a map (B, C, H, W)."""
        rows = feature.flatten(1)
        alike = (rows @ rows.T)[:, : self.images]
        return F.normalize(self.layers(F.pad(alike, (0, self.images - alike.shape[1]))), dim=1)


def projector(inputs: int, outputs: int) -> nn.Module:
    """1x1, 3x3 and 1x1 convolutions through twice the teacher's channels, batch norm and ReLU between.

    Args:
        inputs: channels of the student's map.
        outputs: channels of the teacher's.
    """
    layers: list[nn.Module] = []
    for before, after, kernel in ((inputs, 2 * outputs, 1), (2 * outputs, 2 * outputs, 3)):
        convolution = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(2 * outputs, outputs, 1, bias=False))


@method
class SemCKD(Method):
    """Loss = cross-entropy + kd_weight * T^2 * KL + weight * `semckd_loss` over all pairs of stages but bare stems.

    For each image and each of the student's stages a softmax over the teacher's stages tells how much each teaches: of
    the products of unit vectors that two small networks, one a stage, make of the image's row of the batch's matrix of
    inner products. Maps are projected for each pair, the larger average-pooled, the student's before its projection.
    weight = 400 beside KD of weight 1 at T = 4 is the program's for CIFAR-100.

    Departure: the program's small networks take as many numbers as a batch has images, so it skips a short batch; here
    they take `images` numbers, the program's 64: a shorter row is filled with zeros, a longer one cut.
    """

    collection = "modern"
    paper = Paper(
        "Cross-Layer Distillation with Semantic Calibration",
        "Chen, Mei, Zhang, Wang, Feng, Chen",
        2021,
        "https://arxiv.org/abs/2012.03236",
    )
    equation: ClassVar[str] = (
        r"L = L_{task} + w_{kd} T^2 \, \mathrm{KL}(p_t \| p_s) + \frac{w}{B S} \sum_{i, s, t} \alpha^i_{st} "
        r"\overline{(r_{st}(f_s^i) - g_t^i)^2}, \quad \alpha^i_s = \mathrm{softmax}_t(q_s(G_s)_i \cdot k_t(G_t)_i), "
        r"\; G = F F^\top"
    )
    knowledge = "feature"
    needs = frozenset({"features"})
    weight: float = loss_weight(400.0, "semckd")
    kd_weight: float = 1.0
    temperature: float = 4.0
    images: int = 64

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(weight=self.weight, kd_weight=self.kd_weight)
        positive(temperature=self.temperature, images=self.images)

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """A query for each of the student's stages, a key for each of the teacher's, a projector for each pair."""
        mine, theirs = _maps(student), _maps(teachers[0])
        queries = {f"query_{i}": Similarities(self.images) for i in range(len(mine))}
        keys = {f"key_{j}": Similarities(self.images) for j in range(len(theirs))}
        projectors = {
            f"projector_{i}_{j}": projector(own.shape[1], other.shape[1])
            for i, own in enumerate(mine)
            for j, other in enumerate(theirs)
        }
        return nn.ModuleDict({**queries, **keys, **projectors})

    def loss(self, step: Step) -> Losses:
        """Labels, maps (B, C, H, W) of every pair of stages, and soft targets (B, K) if they have a weight."""
        mine, theirs, modules = _maps(step.student), _maps(step.teacher), step.auxiliary
        queries = torch.stack([modules[f"query_{i}"](each) for i, each in enumerate(mine)], dim=1)
        keys = torch.stack([modules[f"key_{j}"](each) for j, each in enumerate(theirs)], dim=1)
        attention = F.softmax(queries @ keys.transpose(1, 2), dim=2)
        projected, targets = list[list[Tensor]](), list[list[Tensor]]()
        for i, own in enumerate(mine):
            pairs = [pooled_alike(own, other) for other in theirs]
            projected.append([modules[f"projector_{i}_{j}"](first) for j, (first, _) in enumerate(pairs)])
            targets.append([second for _, second in pairs])
        losses = {
            **step.task_loss(),
            "semckd": self.weight * semckd_loss(projected, targets, attention),
        }
        if self.kd_weight:
            losses["kd"] = self.kd_weight * kd_loss(step.student.logits, step.teacher.logits, self.temperature)
        return losses


def _maps(signals: Signals) -> tuple[Tensor, ...]:
    """Those of all stages but a bare stem."""
    return features_of(signals)[signals.stem :]
