"""Keeps the correlation with the teacher's probabilities, over classes and over images: DIST."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor

from kdbench.methods.base import Losses, Method, Paper, Step, loss_weight, method, tuned
from kdbench.methods.checks import non_negative, positive, same_batch, same_shape

SMALLEST = 1e-8
"""Added to a product of norms."""


def correlations(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation (B,) of each row of one tensor (B, K) with that of another; 0 where a row is constant."""
    first, second = (each - each.mean(dim=1, keepdim=True) for each in (first, second))
    norms: Tensor = first.norm(dim=1) * second.norm(dim=1)
    return (first * second).sum(dim=1) / (norms + SMALLEST)


def dist_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float, beta: float, gamma: float) -> Tensor:
    r"""$T^2 [\beta (1 - \overline{r}_{rows}) + \gamma (1 - \overline{r}_{columns})]$, r = `correlations` of softmaxes.

    Args:
        student_logits: (B, K)
        teacher_logits: (B, K)
        temperature: T of both softmaxes, positive.
        beta: of the rows, which relate the classes of an image.
        gamma: of the columns, which relate the images of the batch in a class.

    Raises:
        ValueError: if the shapes differ, or are not (B, K).
    """
    same_shape(student_logits, teacher_logits)
    same_batch(student_logits, teacher_logits, dims=2)
    student, teacher = (F.softmax(each / temperature, dim=1) for each in (student_logits, teacher_logits))
    rows, columns = correlations(student, teacher).mean(), correlations(student.T, teacher.T).mean()
    return temperature**2 * (beta * (1 - rows) + gamma * (1 - columns))


@method
class DIST(Method):
    """Loss = cross-entropy + weight * `dist_loss`.

    A correlation ignores scale and shift, so the student need not reach a stronger teacher's exact probabilities.
    weight = 2 and T = 4 are those of CIFAR-100; on ImageNet T = 1 and weight = 2. `beta` and `gamma`, of relations
    between classes and between images, are 1 in the program.

    Choices and pitfalls: 1e-8 is added to the product of norms, as in the program. Correlations between images are over
    the batch (32 on each GPU in the paper's runs on ImageNet), so they depend on its size. The factor T^2, which the
    paper has for CIFAR, makes T = 4 a weight 16 times as large, as the loss itself is bounded.
    """

    collection = "modern"
    paper = Paper(
        "Knowledge Distillation from A Stronger Teacher",
        "Huang, You, Wang, Qian, Xu",
        2022,
        "https://arxiv.org/abs/2205.10536",
    )
    equation: ClassVar[str] = (
        r"L = L_{task} + w T^2 \left[\beta \left(1 - \frac{1}{B} \sum_i \rho(p^s_{i,:}, p^t_{i,:})\right) "
        r"+ \gamma \left(1 - \frac{1}{K} \sum_k \rho(p^s_{:,k}, p^t_{:,k})\right)\right], "
        r"\quad p = \mathrm{softmax}(z / T), \; \rho \text{ Pearson's correlation}"
    )
    knowledge = "relation"
    temperature: float = tuned(4.0, FloatDistribution(1.0, 8.0, log=True))
    weight: float = loss_weight(2.0, "dist")
    beta: float = 1.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        positive(temperature=self.temperature)
        non_negative(weight=self.weight, beta=self.beta, gamma=self.gamma)

    def loss(self, step: Step) -> Losses:
        """Labels, and correlations of softened logits (B, K)."""
        relations = dist_loss(step.student.logits, step.teacher.logits, self.temperature, self.beta, self.gamma)
        return {**step.task_loss(), "dist": self.weight * relations}
