"""Makes embeddings of images, and how they relate in a batch, agree with the teacher's: correlation congruence."""

from __future__ import annotations

import math
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.methods.base import Losses, Method, Paper, Signals, Step, loss_weight, method
from kdbench.methods.checks import non_negative, one_of, positive, require, same_batch, same_shape


def congruence_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean over i of $\sum_d |e^s - e^t|_{i,d} \, |e^s - e^t|_{i+1,d}$, neighbours in the batch; 0 of one image.

    Args:
        student: (B, D), embeddings.
        teacher: (B, D)

    Raises:
        ValueError: if these are not two matrices of one shape.
    """
    same_batch(student, teacher, dims=2)
    same_shape(student, teacher)
    apart = (student - teacher).abs()
    return (apart[:-1] * apart[1:]).sum() / max(1, len(apart) - 1)


def kernel_matrix(vectors: Tensor, gamma: float, order: int) -> Tensor:
    r"""The Gaussian kernel of the rows' directions as a Taylor series, $\sum_p e^{-2g} (2g)^p / p! \, \cos^p$: (B, B).

    Args:
        vectors: (B, D)
        gamma: g, positive.
        order: the last p.
    """
    units = F.normalize(vectors, dim=1)
    cosines = units @ units.T
    terms = [math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * cosines**p for p in range(order + 1)]
    return sum(terms[1:], terms[0])


def kernel_congruence_loss(student: Tensor, teacher: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Mean squared difference of the two kernel matrices, over all B^2 entries.

    Args:
        student: (B, D), embeddings.
        teacher: (B, D'); D' may differ.
        gamma: of the kernel, positive.
        order: of its Taylor series.

    Raises:
        ValueError: if these are not two matrices of one batch size.
    """
    same_batch(student, teacher, dims=2)
    return F.mse_loss(kernel_matrix(student, gamma, order), kernel_matrix(teacher, gamma, order))


@method
class CC(Method):
    """Loss = cross-entropy + weight * `congruence_loss` of embeddings, or `kernel_congruence_loss` of them.

    The default is what the authors gave Tian et al. (2020), from whose tables its published numbers on CIFAR come: the
    pooled features of both networks through a linear layer each to `width` = 128, both trained, and the product of two
    neighbouring images' absolute differences; weight = 0.02. It is solved by embeddings of all images at one point,
    and the second image of a pair is whichever comes next in the batch.

    `form` = "kernel" is the paper's congruence of correlations: a Gaussian kernel of the embeddings' directions by its
    Taylor series, of `order` 2 and with `gamma` = 0.4. Suites differ in its reduction; here it is the mean over B^2.
    The paper gives no weight that holds for it, so set one.
    """

    collection = "modern"
    paper = Paper(
        "Correlation Congruence for Knowledge Distillation",
        "Peng, Jin, Liu, Zhou, Wu, Liu, Li, Zhang",
        2019,
        "https://arxiv.org/abs/1904.01802",
    )
    equation: ClassVar[str] = (
        r"L = L_{task} + \frac{w}{B - 1} \sum_{i=1}^{B-1} \sum_d \delta_{i,d} \, \delta_{i+1,d}, "
        r"\quad \delta = |e^s - e^t|, \; e = W u + b \text{ of each network's pooled features}"
    )
    knowledge = "relation"
    needs = frozenset({"pooled"})
    weight: float = loss_weight(0.02, "cc")
    form: str = "neighbours"
    width: int = 128
    gamma: float = 0.4
    order: int = 2

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(weight=self.weight)
        one_of(("neighbours", "kernel"), form=self.form)
        positive(width=self.width, gamma=self.gamma, order=self.order)

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """An embedding of each network's pooled features."""
        widths = [require("pooled", each.pooled).shape[1] for each in (student, teachers[0])]
        return nn.ModuleDict(
            {name: nn.Linear(width, self.width) for name, width in zip(("student", "teacher"), widths, strict=True)}
        )

    def loss(self, step: Step) -> Losses:
        """Labels, and embeddings (B, width) of both."""
        mine = step.auxiliary["student"](require("pooled", step.student.pooled))
        theirs = step.auxiliary["teacher"](require("pooled", step.teacher.pooled))
        if self.form == "neighbours":
            congruence = congruence_loss(mine, theirs)
        else:
            congruence = kernel_congruence_loss(mine, theirs, self.gamma, self.order)
        return {**step.task_loss(), "cc": self.weight * congruence}
