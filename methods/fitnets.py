"""Trains the student's middle layer to predict the teacher's, then distills the whole student: FitNets."""

from __future__ import annotations

from collections.abc import Iterable

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
from kdbench.methods.checks import fraction, non_negative, positive, same_shape
from kdbench.methods.functional import at_depth, kd_loss, pooled_alike


def hint_loss(regressed: Tensor, hint: Tensor) -> Tensor:
    """Half the mean squared difference (equation 3, which sums; the mean is our normalisation).

    Args:
        regressed: (B, C, H, W), the student's guided feature through the regressor.
        hint: (B, C, H, W), the teacher's feature.

    Raises:
        ValueError: if the shapes differ.
    """
    same_shape(regressed, hint)
    return F.mse_loss(regressed, hint) / 2


def resizing_regressor(guided: Tensor, hint: Tensor) -> nn.Module:
    """From the guided map's channels and size to the hint's, then batch norm and ReLU (Tian et al. 2020).

    A map of twice or half the size is resized by the convolution; others are to be pooled alike, and it is 1x1.

    Args:
        guided: (B, C, H, W)
        hint: (B, C', H', W')
    """
    size, wanted = guided.shape[-2:], hint.shape[-2:]
    channels = guided.shape[1], hint.shape[1]
    convolution: nn.Module = nn.Conv2d(*channels, kernel_size=1)
    if size == tuple(2 * each for each in wanted):
        convolution = nn.Conv2d(*channels, kernel_size=3, stride=2, padding=1)
    elif wanted == tuple(2 * each for each in size):
        convolution = nn.ConvTranspose2d(*channels, kernel_size=4, stride=2, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(hint.shape[1]), nn.ReLU())


@method
class FitNets(Method):
    """Stage "hint": `hint_loss` alone; stage "distill": cross-entropy + a falling weight * T^2 * KL (equation 2).

    The paper adds lambda times a softened cross-entropy, with lambda from 4 to 1 at T = 3. That lacks the factor T^2 of
    our soft loss, so `weight` is 4 / 9 at first and falls linearly over the second stage to `final_share` = a quarter
    of it. The hint stage trains the layers up to the guided one and the regressor: nothing past it receives a gradient,
    and optimizers skip parameters without one (batch-norm statistics past the guided layer do move; the distill
    stage's own batches replace them).

    Departures: the regressor is a 3x3 convolution with padding, after average pooling of the larger map to the smaller;
    the paper sizes a valid convolution so that the shapes meet. The two stages share the run's epochs (`hint_epochs` of
    them for the hint), so that every method has the same budget; the paper trains each stage until validation stalls.
    `depth` names hint and guided layer by relative depth.

    `one_stage` is what other suites call FitNets (Tian et al. 2020 and programs after it): one stage of cross-entropy
    plus `hint_weight` * mean squared difference (no half), without KD. As theirs, its regressor ends in batch norm and
    ReLU, and resizes a map that is twice or half as large as the hint by itself. For other sizes theirs is a
    valid convolution; here the larger map is average-pooled and the convolution is 1x1, which for equal sizes is both.
    """

    collection = "survey"
    paper = Paper(
        "FitNets: Hints for Thin Deep Nets",
        "Romero, Ballas, Kahou, Chassang, Gatta, Bengio",
        2015,
        "https://arxiv.org/abs/1412.6550",
    )
    equation = (
        r"\mathcal{L}_1 = \frac{1}{2} \, \text{mean}\,(r(f_s) - f_t)^2"
        "\n"
        r"\mathcal{L}_2 = \mathcal{L}_{\text{task}}(z_s, y) + \lambda \, (1 + "
        r"(c-1)\,p)\,T^2\,\text{KL}(\sigma(z_t/T) \parallel \sigma(z_s/T))"
        "\n"
        r"\lambda = \text{weight}, \quad c = \text{final\_share}, \quad p = \text{share of the second stage "
        r"done}, \quad r = \text{regressor}"
    )
    knowledge = "feature"
    needs = frozenset({"features"})
    temperature: float = tuned(3.0, FloatDistribution(1.0, 20.0, log=True))
    weight: float = loss_weight(4 / 9, "kd")
    final_share: float = 0.25
    hint_epochs: float = tuned(0.3, FloatDistribution(0.1, 0.6))
    depth: float = 0.5
    one_stage: bool = False
    hint_weight: float = loss_weight(100.0, "hint")

    def __post_init__(self) -> None:
        """Checks the ranges."""
        positive(temperature=self.temperature)
        non_negative(weight=self.weight, hint_weight=self.hint_weight)
        fraction(final_share=self.final_share)
        at_depth(2, self.depth)
        if not 0 < self.hint_epochs < 1:
            raise ValueError(f"hint_epochs must lie between 0 and 1, both excluded, but got {self.hint_epochs}.")

    def space(self) -> dict[str, BaseDistribution]:
        """Temperature and length of the first stage, where there are two."""
        return {} if self.one_stage else super().space()

    def loss_weights(self) -> dict[str, tuple[str, ...]]:
        """That of the soft targets, or at once that of the hint, which has the first stage to itself otherwise."""
        return {"hint_weight": ("hint",)} if self.one_stage else {"weight": ("kd",)}

    def stages(self, teachers: tuple[Net, ...]) -> Iterable[Stage]:
        """Hint, then distill; or both at once."""
        if self.one_stage:
            return (Stage("joint", self.joint, teachers=teachers),)
        return (
            Stage("hint", self.hint, teachers=teachers, epochs=self.hint_epochs),
            Stage("distill", self.distill, teachers=teachers, epochs=1 - self.hint_epochs),
        )

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """The regressor, from the guided layer's channels to the hint's."""
        guided, hint = self._middle(student), self._middle(teachers[0])
        if self.one_stage:
            return nn.ModuleDict({"regressor": resizing_regressor(guided, hint)})
        return nn.ModuleDict({"regressor": nn.Conv2d(guided.shape[1], hint.shape[1], kernel_size=3, padding=1)})

    def hint(self, step: Step) -> Losses:
        """The regressed guided feature against the hint (B, C, H, W)."""
        guided, hint = pooled_alike(self._middle(step.student), self._middle(step.teacher))
        return {"hint": hint_loss(step.auxiliary["regressor"](guided), hint)}

    def distill(self, step: Step) -> Losses:
        """Labels, and softened logits (B, K) with the falling weight."""
        weight = self.weight * (1 + (self.final_share - 1) * step.progress)
        return {
            **step.task_loss(),
            "kd": weight * kd_loss(step.student.logits, step.teacher.logits, self.temperature),
        }

    def joint(self, step: Step) -> Losses:
        """Labels (B,) and the hint at once."""
        guided, hint = self._middle(step.student), self._middle(step.teacher)
        regressor = step.auxiliary["regressor"]
        if regressor[0].kernel_size == (1, 1):  # type: ignore[index]
            guided, hint = pooled_alike(guided, hint)
        return {**step.task_loss(), "hint": self.hint_weight * 2 * hint_loss(regressor(guided), hint)}

    def _middle(self, signals: Signals) -> Tensor:
        features = features_of(signals)
        return features[at_depth(len(features), self.depth)]
