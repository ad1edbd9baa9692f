"""Keeps distances between images and angles of three of them as the teacher has them: relational distillation."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdbench.methods.base import Losses, Method, Paper, Signals, Step, loss_weight, method
from kdbench.methods.checks import non_negative, require, same_batch

SMALLEST = 1e-12
"""Least squared distance of two images: the root of 0 has no gradient."""
AT_ONCE = 2**22
"""About how many angles, or coordinates of differences, are in memory at a time."""


def distances(vectors: Tensor) -> Tensor:
    """Euclidean distances (B, B) over their mean, which leaves the zeros of the diagonal out.

    Args:
        vectors: (B, D)
    """
    squares = vectors.square().sum(dim=1)
    between = (squares[:, None] + squares - 2 * vectors @ vectors.T).clamp_min(SMALLEST).sqrt()
    between = between * (1 - torch.eye(len(vectors), dtype=vectors.dtype, device=vectors.device))
    pairs = max(1, len(vectors) * (len(vectors) - 1))
    return between / (between.sum() / pairs).clamp_min(SMALLEST)


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean Huber loss of `distances`, over all B^2 of them with those of the diagonal.

    Args:
        student: (B, D)
        teacher: (B, D'); D' may differ.

    Raises:
        ValueError: if these are not two matrices of one batch size.
    """
    same_batch(student, teacher, dims=2)
    return F.smooth_l1_loss(distances(student), distances(teacher))


def cosines(vectors: Tensor, start: int, stop: int) -> Tensor:
    """Cosines (stop - start, B, B) of the angles at some images between all pairs of directions to others.

    Args:
        vectors: (B, D)
        start: the first image at which the angles are.
        stop: one behind the last.
    """
    directions = F.normalize(vectors[None] - vectors[start:stop, None], dim=2)
    return directions @ directions.transpose(1, 2)


def angles_apart(student: Tensor, teacher: Tensor, start: int, stop: int) -> Tensor:
    """Sum of the Huber losses of `cosines`."""
    return F.smooth_l1_loss(cosines(student, start, stop), cosines(teacher, start, stop), reduction="sum")


class AnglesInParts(torch.autograd.Function):
    """Sum of `angles_apart`, a few images after others, each part's gradient on the student taken at once."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, images: int) -> Tensor:
        """The sum, of so many images at a time."""
        total, gradient, vectors = student.new_zeros(()), torch.zeros_like(student), student.detach()
        vectors.requires_grad_(ctx.needs_input_grad[0])
        for start in range(0, len(student), images):
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                part = angles_apart(vectors, teacher, start, min(start + images, len(student)))
            total += part.detach()
            if ctx.needs_input_grad[0]:
                gradient += torch.autograd.grad(part, vectors)[0]
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        """What the parts' gradients add up to."""
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean Huber loss of the cosines at i between j and k, over all B^3 triples, also those that are no angle.

    B^3 cosines are B products of matrices (B, D); those of a few images are in memory at a time. For 1024 images of 64
    dimensions loss and gradient took 16 seconds of one core and 160 MiB of memory, for 64 images 13 milliseconds.

    Args:
        student: (B, D)
        teacher: (B, D'), without a gradient; D' may differ.

    Raises:
        ValueError: if these are not two matrices of one batch size.
    """
    same_batch(student, teacher, dims=2)
    size, width = len(student), max(len(student), student.shape[1], teacher.shape[1])
    images = max(1, AT_ONCE // (size * width))
    if images >= size:
        return angles_apart(student, teacher, 0, size) / size**3
    total: Tensor = AnglesInParts.apply(student, teacher.detach(), images)
    return total / size**3


@method
class RKD(Method):
    """Loss = cross-entropy + distance_weight * `distance_loss` + angle_weight * `angle_loss`, of the pooled features.

    Weights of 25 and 50 are those of Tian et al. (2020) for classification, from which published tables on CIFAR come;
    the authors' are 1 and 2, for metric learning. A weight of 0 leaves a part out: RKD-D and RKD-A of the paper.

    As in both programs the mean distance leaves the diagonal out, and the loss keeps it; the mean over angles keeps the
    triples with two equal images; the gradient passes through the student's mean distance; features are not normalised
    first (one suite does, which makes the loss a third of this). Squared distances are at least 1e-12.
    """

    collection = "modern"
    paper = Paper("Relational Knowledge Distillation", "Park, Kim, Lu, Cho", 2019, "https://arxiv.org/abs/1904.05068")
    equation: ClassVar[str] = (
        r"L = L_{task} + w_d \frac{1}{B^2} \sum_{ij} h\left(\frac{d^s_{ij}}{\mu_s} - \frac{d^t_{ij}}{\mu_t}\right) "
        r"+ w_a \frac{1}{B^3} \sum_{ijk} h\left(\cos \angle^s_{jik} - \cos \angle^t_{jik}\right), "
        r"\quad d_{ij} = \|u_i - u_j\|, \; \mu = \overline{d_{i \ne j}}, \; h \text{ Huber's loss}"
    )
    knowledge = "relation"
    needs = frozenset({"pooled"})
    distance_weight: float = loss_weight(25.0, "distance")
    angle_weight: float = loss_weight(50.0, "angle")

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(distance_weight=self.distance_weight, angle_weight=self.angle_weight)

    def loss_weights(self) -> dict[str, tuple[str, ...]]:
        """Those that are not 0."""
        return {name: terms for name, terms in super().loss_weights().items() if getattr(self, name)}

    def loss(self, step: Step) -> Losses:
        """Labels, and distances and angles of pooled features (B, D)."""
        student, teacher = _pooled(step.student), _pooled(step.teacher)
        losses = step.task_loss()
        if self.distance_weight:
            losses["distance"] = self.distance_weight * distance_loss(student, teacher)
        if self.angle_weight:
            losses["angle"] = self.angle_weight * angle_loss(student, teacher)
        return losses


def _pooled(signals: Signals) -> Tensor:
    return require("pooled", signals.pooled)
