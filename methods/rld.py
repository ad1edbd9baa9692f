"""Teaches how sure the teacher is, and only classes that it ranks below the label's: refined logit distillation."""

from __future__ import annotations

from typing import ClassVar

from optuna.distributions import FloatDistribution
from torch import Tensor

from kdbench.methods.base import Losses, Method, Paper, Step, loss_weight, method, tuned
from kdbench.methods.checks import fraction, non_negative, positive, same_shape
from kdbench.methods.dkd import WARMUP
from kdbench.methods.functional import divergence, one_class_each, only, target_or_not, warmed_up


def confidence_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """KL at T = 1 of (the teacher's largest probability, the rest) from (the student's of the label, the rest).

    It is a mean over the batch. So the student learns to be as sure of the label's class as the teacher is of its own.

    Args:
        student_logits: (B, K)
        teacher_logits: (B, K)
        labels: (B,) classes, or (B, K) rows with a single one.

    Raises:
        ValueError: if shapes do not fit, or there are less than two classes.
        Unsupported: if the class of a sample is mixed or lacking.
    """
    same_shape(student_logits, teacher_logits)
    labels = one_class_each(labels, student_logits)
    return divergence(
        target_or_not(student_logits, labels), target_or_not(teacher_logits, teacher_logits.argmax(dim=1))
    )


def below_label_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T^2 * KL at T over the classes whose logit is below the label's for the teacher; 0 of an image without any.

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
    below = teacher_logits < teacher_logits.gather(1, labels[:, None])
    student, teacher = (only(each / temperature, below) for each in (student_logits, teacher_logits))
    return divergence(student, teacher) * temperature**2


def rld_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, alpha: float, beta: float
) -> Tensor:
    """Alpha * `confidence_loss` + beta * `below_label_loss`.

    Args:
        student_logits: (B, K)
        teacher_logits: (B, K)
        labels: (B,) classes, or (B, K) rows with a single one.
        temperature: T of the classes below the label's, positive.
        alpha: of the confidence.
        beta: of the classes below the label's.

    Raises:
        ValueError: if shapes do not fit, or there are less than two classes.
        Unsupported: if the class of a sample is mixed or lacking.
    """
    given = student_logits, teacher_logits, labels
    return alpha * confidence_loss(*given) + beta * below_label_loss(*given, temperature)


@method
class RLD(Method):
    """Loss = cross-entropy + r * (alpha * `confidence_loss` + beta * `below_label_loss`); r rises over `warmup`.

    Where the teacher is wrong its largest probability still says how sure to be, of the label's class here, and the
    classes that it ranks above the label's say nothing. alpha = 1, beta = 8, T = 4 and the warm-up are the program's
    for CIFAR-100, as those of decoupled distillation, from whose program it is made.

    Departures are those of that method: a warm-up by share of training, from 0, and exact logarithms. Classes of a
    logit equal to the label's are left out, as the label's own. The program's option to standardise logits is not here.
    A class that is mixed or lacking is refused.
    """

    collection = "modern"
    paper = Paper(
        "Knowledge Distillation with Refined Logits",
        "Sun, Chen, Lyu, Chen, Chen, Wang",
        2024,
        "https://arxiv.org/abs/2408.07703",
    )
    equation: ClassVar[str] = (
        r"L = L_{task} + \min(\tau / w, 1) \left[\alpha \, \mathrm{KL}\left((\max p^t, 1 - \max p^t) \,\|\, "
        r"(p^s_y, 1 - p^s_y)\right) + \beta T^2 \, \mathrm{KL}(q_t \| q_s)\right], "
        r"\quad q = \mathrm{softmax}_{k : z^t_k < z^t_y}(z / T)"
    )
    needs = frozenset({"class_targets"})
    temperature: float = tuned(4.0, FloatDistribution(1.0, 8.0, log=True))
    alpha: float = 1.0
    beta: float = loss_weight(8.0, "below")
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
        """Labels, and both parts of the logits (B, K)."""
        factor = warmed_up(step.progress, self.warmup)
        assert isinstance(step.targets, Tensor), "class_targets are needed"
        given = step.student.logits, step.teacher.logits, step.targets
        return {
            **step.task_loss(),
            "confidence": factor * self.alpha * confidence_loss(*given),
            "below": factor * self.beta * below_label_loss(*given, self.temperature),
        }
