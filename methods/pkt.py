"""Makes images as probable neighbours of each other as they are for the teacher: probabilistic knowledge transfer."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from kdbench.methods.base import Losses, Method, Paper, Step, loss_weight, method
from kdbench.methods.checks import non_negative, require, same_batch

SMALLEST = 1e-7
"""Added to norms, and to probabilities in the logarithm."""


def neighbours(vectors: Tensor) -> Tensor:
    """(B, B): cosines moved to 0 to 1, each row over its sum; an image is a neighbour of its own too.

    Args:
        vectors: (B, D)
    """
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    units = vectors / (norms + SMALLEST)
    alike = (units @ units.T + 1) / 2
    return alike / alike.sum(dim=1, keepdim=True)


def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean over all B^2 pairs of $P_t \log \frac{P_t + \epsilon}{P_s + \epsilon}$, P = `neighbours`, epsilon 1e-7.

    Args:
        student: (B, D)
        teacher: (B, D'); D' may differ.

    Raises:
        ValueError: if these are not two matrices of one batch size.
    """
    same_batch(student, teacher, dims=2)
    mine, theirs = neighbours(student), neighbours(teacher)
    return (theirs * ((theirs + SMALLEST) / (mine + SMALLEST)).log()).mean()


@method
class PKT(Method):
    """Loss = cross-entropy + weight * `pkt_loss` of the pooled features.

    weight = 30000 is that of Tian et al. (2020), from which published tables on CIFAR come: the mean divides the
    divergences of B images by B^2, not B, and cosines of pooled features differ little. The authors train a
    representation by this loss alone, with Adam.

    As in the program, the diagonal is kept and 1e-7 is added to norms and in the logarithm. Departure: vectors of zeros
    have a gradient that is no number there, and a finite one here.
    """

    collection = "modern"
    paper = Paper(
        "Learning Deep Representations with Probabilistic Knowledge Transfer",
        "Passalis, Tefas",
        2018,
        "https://arxiv.org/abs/1803.10837",
    )
    equation: ClassVar[str] = (
        r"L = L_{task} + \frac{w}{B^2} \sum_{ij} P^t_{ij} \log \frac{P^t_{ij} + \epsilon}{P^s_{ij} + \epsilon}, "
        r"\quad P_{ij} = \frac{1 + \cos(u_i, u_j)}{\sum_k 1 + \cos(u_i, u_k)}, \; \epsilon = 10^{-7}"
    )
    knowledge = "relation"
    needs = frozenset({"pooled"})
    weight: float = loss_weight(30000.0, "pkt")

    def __post_init__(self) -> None:
        """Checks the range."""
        non_negative(weight=self.weight)

    def loss(self, step: Step) -> Losses:
        """Labels, and the neighbours of pooled features (B, D)."""
        student, teacher = require("pooled", step.student.pooled), require("pooled", step.teacher.pooled)
        return {**step.task_loss(), "pkt": self.weight * pkt_loss(student, teacher)}
