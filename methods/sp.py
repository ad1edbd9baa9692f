"""Makes the student's images resemble each other as they do for the teacher: similarity-preserving distillation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.methods.base import Losses, Method, Paper, Step, features_of, loss_weight, method
from kdbench.methods.checks import non_negative
from kdbench.methods.functional import check_depths, matched


def similarity_loss(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    r"""Mean squared difference of the row-normalised Gram matrices: $\|G_t - G_s\|_F^2 / B^2$.

    Args:
        student_feature: (B, ...), flattened for each image.
        teacher_feature: (B, ...), the other dimensions may differ from the student's.

    Raises:
        ValueError: if the batch sizes differ, or there is nothing but a batch dimension.
    """
    if student_feature.dim() < 2 or teacher_feature.dim() < 2 or len(student_feature) != len(teacher_feature):
        shapes = f"{tuple(student_feature.shape)} and {tuple(teacher_feature.shape)}"
        raise ValueError(f"features must have shapes (B, ...) of one batch size, but got {shapes}.")
    student, teacher = student_feature.flatten(1), teacher_feature.flatten(1)
    student_gram = F.normalize(student @ student.T, dim=1)
    teacher_gram = F.normalize(teacher @ teacher.T, dim=1)
    return F.mse_loss(student_gram, teacher_gram)


@method
class SP(Method):
    """Loss = cross-entropy + weight * sum over the chosen stages of `similarity_loss`.

    The paper's equation 4 divides the squared Frobenius norm by B^2, as the mean here does. Choices: the last stage
    only, as in RepDistiller's runs and the paper's experiments on CIFAR-10; `depths` names others by relative depth,
    0 the first stage and 1 the last, so that networks with different numbers of stages match. The paper's weight on
    CIFAR-10, 3000, was set at batch 128; the loss is a mean over B^2 entries and is not rescaled for other sizes.
    """

    collection = "survey"
    paper = Paper(
        "Similarity-Preserving Knowledge Distillation", "Tung, Mori", 2019, "https://arxiv.org/abs/1907.09682"
    )
    equation = (
        r"\mathcal{L} = \mathcal{L}_{\text{task}}(z_s, y) + \lambda \sum_{l} \frac{1}{B^2} \Vert G_t^l - "
        r"G_s^l \Vert_F^2"
        "\n"
        r"G^l_{ij} = \frac{\langle f^l_i, f^l_j \rangle}{\Vert \langle f^l_i, f^l_\cdot \rangle \Vert_2}, "
        r"\quad i, j \text{ images of the batch}, \quad \lambda = \text{weight}"
    )
    knowledge = "relation"
    needs = frozenset({"features"})
    weight: float = loss_weight(3000.0, "sp")
    depths: tuple[float, ...] = (1.0,)
    teacher_depths: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(weight=self.weight)
        check_depths(self.depths, self.teacher_depths)

    def loss(self, step: Step) -> Losses:
        """Labels, and similarity at each of `depths`."""
        pairs = matched(features_of(step.student), features_of(step.teacher), self.depths, self.teacher_depths)
        losses = torch.stack([similarity_loss(mine, theirs) for mine, theirs in pairs])
        return {**step.task_loss(), "sp": self.weight * losses.sum()}
