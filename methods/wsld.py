"""Weighs each image's soft targets by how much worse the student is at it than the teacher: weighted soft labels."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor

from kdbench.methods.base import Losses, Method, Paper, Step, loss_weight, method, tuned
from kdbench.methods.checks import non_negative, positive, same_shape
from kdbench.methods.functional import one_class_each

SMALLEST = 1e-7
"""Added to the teacher's cross-entropy."""


def soft_label_weights(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    r"""$1 - \exp(-CE_s / (CE_t + 10^{-7}))$ of each image (B,), at T = 1; no gradient passes through it.

    Args:
        student_logits: (B, K)
        teacher_logits: (B, K)
        labels: (B,) classes.
    """
    both = [F.log_softmax(each.detach(), dim=1) for each in (student_logits, teacher_logits)]
    student, teacher = (-each.gather(1, labels[:, None])[:, 0] for each in both)
    return 1 - (-student / (teacher + SMALLEST)).exp()


def wsld_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, weight: float
) -> Tensor:
    r"""Weight * T^2 * mean of `soft_label_weights` * $H(softmax(z_t / T), softmax(z_s / T))$, a cross-entropy.

    Args:
        student_logits: (B, K)
        teacher_logits: (B, K)
        labels: (B,) classes, or (B, K) rows with a single one.
        temperature: T, positive.
        weight: of all.

    Raises:
        ValueError: if shapes do not fit, or there are less than two classes.
        Unsupported: if the class of a sample is mixed or lacking.
    """
    same_shape(student_logits, teacher_logits)
    weights = soft_label_weights(student_logits, teacher_logits, one_class_each(labels, student_logits))
    targets = F.softmax(teacher_logits / temperature, dim=1)
    soft = -(targets * F.log_softmax(student_logits / temperature, dim=1)).sum(dim=1)
    return weight * temperature**2 * (weights * soft).mean()


@method
class WSLD(Method):
    """Loss = cross-entropy + `wsld_loss`.

    Soft labels lower the student's variance at the price of a bias, which weighs more in images that the student has
    learned: their soft targets fade. T = 4 and weight = 2.25 are the program's for CIFAR-100, T = 2 and 2.5 for
    ImageNet. Users have not reproduced its numbers on CIFAR-100 (72.91 for 74.12 from ResNet-110 to ResNet-32).

    As in the program the soft loss is a cross-entropy, not a divergence, so it is not 0 where student and teacher
    agree; the weights have no gradient. A class that is mixed or lacking is refused.
    """

    collection = "modern"
    paper = Paper(
        "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective",
        "Zhou, Song, Chen, Zhou, Wang, Yuan, Zhang",
        2021,
        "https://arxiv.org/abs/2102.00650",
    )
    equation: ClassVar[str] = (
        r"L = L_{task} + \frac{w T^2}{B} \sum_i \left(1 - e^{-CE(z^s_i, y_i) / (CE(z^t_i, y_i) + 10^{-7})}\right) "
        r"H\left(\mathrm{softmax}(z^t_i / T), \mathrm{softmax}(z^s_i / T)\right), \quad \text{the factor detached}"
    )
    needs = frozenset({"class_targets"})
    temperature: float = tuned(4.0, FloatDistribution(1.0, 8.0, log=True))
    weight: float = loss_weight(2.25, "wsld")

    def __post_init__(self) -> None:
        """Checks the ranges."""
        positive(temperature=self.temperature)
        non_negative(weight=self.weight)

    def loss(self, step: Step) -> Losses:
        """Labels, and weighted soft targets (B, K)."""
        assert isinstance(step.targets, Tensor), "class_targets are needed"
        student, teacher = step.student.logits, step.teacher.logits
        soft = wsld_loss(student, teacher, step.targets, self.temperature, self.weight)
        return {**step.task_loss(), "wsld": soft}
