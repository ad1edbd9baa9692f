"""Distills the teacher's probabilities raised to a power, to a student without a temperature: transformed matching."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor

from kdbench.methods.base import Losses, Method, Paper, Step, loss_weight, method, tuned
from kdbench.methods.checks import non_negative, positive, same_batch, same_shape


def _apart(student_logits: Tensor, teacher_logits: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """Divergences (B,) from the teacher's transformed probabilities, and the sums U (B,) of the powers."""
    same_shape(student_logits, teacher_logits)
    same_batch(student_logits, teacher_logits, dims=2)
    powers = power * F.log_softmax(teacher_logits, dim=1)
    sums, targets = powers.logsumexp(dim=1), F.log_softmax(powers, dim=1)
    student = F.log_softmax(student_logits, dim=1)
    return F.kl_div(student, targets, reduction="none", log_target=True).sum(dim=1), sums.exp()


def ttm_loss(student_logits: Tensor, teacher_logits: Tensor, power: float) -> Tensor:
    r"""$KL(h / U \| p_s)$, mean over the batch, where $h = p_t^{power}$ class by class and U is its sum.

    Args:
        student_logits: (B, K)
        teacher_logits: (B, K)
        power: 1 / T of the teacher, positive; the student is at temperature 1.

    Raises:
        ValueError: if the shapes differ, or are not (B, K).
    """
    return _apart(student_logits, teacher_logits, power)[0].mean()


def weighted_ttm_loss(student_logits: Tensor, teacher_logits: Tensor, power: float) -> Tensor:
    """`ttm_loss` with each image weighed by its U, which is the larger the smoother the teacher's probabilities are.

    Arguments and errors are those of `ttm_loss`.
    """
    divergences, sums = _apart(student_logits, teacher_logits, power)
    return (sums * divergences).mean()


@method
class TTM(Method):
    """Loss = cross-entropy + weight * `ttm_loss`, or `weighted_ttm_loss` if `weighted` (WTTM).

    The teacher's temperature is a power of its probabilities, and the student has none: KD without the student's
    temperature is KD plus a term that keeps the student from being too sure. Nothing is multiplied by T^2. power = 0.1
    and weight = 45 are the program's from VGG-13 to VGG-8 on CIFAR-100; for WTTM with CRD power = 0.2 and weight = 4.

    Choices: none. Powers are taken of logarithms, which do not underflow.
    """

    collection = "modern"
    paper = Paper(
        "Knowledge Distillation Based on Transformed Teacher Matching",
        "Zheng, Yang",
        2024,
        "https://arxiv.org/abs/2402.11148",
    )
    equation: ClassVar[str] = (
        r"L = L_{task} + w \, \frac{1}{B} \sum_i U_i^o \, \mathrm{KL}(h_i / U_i \,\|\, \mathrm{softmax}(z^s_i)), "
        r"\quad h_{ik} = \mathrm{softmax}(z^t_i)_k^c, \; U_i = \sum_k h_{ik}, \; o = 0 \text{ or, weighted, } 1"
    )
    power: float = tuned(0.1, FloatDistribution(0.05, 1.0, log=True))
    weight: float = loss_weight(45.0, "ttm")
    weighted: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges."""
        positive(power=self.power)
        non_negative(weight=self.weight)

    def loss(self, step: Step) -> Losses:
        """Labels, and the transformed teacher's logits (B, K)."""
        matching = weighted_ttm_loss if self.weighted else ttm_loss
        soft = matching(step.student.logits, step.teacher.logits, self.power)
        return {**step.task_loss(), "ttm": self.weight * soft}
