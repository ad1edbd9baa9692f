"""Makes the student's neurons active where the teacher's are, before it learns the task: activation boundaries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

from kdbench.methods.base import Losses, Method, Net, Paper, Signals, Stage, Step, method, tuned
from kdbench.methods.checks import non_negative, positive, require, same_shape
from kdbench.methods.functional import even_pairs, kd_loss, pooled_alike
from kdbench.methods.ofd import connector

SCALE = 3 / 1000
"""The program's, beside the batch size."""


def boundary_loss(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """Sum of (margin + f)^2 where the teacher is not active and f > -margin, and (margin - f)^2 where it is and f < it.

    Args:
        student: f, (B, C, H, W), before the activation.
        teacher: (B, C, H, W), before the activation: active where it is positive.
        margin: positive.

    Raises:
        ValueError: if the shapes differ.
    """
    same_shape(student, teacher)
    wanted = torch.where(teacher > 0, 1.0, -1.0).to(student.dtype)
    return F.relu(margin - wanted * student).square().sum()


@method
class AB(Method):
    """Stage 1: weight * 3 / (1000 B) * sum over stages, halved from the last on, of `boundary_loss`. Stage 2: labels.

    Both networks' maps are taken before the last activation of each stage but a bare stem; the student's go through a
    1x1 convolution and batch norm where widths differ, as in the program. Stage 2 is cross-entropy, with `kd_weight`
    also KD at T = 3, as in the paper's other experiments.

    Departures: Tian et al. give the first stage 30 epochs beside the 240 of all others; here `boundary_epochs`, as many
    in proportion, are part of the budget, so that every method has as much. The program's teacher is in training mode;
    here it is frozen in evaluation mode. The larger of two maps is average-pooled. Where networks have other numbers of
    stages, as many as the fewer are matched by relative depth.
    """

    collection = "modern"
    paper = Paper(
        "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
        "Heo, Lee, Yun, Choi",
        2019,
        "https://arxiv.org/abs/1811.03233",
    )
    equation: ClassVar[str] = (
        r"L_1 = \frac{3 w}{1000 B} \sum_{i=1}^{n} 2^{i-n} \sum \left[g_i \le 0\right] (m + c_i(f_i))_+^2 "
        r"+ \left[g_i > 0\right] (m - c_i(f_i))_+^2"
        "\n"
        r"L_2 = L_{task} + w_{kd} T^2 \, \mathrm{KL}(p_t \| p_s)"
    )
    knowledge = "feature"
    needs = frozenset({"preactivations"})
    weight: float = tuned(1.0, FloatDistribution(0.1, 10.0, log=True))
    margin: float = 1.0
    boundary_epochs: float = 30 / 240
    kd_weight: float = 0.0
    temperature: float = 3.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(kd_weight=self.kd_weight)
        positive(weight=self.weight, margin=self.margin, temperature=self.temperature)
        if not 0 < self.boundary_epochs < 1:
            raise ValueError(
                f"boundary_epochs must lie between 0 and 1, both excluded, but got {self.boundary_epochs}."
            )

    def stages(self, teachers: tuple[Net, ...]) -> Iterable[Stage]:
        """Boundaries, then the task."""
        return (
            Stage("boundaries", self.boundaries, teachers=teachers, epochs=self.boundary_epochs),
            Stage("train", self.loss, teachers=teachers, epochs=1 - self.boundary_epochs),
        )

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """A connector where widths differ."""
        return nn.ModuleDict(
            {
                f"connector_{place}": connector(mine.shape[1], theirs.shape[1])
                for place, (mine, theirs) in enumerate(_pairs(student, teachers[0]))
                if mine.shape[1] != theirs.shape[1]
            }
        )

    def boundaries(self, step: Step) -> Losses:
        """The maps (B, C, H, W) before activations."""
        pairs, terms = _pairs(step.student, step.teacher), []
        for place, (mine, theirs) in enumerate(pairs):
            name = f"connector_{place}"
            mine, theirs = pooled_alike(step.auxiliary[name](mine) if name in step.auxiliary else mine, theirs)
            terms.append(boundary_loss(mine, theirs, self.margin) / 2 ** (len(pairs) - 1 - place))
        return {"boundaries": self.weight * SCALE * torch.stack(terms).sum() / len(step.student.logits)}

    def loss(self, step: Step) -> Losses:
        """Labels, and soft targets (B, K) if they have a weight."""
        losses = step.task_loss()
        if self.kd_weight:
            losses["kd"] = self.kd_weight * kd_loss(step.student.logits, step.teacher.logits, self.temperature)
        return losses


def _pairs(student: Signals, teacher: Signals) -> list[tuple[Tensor, Tensor]]:
    mine, theirs = (require("preactivations", each.preactivations)[each.stem :] for each in (student, teacher))
    return even_pairs(mine, theirs)
