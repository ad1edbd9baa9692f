"""Teaches the label's class by the teacher's confidence, and the other classes normalised among themselves: NKD."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor

from kdbench.methods.base import Losses, Method, Paper, Step, loss_weight, method, tuned
from kdbench.methods.checks import non_negative, positive, same_shape
from kdbench.methods.functional import all_but, one_class_each, only


def confidence_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    r"""$-p^t_y \log p^s_y$, mean over the batch: cross-entropy with the labels, as sure as the teacher is; T = 1.

    Args:
        student_logits: (B, K)
        teacher_logits: (B, K)
        labels: (B,) classes, or (B, K) rows with a single one.

    Raises:
        ValueError: if shapes do not fit, or there are less than two classes.
        Unsupported: if the class of a sample is mixed or lacking.
    """
    same_shape(student_logits, teacher_logits)
    chosen = one_class_each(labels, student_logits)[:, None]
    student, teacher = F.log_softmax(student_logits, dim=1), F.softmax(teacher_logits, dim=1)
    return -(teacher.gather(1, chosen) * student.gather(1, chosen)).mean()


def normalised_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    r"""$-T^2 \sum_{k \ne y} q^t_k \log q^s_k$, mean over the batch; q is the softmax at T over all classes but y.

    It is a cross-entropy, which is not 0 where q is the teacher's but has the gradient of a divergence.

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
    others = all_but(one_class_each(labels, student_logits), student_logits)
    student, teacher = (only(each / temperature, others) for each in (student_logits, teacher_logits))
    return -(teacher.exp() * student).sum(dim=1).mean() * temperature**2


def nkd_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, gamma: float
) -> Tensor:
    """`confidence_loss` + gamma * `normalised_loss`, without the labels' own cross-entropy.

    Args:
        student_logits: (B, K)
        teacher_logits: (B, K)
        labels: (B,) classes, or (B, K) rows with a single one.
        temperature: T of the other classes, positive.
        gamma: of the other classes.

    Raises:
        ValueError: if shapes do not fit, or there are less than two classes.
        Unsupported: if the class of a sample is mixed or lacking.
    """
    given = student_logits, teacher_logits, labels
    return confidence_loss(*given) + gamma * normalised_loss(*given, temperature)


@method
class NKD(Method):
    """Loss = cross-entropy + `confidence_loss` + gamma * `normalised_loss`.

    The classes that are not the label's sum to 1 for both networks here, which they do not in the cross-entropy of
    soft labels. T = 1 and gamma = 1.5 are the program's on ImageNet (1 for DeiT); on CIFAR-100 from ResNet-34 to
    ResNet-18 T = 3 and gamma = 3.5. The part of the label's class is at T = 1 always.

    Choices: of mixed labels the program takes the largest; here they are refused, as is a lacking one. A release of
    2023 had its mask wrong for a while; the mask here is the later one's.
    """

    collection = "modern"
    paper = Paper(
        "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and "
        "Customized Soft Labels",
        "Yang, Zeng, Li, Zhang, Yuan, Li",
        2023,
        "https://arxiv.org/abs/2303.13005",
    )
    equation: ClassVar[str] = (
        r"L = L_{task} - p^t_y \log p^s_y - \gamma T^2 \sum_{k \ne y} q^t_k \log q^s_k, "
        r"\quad p = \mathrm{softmax}(z), \; q = \mathrm{softmax}_{k \ne y}(z / T), \text{ mean over the batch}"
    )
    needs = frozenset({"class_targets"})
    temperature: float = tuned(1.0, FloatDistribution(1.0, 5.0, log=True))
    gamma: float = loss_weight(1.5, "others")

    def __post_init__(self) -> None:
        """Checks the ranges."""
        positive(temperature=self.temperature)
        non_negative(gamma=self.gamma)

    def loss(self, step: Step) -> Losses:
        """Labels, and both parts of the logits (B, K)."""
        assert isinstance(step.targets, Tensor), "class_targets are needed"
        given = step.student.logits, step.teacher.logits, step.targets
        return {
            **step.task_loss(),
            "target": confidence_loss(*given),
            "others": self.gamma * normalised_loss(*given, self.temperature),
        }
