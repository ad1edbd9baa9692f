"""Teaches the probability of the label's class and the relation of all others apart: decoupled distillation."""

from __future__ import annotations

from typing import ClassVar

from optuna.distributions import FloatDistribution
from torch import Tensor

from kdbench.methods.base import Losses, Method, Paper, Step, loss_weight, method, tuned
from kdbench.methods.checks import fraction, non_negative, positive, same_shape
from kdbench.methods.functional import all_but, divergence, one_class_each, only, target_or_not, warmed_up

WARMUP = 20 / 240
"""The program's 20 of 240 epochs."""


def target_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float | Tensor) -> Tensor:
    r"""$T^2 \, KL(b_t \| b_s)$, where b is the probability of the label's class and of all others together, at T.

    Args:
        student_logits: (B, K)
        teacher_logits: (B, K)
        labels: (B,) classes, or (B, K) rows with a single one.
        temperature: T, positive.

    Raises:
        ValueError: if shapes do not fit, or there are less than two classes.
        Unsupported: if the class of a sample is mixed or lacking.
    """
    same_shape(student_logits, teacher_logits)
    labels = one_class_each(labels, student_logits)
    student, teacher = (target_or_not(each / temperature, labels) for each in (student_logits, teacher_logits))
    return divergence(student, teacher) * temperature**2


def others_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float | Tensor) -> Tensor:
    r"""$T^2 \, KL(q_t \| q_s)$, where q is the softmax at T over all classes but the label's; 0 if that is one.

    Arguments and errors are those of `target_loss`.
    """
    same_shape(student_logits, teacher_logits)
    others = all_but(one_class_each(labels, student_logits), student_logits)
    student, teacher = (only(each / temperature, others) for each in (student_logits, teacher_logits))
    return divergence(student, teacher) * temperature**2


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float | Tensor,
    alpha: float,
    beta: float,
) -> Tensor:
    """Alpha * `target_loss` + beta * `others_loss`, each a mean over the batch with the factor T^2.

    Args:
        student_logits: (B, K)
        teacher_logits: (B, K)
        labels: (B,) classes, or (B, K) rows with a single one.
        temperature: T, positive.
        alpha: of the label's class.
        beta: of the other classes.

    Raises:
        ValueError: if shapes do not fit, or there are less than two classes.
        Unsupported: if the class of a sample is mixed or lacking.
    """
    given = student_logits, teacher_logits, labels, temperature
    return alpha * target_loss(*given) + beta * others_loss(*given)


@method
class DKD(Method):
    """Loss = cross-entropy + r * (alpha * `target_loss` + beta * `others_loss`); r rises from 0 to 1 over `warmup`.

    KD is this with beta = 1 - p_y of the teacher, image by image (equation 6): a sure teacher mutes what it says of the
    other classes. Here beta is a constant. alpha = 1, T = 4 and beta = 8 are the program's for CIFAR-100, where beta is
    6 for wide ResNets and from VGG13, and 2 from ResNet-56 and ResNet-110; on ImageNet T = 1 and beta 0.5 or 2.

    Departures: the program's warm-up is 20 of 240 epochs by steps of an epoch, which begins at 1/20; here it is that
    share of training, and rises with every update. The program masks the label's class by -1000 and takes the logarithm
    of a summed softmax, which is infinite once the student's probability rounds to 1; here both logarithms are exact.
    With two classes no other class is left, and `others_loss` is 0. A class that is mixed or lacking is refused.
    """

    collection = "modern"
    paper = Paper(
        "Decoupled Knowledge Distillation",
        "Zhao, Cui, Song, Qiu, Liang",
        2022,
        "https://arxiv.org/abs/2203.08679",
    )
    equation: ClassVar[str] = (
        r"L = L_{task} + \min(\tau / w, 1) \, T^2 \left[\alpha \, \mathrm{KL}(b_t \| b_s) "
        r"+ \beta \, \mathrm{KL}(q_t \| q_s)\right], \quad b = (p_y, 1 - p_y), \; q = p_{k \ne y} / (1 - p_y), "
        r"\; p = \mathrm{softmax}(z / T)"
    )
    needs = frozenset({"class_targets"})
    temperature: float = tuned(4.0, FloatDistribution(1.0, 8.0, log=True))
    alpha: float = 1.0
    beta: float = loss_weight(8.0, "others")
    warmup: float = WARMUP

    def __post_init__(self) -> None:
        """Checks the ranges."""
        positive(temperature=self.temperature)
        non_negative(alpha=self.alpha, beta=self.beta)
        fraction(warmup=self.warmup)

    def calibrated_at(self) -> float:
        """After the warm-up."""
        return self.warmup

    def loss(self, step: Step) -> Losses:
        """Labels, and both parts of the softened logits (B, K)."""
        factor = warmed_up(step.progress, self.warmup)
        assert isinstance(step.targets, Tensor), "class_targets are needed"
        given = step.student.logits, step.teacher.logits, step.targets, self.temperature
        return {
            **step.task_loss(),
            "target": factor * self.alpha * target_loss(*given),
            "others": factor * self.beta * others_loss(*given),
        }
