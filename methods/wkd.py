"""Moves probability between classes that the teacher's classifier has near each other: Wasserstein distillation."""

from __future__ import annotations

import math
from typing import ClassVar

import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor

from kdbench.methods.base import Losses, Method, Paper, Step, loss_weight, method, tuned
from kdbench.methods.checks import fraction, non_negative, positive, require, same_shape
from kdbench.methods.functional import all_but, one_class_each, only
from kdbench.methods.nkd import confidence_loss

EPSILON = 1e-8
"""The program's, beside costs and in Sinkhorn's divisions."""


def class_costs(rows: Tensor, sharpen: float) -> Tensor:
    """Costs (K, K) between classes: 1 - exp(-sharpen * (1 - cosine of their rows)); without sharpening 1 - cosine.

    Args:
        rows: (K, D), a vector for each class.
        sharpen: 0 for none.
    """
    unit = F.normalize(rows, dim=1)
    distance = 1 - unit @ unit.T
    return 1 - (-sharpen * distance).exp() if sharpen else distance


def wasserstein_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    cost: Tensor,
    regularisation: float,
    iterations: int,
) -> Tensor:
    """Cost of moving the student's softmax over all classes but the label's to the teacher's, mean over the batch.

    The flow is Sinkhorn's after some iterations. A class of no mass takes part in none, so the label's is left out by
    its zero mass, and flows are products of (B, K) and (K, K), where the program has (B, K, K) numbers.

    Args:
        student_logits: (B, K)
        teacher_logits: (B, K)
        labels: (B,) classes, or (B, K) rows with a single one.
        temperature: T, positive.
        cost: (K, K) between classes.
        regularisation: of the flow's entropy, positive.
        iterations: at least 1.

    Raises:
        ValueError: if shapes do not fit, or there are less than two classes.
        Unsupported: if the class of a sample is mixed or lacking.
    """
    same_shape(student_logits, teacher_logits)
    others = all_but(one_class_each(labels, student_logits), student_logits)
    mine, theirs = (only(each / temperature, others).exp() for each in (student_logits, teacher_logits))
    cost = F.relu(cost).to(mine.dtype) + EPSILON
    kernel = (-cost / regularisation).exp()
    first = others.to(mine.dtype) / max(1, mine.shape[1] - 1)
    for _ in range(iterations):
        second = theirs / (first @ kernel + EPSILON)
        first = mine / (second @ kernel.T + EPSILON)
    return ((first @ (kernel * cost)) * second).sum(dim=1).mean()


@method
class WKD(Method):
    """Loss = cross-entropy + `confidence_loss` + r * weight * `wasserstein_loss`; r falls to 0 by a cosine at the end.

    The part on logits (WKD-L). Classes are as near as the rows of the teacher's classifier: the cost is `class_costs`.
    `confidence_loss` is NKD's target term, -p^t_y log p^s_y at T = 1. regularisation = 0.05 and 10
    iterations are the program's; its weights on CIFAR-100 are 60 to 600 at T 4 to 8, and it lowers them from epoch 150
    of 240 on, here from that share of training.

    Departures: the paper's main form takes costs from class means of the teacher's features over the training set
    (centred kernel alignment), which are not at hand here; the rows are the program's other choice. The part on
    features (WKD-F) is not here. sharpen = 1 is our choice.
    """

    collection = "modern"
    paper = Paper(
        "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation",
        "Lv, Yang, Li",
        2024,
        "https://arxiv.org/abs/2412.08139",
    )
    equation: ClassVar[str] = (
        r"L = L_{task} - \overline{p^t_y \log p^s_y} + r w \, \overline{\sum_{jk} \Pi_{jk} C_{jk}}, \quad \Pi \text{ "
        r"Sinkhorn's flow between softmaxes of } z_{k \ne y} / T, \; C_{jk} = 1 - e^{-s (1 - \cos(W_j, W_k))}"
    )
    needs = frozenset({"classifier", "class_targets"})
    weight: float = loss_weight(100.0, "wasserstein")
    temperature: float = tuned(4.0, FloatDistribution(1.0, 8.0, log=True))
    sharpen: float = 1.0
    regularisation: float = 0.05
    iterations: int = 10
    constant: float = 150 / 240

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(weight=self.weight, sharpen=self.sharpen)
        positive(temperature=self.temperature, regularisation=self.regularisation, iterations=self.iterations)
        fraction(constant=self.constant)

    def loss(self, step: Step) -> Losses:
        """Labels, the label's class by the teacher's confidence, and the other classes' softmax (B, K)."""
        assert isinstance(step.targets, Tensor), "class_targets are needed"
        given = step.student.logits, step.teacher.logits, step.targets
        cost = class_costs(require("classifier", step.teacher.classifier), self.sharpen)
        apart = wasserstein_loss(*given, self.temperature, cost, self.regularisation, self.iterations)
        late = max(0.0, step.progress - self.constant) / (1 - self.constant) if self.constant < 1 else 0.0
        factor = (1 + math.cos(math.pi * late)) / 2
        return {
            **step.task_loss(),
            "confidence": confidence_loss(*given),
            "wasserstein": factor * self.weight * apart,
        }
