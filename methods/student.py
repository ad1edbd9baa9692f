"""Trains the student on hard labels alone: the control that every table needs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdbench.methods.base import Losses, Method, Paper, Step, method
from kdbench.methods.checks import fraction


def smoothing_loss(logits: Tensor) -> Tensor:
    """Cross-entropy with the uniform distribution, mean over decisions.

    Args:
        logits: (M, K)
    """
    return -F.log_softmax(logits, dim=1).mean()


@method
class Student(Method):
    """Cross-entropy with the labels, without a teacher.

    It is tuned under the same budget as every method (learning rate and weight decay, as the suite says), so that a
    gain over it is a gain over a tuned baseline.

    `label_smoothing` = e above 0 is the control for methods whose teacher does no more than soften the labels (Szegedy
    et al. 2016, section 7): (1 - e) * cross-entropy + e * `smoothing_loss`.
    """

    collection = "survey"
    paper = Paper(
        "Learning representations by back-propagating errors",
        "Rumelhart, Hinton, Williams",
        1986,
        "https://doi.org/10.1038/323533a0",
    )
    equation = (
        r"\mathcal{L} = (1-\epsilon)\,\mathcal{L}_{\text{task}}(z_s, y) - \epsilon \, \frac{1}{K} \sum_{k} "
        r"\log \sigma(z_s)_k"
        "\n"
        r"\epsilon = \text{label\_smoothing}"
    )
    role = "control"
    knowledge = "none"
    needs_teacher = False
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Checks the range."""
        fraction(label_smoothing=self.label_smoothing)

    def loss(self, step: Step) -> Losses:
        """Cross-entropy of the student's logits (B, K) with the labels, and with all classes alike if so asked."""
        losses = step.task_loss(1 - self.label_smoothing)
        if self.label_smoothing:
            losses["smoothing"] = self.label_smoothing * smoothing_loss(step.student.logits)
        return losses
