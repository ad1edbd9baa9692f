"""Teaches a second head, of a distillation token, by the teacher, and the first one by the labels: DeiT."""

from __future__ import annotations

from typing import ClassVar

import torch
from optuna.distributions import FloatDistribution
from torch import Tensor

from kdbench.methods.base import Losses, Method, Paper, Signals, Step, Unsupported, method, tuned
from kdbench.methods.checks import fraction, one_of, positive, require
from kdbench.methods.functional import kd_loss

FORMS = ("hard", "soft")


@method
class DeiT(Method):
    """Loss = (1 - alpha) * cross-entropy of the class head + alpha * the distillation head's loss.

    The student is a transformer of timm with both heads, as deit_tiny_distilled_patch16_224: its prediction is the mean
    of both. `form` = "hard", the default as in the paper, is cross-entropy of the distillation head with the teacher's
    decision, alpha = 0.5. "soft" is T^2 KL from the teacher's softmax; the program divides it by the number of classes
    besides, on purpose, and so here; its paper has alpha = 0.1 and T = 3, where the code's defaults are 0.5 and 1.

    A student with one head is refused. Published numbers come with the paper's augmentation and 300 epochs, which are
    the recipe's part.
    """

    collection = "modern"
    paper = Paper(
        "Training Data-Efficient Image Transformers & Distillation through Attention",
        "Touvron, Cord, Douze, Massa, Sablayrolles, Jegou",
        2021,
        "https://arxiv.org/abs/2012.12877",
    )
    equation: ClassVar[str] = (
        r"L = (1 - \alpha) L_{task}(z_c, y) + \alpha \, L_{task}(z_d, \mathrm{argmax} \, z_t) \text{ (hard), or } "
        r"+ \alpha \frac{T^2}{K} \mathrm{KL}(p_t \| p_d) \text{ (soft)}, \quad z = (z_c + z_d) / 2"
    )
    needs = frozenset({"heads"})
    alpha: float = tuned(0.5, FloatDistribution(0.05, 0.95))
    form: str = "hard"
    temperature: float = 3.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        fraction(alpha=self.alpha)
        one_of(FORMS, form=self.form)
        positive(temperature=self.temperature)

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> torch.nn.ModuleDict:
        """None; checks that the student has both heads."""
        _both(student)
        return torch.nn.ModuleDict()

    def loss(self, step: Step) -> Losses:
        """Labels for the class head (B, K), the teacher for the distillation head (B, K)."""
        by_class, distilled = _both(step.student)
        losses = step.task_loss(1 - self.alpha, logits=by_class)
        if self.form == "hard":
            decided = step.task_loss(self.alpha, logits=distilled, targets=step.teacher.logits.argmax(dim=1))
            taught = torch.stack(list(decided.values())).sum()
        else:
            soft = kd_loss(distilled, step.teacher.logits, self.temperature)
            taught = self.alpha * soft / distilled.shape[1]
        return {**losses, "distilled": taught}


def _both(student: Signals) -> tuple[Tensor, Tensor]:
    heads: tuple[Tensor, ...] = require("heads", student.heads)
    if len(heads) != 2:
        raise Unsupported(
            "the student has one head, and this method teaches two: take a distilled transformer, as "
            "deit_tiny_distilled_patch16_224."
        )
    return heads[0], heads[1]
