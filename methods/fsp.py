"""Makes the student's layers relate to each other as the teacher's do, then trains it: flow of solution procedure."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from optuna.distributions import BaseDistribution, FloatDistribution
from torch import Tensor, nn

from kdbench.methods.base import (
    Losses,
    Method,
    Net,
    Paper,
    Signals,
    Stage,
    Step,
    features_of,
    loss_weight,
    method,
    tuned,
)
from kdbench.methods.checks import non_negative, one_of, same_shape
from kdbench.methods.functional import check_depths, matched, pooled_alike
from kdbench.methods.hooks import StageOptions

POOLS = ("avg", "max")
Maps = tuple[Tensor, Tensor]


def fsp_matrix(first: Tensor, second: Tensor, pool: str = "avg") -> Tensor:
    """The FSP matrix (B, C1, C2): products of two layers' channels, averaged over positions (equation 1).

    Args:
        first: (B, C1, H, W)
        second: (B, C2, H', W'); the larger of the two is pooled to the smaller.
        pool: avg or max.

    Raises:
        ValueError: for another pool, or tensors that are no feature maps of one batch size.
    """
    one_of(POOLS, pool=pool)
    one, two = pooled_alike(first, second, pool)
    return torch.einsum("bchw,bdhw->bcd", one, two) / (one.shape[-2] * one.shape[-1])


def fsp_loss(student_pair: Maps, teacher_pair: Maps, pool: str = "avg") -> Tensor:
    """Mean squared difference of the two FSP matrices (equation 2, which sums; the mean is our normalisation).

    Args:
        student_pair: two of its feature maps, (B, C1, H, W) and (B, C2, H', W').
        teacher_pair: likewise, with as many channels.
        pool: avg or max.

    Raises:
        ValueError: if the channels differ.
    """
    student, teacher = fsp_matrix(*student_pair, pool), fsp_matrix(*teacher_pair, pool)
    same_shape(student, teacher)
    return F.mse_loss(student, teacher)


@method
class FSP(Method):
    """Stage "fsp": weight * mean or sum of `fsp_loss` over consecutive `depths`; stage "task": cross-entropy alone.

    Departures: the paper relates the first and the last layer inside each section of equal resolution; stages are
    tapped at their ends here, so the layer before a stage and its last one are related, as in Tian et al. (2020). Where
    the student's and the teacher's channels differ, which the paper excludes, a learned 1x1 convolution on the
    student's map makes them equal. Stages share the run's epochs: the first has a quarter, as the paper's 21k
    iterations before 64k for small students. The paper trains the first at a hundredth of the learning rate on a sum of
    squares; here the loss is a mean over entries, smaller by their number, and the rate is the recipe's.

    `pool` = "max" is the paper's where sizes differ. With "avg" and `reduce` = "sum", over the pairs of layers, this is
    Tian et al.'s program. `one_stage` adds both losses up, so that they can be composed with others.
    """

    collection = "survey"
    paper = Paper(
        "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning",
        "Yim, Joo, Bae, Kim",
        2017,
        "https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html",
    )
    equation = (
        r"\mathcal{L}_1 = \lambda \, \frac{1}{n} \sum_{i=1}^{n} \text{mean}\,(G_s^i - G_t^i)^2, \quad "
        r"\text{then} \quad \mathcal{L}_2 = \mathcal{L}_{\text{task}}(z_s, y)"
        "\n"
        r"G^i_{cd} = \frac{1}{HW} \sum_{h,w} F^i_{chw} F^{i+1}_{dhw}, \quad \lambda = \text{weight}"
    )
    knowledge = "relation"
    needs = frozenset({"features"})
    weight: float = loss_weight(1.0, "fsp")
    fsp_epochs: float = tuned(0.25, FloatDistribution(0.1, 0.6))
    one_stage: bool = False
    pool: str = "max"
    reduce: str = "mean"
    depths: tuple[float, ...] = (0.0, 0.33, 0.67, 1.0)
    teacher_depths: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(weight=self.weight)
        one_of(POOLS, pool=self.pool)
        one_of(("mean", "sum"), reduce=self.reduce)
        check_depths(self.depths, self.teacher_depths)
        if len(self.depths) < 2:
            raise ValueError(f"depths must name at least two layers, but got depths={self.depths}.")
        if not 0 < self.fsp_epochs < 1:
            raise ValueError(f"fsp_epochs must lie between 0 and 1, both excluded, but got {self.fsp_epochs}.")

    def space(self) -> dict[str, BaseDistribution]:
        """The length of the first stage, where there are two."""
        return {} if self.one_stage else super().space()

    def stages(self, teachers: tuple[Net, ...]) -> Iterable[Stage]:
        """The flow, then the task; or both at once."""
        if self.one_stage:
            return (Stage("joint", self.joint, teachers=teachers),)
        return (
            Stage("fsp", self.flow, teachers=teachers, epochs=self.fsp_epochs),
            Stage("task", self.task, teachers=(), epochs=1 - self.fsp_epochs, options=StageOptions(needs=frozenset())),
        )

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """A 1x1 convolution for each of `depths` where the channels differ."""
        channels = [(mine.shape[1], theirs.shape[1]) for mine, theirs in self._layers(student, teachers[0])]
        return nn.ModuleDict(
            {
                f"adapter_{index}": nn.Conv2d(mine, theirs, kernel_size=1)
                for index, (mine, theirs) in enumerate(channels)
                if mine != theirs
            }
        )

    def flow(self, step: Step) -> Losses:
        """FSP matrices (B, C1, C2) of consecutive layers."""
        layers = self._layers(step.student, step.teacher)
        adapted = [
            step.auxiliary[f"adapter_{index}"](mine) if f"adapter_{index}" in step.auxiliary else mine
            for index, (mine, _) in enumerate(layers)
        ]
        theirs = [teacher for _, teacher in layers]
        flows = torch.stack(
            [
                fsp_loss((adapted[i], adapted[i + 1]), (theirs[i], theirs[i + 1]), self.pool)
                for i in range(len(layers) - 1)
            ]
        )
        return {"fsp": self.weight * (flows.sum() if self.reduce == "sum" else flows.mean())}

    def task(self, step: Step) -> Losses:
        """Cross-entropy of the logits (B, K)."""
        return step.task_loss()

    def joint(self, step: Step) -> Losses:
        """Both stages' losses."""
        return step.task_loss() | self.flow(step)

    def _layers(self, student: Signals, teacher: Signals) -> list[tuple[Tensor, Tensor]]:
        return matched(features_of(student), features_of(teacher), self.depths, self.teacher_depths)
