"""Distills logits whose mean and scale were taken away, for each image: logit standardisation."""

from __future__ import annotations

from typing import ClassVar

import torch
from optuna.distributions import FloatDistribution
from torch import Tensor

from kdbench.methods.base import Losses, Method, Paper, Step, loss_weight, method, tuned
from kdbench.methods.checks import fraction, non_negative, one_of, positive, same_batch, same_shape
from kdbench.methods.dkd import WARMUP, dkd_loss
from kdbench.methods.functional import kd_loss, warmed_up

SMALLEST = 1e-7
"""Added to the deviation."""


def standardised(logits: Tensor) -> Tensor:
    """(z - mean) / (1e-7 + deviation) over the classes of each row, the deviation with K - 1.

    Args:
        logits: (B, K), K > 1.
    """
    variance = logits.var(dim=1, keepdim=True)
    spread = variance > 0  # the root of 0 has no gradient
    deviation = torch.where(spread, variance, 1.0).sqrt() * spread
    return (logits - logits.mean(dim=1, keepdim=True)) / (SMALLEST + deviation)


def standardised_kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    r"""$T^2 \, KL(softmax(Z(z_t) / T) \| softmax(Z(z_s) / T))$ with Z = `standardised`, mean over the batch.

    Args:
        student_logits: (B, K)
        teacher_logits: (B, K)
        temperature: T, positive.

    Raises:
        ValueError: if the shapes differ, or are not (B, K).
    """
    same_shape(student_logits, teacher_logits)
    same_batch(student_logits, teacher_logits, dims=2)
    return kd_loss(standardised(student_logits), standardised(teacher_logits), temperature)


@method
class LogitStandardisation(Method):
    """Loss = hard_weight * cross-entropy + weight * `standardised_kd_loss`, or another base loss of such logits.

    A student need not have the teacher's range of logits, only their order and relative distances; the price is that
    the labels alone set how confident it is, so calibration is worth a look. hard_weight = 0.1, T = 2 and weight = 9
    are the program's; its released logs have T from 2 to 4 and weights of 1 to 18, and the authors advise 2 to 3 and 3
    to 15. On ImageNet hard_weight is 0.5.

    `base` = "dkd" standardises the logits of `dkd_loss`, as the paper does: the loss is then hard_weight *
    cross-entropy + r * weight * dkd_loss with `alpha` = 1 and `beta` = 8 of that method, both of which its program
    multiplies by 9, as `weight` does; and r rises from 0 to 1 over the share `warmup`. Set hard_weight = 1 with it, as
    there. `alpha`, `beta` and `warmup` are not read otherwise.

    Departures: none in the loss. Logits that are all alike have a deviation of 0 and in the program a gradient that is
    no number; here it is finite. One release of the program set beta from the alpha that it had already multiplied,
    and the temperature of another method, where `base` is dkd; that is not copied.
    """

    collection = "modern"
    paper = Paper(
        "Logit Standardization in Knowledge Distillation",
        "Sun, Ren, Li, Wang, Cao",
        2024,
        "https://arxiv.org/abs/2403.01427",
    )
    equation: ClassVar[str] = (
        r"L = h L_{task} + w \, T^2 \, \mathrm{KL}\left(\mathrm{softmax}(Z(z_t) / T) \,\|\, "
        r"\mathrm{softmax}(Z(z_s) / T)\right), \quad Z(z) = \frac{z - \bar z}{10^{-7} + \mathrm{std}(z)}"
    )
    temperature: float = tuned(2.0, FloatDistribution(1.0, 6.0, log=True))
    weight: float = loss_weight(9.0, "kd")
    hard_weight: float = 0.1
    base: str = "kd"
    alpha: float = 1.0
    beta: float = 8.0
    warmup: float = WARMUP

    def __post_init__(self) -> None:
        """Checks the ranges."""
        positive(temperature=self.temperature)
        non_negative(weight=self.weight, hard_weight=self.hard_weight, alpha=self.alpha, beta=self.beta)
        one_of(("kd", "dkd"), base=self.base)
        fraction(warmup=self.warmup)

    def needed(self) -> frozenset[str]:
        """The label's class, where it is told from the others."""
        return frozenset({"class_targets"}) if self.base == "dkd" else self.needs

    def calibrated_at(self) -> float:
        """After the warm-up, if there is one."""
        return self.warmup if self.base == "dkd" else 0.0

    def loss(self, step: Step) -> Losses:
        """Labels, and standardised logits (B, K)."""
        student, teacher = step.student.logits, step.teacher.logits
        if self.base == "kd":
            soft = standardised_kd_loss(student, teacher, self.temperature)
        else:
            assert isinstance(step.targets, Tensor), "class_targets are needed"
            pair = standardised(student), standardised(teacher)
            soft = dkd_loss(*pair, step.targets, self.temperature, self.alpha, self.beta)
            soft = warmed_up(step.progress, self.warmup) * soft
        return {**step.task_loss(self.hard_weight), "kd": self.weight * soft}
