"""Trains the student on the teacher's softened class probabilities and on the labels."""

from __future__ import annotations

import torch.nn.functional as F
from optuna.distributions import FloatDistribution

from methods.base import Losses, Method, Paper, Step, fraction, method, positive, tuned
from methods.functional import kd_loss


@method
class KD(Method):
    """Loss = alpha * T^2 * KL(teacher || student at temperature T) + (1 - alpha) * cross-entropy with the labels.

    Choices where the paper leaves room:
    - It gives no weight for MNIST, only "a considerably lower weight" for the hard targets. alpha = 0.9 is what later
      work uses (Zagoruyko & Komodakis 2017; Tian et al. 2020).
    - It finds every T above 8 equal for large students and 2.5 to 4 best for small ones. T = 4 is the default here.
    """

    paper = Paper(
        "Distilling the Knowledge in a Neural Network",
        "Hinton, Vinyals, Dean",
        2015,
        "https://arxiv.org/abs/1503.02531",
    )
    temperature: float = tuned(4.0, FloatDistribution(1.0, 20.0, log=True))
    alpha: float = tuned(0.9, FloatDistribution(0.1, 1.0))

    def __post_init__(self) -> None:
        """Checks the ranges."""
        positive(temperature=self.temperature)
        fraction(alpha=self.alpha)

    def loss(self, step: Step) -> Losses:
        """Soft and hard targets on logits (B, K)."""
        return {
            "kd": self.alpha * kd_loss(step.student.logits, step.teacher.logits, self.temperature),
            "ce": (1 - self.alpha) * F.cross_entropy(step.student.logits, step.labels),
        }
