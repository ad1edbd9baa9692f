"""Projects the student's features orthogonally onto the teacher's, whose every vector is whitened: VkD."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from kdbench.methods.base import Losses, Method, Paper, Signals, Step, features_of, loss_weight, method
from kdbench.methods.checks import non_negative, require, same_shape
from kdbench.methods.functional import kd_loss


def vkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean Huber loss against the teacher's vectors, each of mean 0 and variance 1 (layer norm without weights).

    Args:
        student: (B, D), projected.
        teacher: (B, D)

    Raises:
        ValueError: if the shapes differ.
    """
    same_shape(student, teacher)
    return F.smooth_l1_loss(student, F.layer_norm(teacher, teacher.shape[1:]))


@method
class VKD(Method):
    """Loss = cross-entropy + weight * `vkd_loss` + kd_weight * KL at T = 1.

    The student's vector is the mean over positions of its last stage's map, the patch tokens of a transformer; a linear
    layer without bias, kept orthogonal by torch's parametrisation, takes it to the teacher's width. The teacher's is
    likewise the mean of its last map. KL is on the distillation head of a student that has two, and on its logits else.

    Departure: the program takes a transformer's tokens after its final norm; maps here are before it.
    """

    collection = "modern"
    paper = Paper(
        "VkD: Improving Knowledge Distillation using Orthogonal Projections",
        "Miles, Elezi, Deng",
        2024,
        "https://arxiv.org/abs/2403.06213",
    )
    equation: ClassVar[str] = (
        r"L = L_{task} + w \, \overline{h(P u - \mathrm{LN}(v))} + w_{kd} \, \mathrm{KL}(p_t \| p_d), "
        r"\quad P P^\top = I, \; h \text{ Huber's loss}, \; u, v \text{ means of the last maps}"
    )
    knowledge = "feature"
    needs = frozenset({"features", "heads"})
    weight: float = loss_weight(1.0, "vkd")
    kd_weight: float = loss_weight(1.0, "kd")

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(weight=self.weight, kd_weight=self.kd_weight)

    def loss_weights(self) -> dict[str, tuple[str, ...]]:
        """Those that are not 0."""
        return {name: terms for name, terms in super().loss_weights().items() if getattr(self, name)}

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """The projection, of orthogonal rows or columns."""
        mine, theirs = _vector(student).shape[1], _vector(teachers[0]).shape[1]
        return nn.ModuleDict({"projection": orthogonal(nn.Linear(mine, theirs, bias=False))})

    def loss(self, step: Step) -> Losses:
        """Labels, means (B, D) of the last maps, and the teacher's logits (B, K)."""
        projected = step.auxiliary["projection"](_vector(step.student))
        losses = {**step.task_loss(), "vkd": self.weight * vkd_loss(projected, _vector(step.teacher))}
        if self.kd_weight:
            taught = require("heads", step.student.heads)[-1]
            losses["kd"] = self.kd_weight * kd_loss(taught, step.teacher.logits, 1.0)
        return losses


def _vector(signals: Signals) -> Tensor:
    return torch.mean(features_of(signals)[-1], dim=(2, 3))
