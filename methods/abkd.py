"""Distills by a divergence between KL and its reverse, tuned by two exponents: alpha-beta divergence."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor

from kdbench.methods.base import Losses, Method, Paper, Step, loss_weight, method, tuned
from kdbench.methods.checks import non_negative, positive, same_batch, same_shape


def abkd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float, alpha: float, beta: float) -> Tensor:
    r"""$\frac{-1}{ab} \sum_k P_k^a Q_k^b - \frac{a}{a+b} P_k^{a+b} - \frac{b}{a+b} Q_k^{a+b}$, mean over the batch.

    P is the teacher's softmax at T and Q the student's; there is no factor T^2.

    Args:
        student_logits: (B, K)
        teacher_logits: (B, K)
        temperature: T, positive.
        alpha: a, positive; 1 with b near 0 is KL(P || Q).
        beta: b, positive; 1 with a near 0 is KL(Q || P).

    Raises:
        ValueError: if the shapes differ, or an exponent is not positive.
    """
    same_shape(student_logits, teacher_logits)
    same_batch(student_logits, teacher_logits, dims=2)
    positive(alpha=alpha, beta=beta)
    total = alpha + beta
    student, teacher = (F.log_softmax(each / temperature, dim=1) for each in (student_logits, teacher_logits))
    both = (alpha * teacher + beta * student).exp()
    each = (alpha * (total * teacher).exp() + beta * (total * student).exp()) / total
    return (each - both).sum(dim=1).mean() / (alpha * beta)


@method
class ABKD(Method):
    """Loss = cross-entropy + weight * `abkd_loss`.

    KL spreads the student's probability over all classes that the teacher names, its reverse puts it on the largest. A
    smaller alpha attends more to classes where the two differ much, a larger beta to those where the student is sure.
    alpha = 0.8, beta = 0.3 and weight = 32 are the program's from ResNet-56 to ResNet-20 on CIFAR-100; other pairs have
    others.

    Choices: T = 4, as in other programs for that data set, as the scripts of its own were not at hand. Both exponents
    must be positive: the limit at beta = 0 is KL, for which there is KD, and the program divides that limit by alpha
    only once, which is right for alpha = 1 alone. Powers are taken of logarithms, which do not underflow.
    """

    collection = "modern"
    paper = Paper(
        "ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge Distillation via "
        "alpha-beta-Divergence",
        "Wang, Yang, Wang, Wang, Xu, Huang",
        2025,
        "https://arxiv.org/abs/2505.04560",
    )
    equation: ClassVar[str] = (
        r"L = L_{task} - \frac{w}{\alpha \beta} \sum_k \left[P_k^\alpha Q_k^\beta "
        r"- \frac{\alpha P_k^{\alpha + \beta} + \beta Q_k^{\alpha + \beta}}{\alpha + \beta}\right], "
        r"\quad P = \mathrm{softmax}(z_t / T), \; Q = \mathrm{softmax}(z_s / T), \text{ mean over the batch}"
    )
    temperature: float = 4.0
    alpha: float = tuned(0.8, FloatDistribution(0.2, 1.2))
    beta: float = tuned(0.3, FloatDistribution(0.2, 1.2))
    weight: float = loss_weight(32.0, "abkd")

    def __post_init__(self) -> None:
        """Checks the ranges."""
        positive(temperature=self.temperature, alpha=self.alpha, beta=self.beta)
        non_negative(weight=self.weight)

    def loss(self, step: Step) -> Losses:
        """Labels, and softened logits (B, K)."""
        apart = abkd_loss(step.student.logits, step.teacher.logits, self.temperature, self.alpha, self.beta)
        return {**step.task_loss(), "abkd": self.weight * apart}
