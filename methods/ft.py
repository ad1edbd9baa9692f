"""Makes the factors of the student's last map those that a paraphraser found in the teacher's: factor transfer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.methods.base import Losses, Method, Net, Paper, Signals, Stage, Step, features_of, loss_weight, method
from kdbench.methods.checks import non_negative, positive, same_shape
from kdbench.methods.functional import at_depth, pooled_alike

SLOPE = 0.1
"""Of the activations below zero."""


def factor_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference of factors, each image's divided by its L2 norm over channels and positions.

    Args:
        student: (B, C, H, W)
        teacher: (B, C, H, W)

    Raises:
        ValueError: if the shapes differ.
    """
    same_shape(student, teacher)
    mine, theirs = (F.normalize(each.flatten(1), dim=1) for each in (student, teacher))
    return F.l1_loss(mine, theirs)


def convolutions(*channels: int, transposed: bool = False) -> nn.Sequential:
    """3x3 convolutions that keep the size, a leaky ReLU after each.

    Args:
        channels: before the first and after each.
        transposed: whether they are transposed ones.
    """
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layers: list[nn.Module] = []
    for before, after in zip(channels, channels[1:], strict=False):
        layers += [kind(before, after, kernel_size=3, padding=1), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers)


@method
class FT(Method):
    """Stage 1: a paraphraser learns to give the teacher's last map back. Stage 2: labels + weight * `factor_loss`.

    The paraphraser's three convolutions make factors of `rate` times the map's channels, its three transposed ones the
    map again; the mean absolute difference trains it, and nothing else learns in that stage. Then it is fixed, and
    a translator of three convolutions makes factors of the student's map. weight = 500 with the norm over channels and
    positions and p = 1 is the authors' program's. In Tian et al. (2020) the loss is another (channel means of squares
    first) with a weight of 200, batch norm in the translator, and a squared difference in stage 1.

    Departures: stage 1 takes `paraphraser_epochs` of the budget, so that every method has as much. In it the student's
    batch norm moves, as it sees the images. The larger of two maps is average-pooled, the student's before the
    translator. `depth` names the maps by relative depth.
    """

    collection = "modern"
    paper = Paper(
        "Paraphrasing Complex Network: Network Compression via Factor Transfer",
        "Kim, Park, Kwak",
        2018,
        "https://arxiv.org/abs/1802.04977",
    )
    equation: ClassVar[str] = (
        r"L_1 = \overline{|D(E(g)) - g|}"
        "\n"
        r"L_2 = L_{task} + w \, \overline{\left| \frac{T(f)}{\|T(f)\|_2} - \frac{E(g)}{\|E(g)\|_2} \right|}, "
        r"\quad E, D \text{ the paraphraser}, \; T \text{ the translator}"
    )
    knowledge = "feature"
    needs = frozenset({"features"})
    weight: float = loss_weight(500.0, "ft")
    rate: float = 0.5
    paraphraser_epochs: float = 30 / 240
    depth: float = 1.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(weight=self.weight)
        positive(rate=self.rate)
        at_depth(2, self.depth)
        if not 0 < self.paraphraser_epochs < 1:
            rule = "paraphraser_epochs must lie between 0 and 1, both excluded"
            raise ValueError(f"{rule}, but got {self.paraphraser_epochs}.")

    def stages(self, teachers: tuple[Net, ...]) -> Iterable[Stage]:
        """Paraphrase, then transfer."""
        return (
            Stage("paraphrase", self.paraphrase, teachers=teachers, epochs=self.paraphraser_epochs),
            Stage("transfer", self.loss, teachers=teachers, epochs=1 - self.paraphraser_epochs),
        )

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """Both halves of the paraphraser, and the translator."""
        mine, theirs = self._map(student).shape[1], self._map(teachers[0]).shape[1]
        factors = max(1, int(self.rate * theirs))
        return nn.ModuleDict(
            {
                "encoder": convolutions(theirs, theirs, factors, factors),
                "decoder": convolutions(factors, factors, theirs, theirs, transposed=True),
                "translator": convolutions(mine, mine, factors, factors),
            }
        )

    def paraphrase(self, step: Step) -> Losses:
        """The teacher's map (B, C, H, W) and what the paraphraser gives back."""
        theirs = self._map(step.teacher)
        return {"paraphrase": F.l1_loss(step.auxiliary["decoder"](step.auxiliary["encoder"](theirs)), theirs)}

    def loss(self, step: Step) -> Losses:
        """Labels, and factors of both maps."""
        factors = step.auxiliary["encoder"](self._map(step.teacher)).detach()
        mine, factors = pooled_alike(self._map(step.student), factors)
        return {**step.task_loss(), "ft": self.weight * factor_loss(step.auxiliary["translator"](mine), factors)}

    def _map(self, signals: Signals) -> Tensor:
        features = features_of(signals)
        return features[at_depth(len(features), self.depth)]
