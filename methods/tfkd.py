"""Distills without a stronger teacher: from a virtual one that is always right, or from the student itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor

from kdbench.methods.base import STUDENT, Losses, Method, Net, Paper, Stage, Step, method, tuned
from kdbench.methods.checks import fraction, one_of, positive
from kdbench.methods.functional import divergence, kd_loss, labelled_cross_entropy, one_class_each

FIRST = Net("student", copy="first")


def virtual_teacher(logits: Tensor, labels: Tensor, correct: float) -> Tensor:
    """Probabilities (B, K) of a teacher that has `correct` on the label's class and the rest spread alike.

    Args:
        logits: (B, K), for their shape alone.
        labels: (B,) classes, or (B, K) rows with a single one.
        correct: between 0 and 1, both excluded.

    Raises:
        ValueError: if there is not one label a row, or less than two classes.
        Unsupported: if the class of a sample is mixed or lacking.
    """
    labels = one_class_each(labels, logits)[:, None]
    rest = logits.detach().new_full(logits.shape, (1 - correct) / (logits.shape[1] - 1))
    return rest.scatter(1, labels, correct)


def program_divergence(student_logits: Tensor, labels: Tensor, temperature: float, correct: float) -> Tensor:
    r"""$KL(softmax(p_v / T) \| softmax(z_s))$ of the virtual teacher's p_v, mean over all B * K entries.

    The softmax is of probabilities, not of logits, so that its targets are nearly uniform; the student has no T.

    Args:
        student_logits: (B, K)
        labels: (B,) classes, or (B, K) rows with a single one.
        temperature: T of the virtual teacher, positive.
        correct: its probability of the label's class.
    """
    targets = F.log_softmax(virtual_teacher(student_logits, labels, correct) / temperature, dim=1)
    return divergence(F.log_softmax(student_logits, dim=1), targets) / student_logits.shape[1]


def softened_divergence(student_logits: Tensor, labels: Tensor, temperature: float, correct: float) -> Tensor:
    r"""$KL(softmax(\log p_v / T) \| softmax(z_s / T))$, mean over the batch: the paper's equation, without T^2.

    Arguments are those of `program_divergence`.
    """
    teacher_logits = virtual_teacher(student_logits, labels, correct).log()
    return kd_loss(student_logits, teacher_logits, temperature) / temperature**2


def virtual_teacher_loss(
    student_logits: Tensor, labels: Tensor, alpha: float, temperature: float, multiplier: float, correct: float
) -> Tensor:
    """The whole loss as the program has it: (1 - alpha) * cross-entropy + alpha * multiplier * `program_divergence`.

    Args:
        student_logits: (B, K)
        labels: (B,) classes, or (B, K) rows with a single one.
        alpha: between 0 and 1.
        temperature: T of the virtual teacher, positive.
        multiplier: makes up for the mean over classes; K would undo it.
        correct: the virtual teacher's probability of the label's class.

    Raises:
        ValueError: if there is not one label a row, or less than two classes.
        Unsupported: if the class of a sample is mixed or lacking.
    """
    hard = labelled_cross_entropy(student_logits, one_class_each(labels, student_logits))
    soft = program_divergence(student_logits, labels, temperature, correct)
    return (1 - alpha) * hard + alpha * multiplier * soft


@method
class TeacherFree(Method):
    """Loss = (1 - alpha) * cross-entropy + alpha * multiplier * `program_divergence`, of a virtual teacher (Tf-KD_reg).

    The virtual teacher has `correct` = 0.99 on the label's class. alpha = 0.1, T = 20 and multiplier = 100 are the
    program's for ResNet-18 on CIFAR-100; it has alpha from 0.1 to 0.95, T from 10 to 40 and multipliers from 1 to 100
    for others. Its divergence is what the tables were made by, and is odd: it takes the softmax of the virtual
    teacher's probabilities as if they were logits, so that its targets are nearly uniform, gives the student no
    temperature, and averages over classes too, which the multiplier patches. `divergence` = "paper" is
    `softened_divergence`, without a multiplier.

    `form` = "self" (Tf-KD_self) trains the student alone first and then distills it into a fresh copy: (1 - alpha) *
    cross-entropy + alpha * T^2 * KL, mean over the batch. Each of the two stages has the whole schedule. The program
    has alpha = 0.95 and T = 6 for ResNet-18, and averages over classes with a multiplier of 50 there as well, which is
    not copied: its 50 / K is a weight of 0.5 on CIFAR-100.

    No form reads the pair's teacher. The paper's Re-KD and De-KD are KD from a small and from a poor teacher: pairs of
    this suite, not methods. Mixed or missing labels are refused by the form "reg".
    """

    collection = "modern"
    paper = Paper(
        "Revisiting Knowledge Distillation via Label Smoothing Regularization",
        "Yuan, Tay, Li, Wang, Feng",
        2020,
        "https://arxiv.org/abs/1909.11723",
    )
    equation: ClassVar[str] = (
        r"L = (1 - \alpha) L_{task} + \alpha \, \frac{c}{K} \, \mathrm{KL}\left(\mathrm{softmax}(v / T) \,\|\, "
        r"\mathrm{softmax}(z_s)\right), \quad v_y = a, \; v_{k \ne y} = \frac{1 - a}{K - 1}"
    )
    needs_teacher = False
    temperature: float = tuned(20.0, FloatDistribution(1.0, 40.0, log=True))
    alpha: float = tuned(0.1, FloatDistribution(0.1, 0.95))
    form: str = "reg"
    divergence: str = "program"
    multiplier: float = 100.0
    correct: float = 0.99

    def __post_init__(self) -> None:
        """Checks the ranges."""
        positive(temperature=self.temperature, multiplier=self.multiplier)
        fraction(alpha=self.alpha)
        one_of(("reg", "self"), form=self.form)
        one_of(("program", "paper"), divergence=self.divergence)
        if not 0 < self.correct < 1:
            raise ValueError(f"correct must lie between 0 and 1, both excluded, but got correct={self.correct}.")

    def needed(self) -> frozenset[str]:
        """The label's class, for the virtual teacher."""
        return frozenset({"class_targets"}) if self.form == "reg" else self.needs

    def stages(self, teachers: tuple[Net, ...]) -> Iterable[Stage]:
        """One stage from the virtual teacher; or the student alone, and a fresh one from it."""
        if self.form == "reg":
            return (Stage("train", self.loss, teachers=()),)
        first = Stage("first", self.labels_alone, (FIRST,), ())
        return (first, Stage("distill", self.from_itself, (STUDENT,), (FIRST,)))

    def labels_alone(self, step: Step) -> Losses:
        """Cross-entropy of the logits (B, K)."""
        return step.task_loss()

    def from_itself(self, step: Step) -> Losses:
        """Labels, and the softened logits (B, K) of the student that was trained alone."""
        soft = kd_loss(step.student.logits, step.teacher.logits, self.temperature)
        return {**step.task_loss(1 - self.alpha), "kd": self.alpha * soft}

    def loss(self, step: Step) -> Losses:
        """Labels, and the virtual teacher's probabilities (B, K)."""
        assert isinstance(step.targets, Tensor), "class_targets are needed"
        given = step.student.logits, step.targets, self.temperature, self.correct
        if self.divergence == "program":
            soft = self.multiplier * program_divergence(*given)
        else:
            soft = softened_divergence(*given)
        return {**step.task_loss(1 - self.alpha), "virtual": self.alpha * soft}
