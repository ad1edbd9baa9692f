"""Trains the student's middle layer to predict the teacher's, then distills the whole student: FitNets."""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

from methods.base import Losses, Method, Net, Paper, Signals, Stage, Step, features_of, method, tuned
from methods.checks import non_negative, positive, same_shape
from methods.functional import at_depth, kd_loss, pooled_alike


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


@method
class FitNets(Method):
    """Stage "hint": `hint_loss` alone; stage "distill": cross-entropy + lambda * softened cross-entropy (equation 2).

    lambda falls linearly from 4 to 1 over the second stage, as in the paper. The hint stage trains the layers up to the
    guided one and the regressor: nothing past it receives a gradient, and optimizers skip parameters without one
    (batch-norm statistics past the guided layer do move; the distill stage's own batches replace them).

    Departures: the softened cross-entropy is written as T^2 * KL, which has the same gradient up to T^2 and keeps the
    weight meaningful over T. The regressor is a 3x3 convolution with padding, after average pooling of the larger map
    to the smaller; the paper sizes a valid convolution so that the shapes meet. The two stages share the run's epochs
    (`hint_epochs` of them for the hint), so that every method has the same budget; the paper trains each stage until
    validation stalls. `depth` names hint and guided layer by relative depth.

    `one_stage` is what other suites call FitNets (Tian et al. 2020 and programs after it): one stage of cross-entropy
    plus `hint_weight` * mean squared difference (no half), without KD.
    """

    paper = Paper(
        "FitNets: Hints for Thin Deep Nets",
        "Romero, Ballas, Kahou, Chassang, Gatta, Bengio",
        2015,
        "https://arxiv.org/abs/1412.6550",
    )
    knowledge = "feature"
    needs = frozenset({"features"})
    temperature: float = tuned(3.0, FloatDistribution(1.0, 20.0, log=True))
    weight_start: float = tuned(4.0, FloatDistribution(1.0, 10.0, log=True))
    weight_end: float = 1.0
    hint_epochs: float = 0.3
    depth: float = 0.5
    one_stage: bool = False
    hint_weight: float = 100.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        positive(temperature=self.temperature)
        non_negative(weight_start=self.weight_start, weight_end=self.weight_end, hint_weight=self.hint_weight)
        at_depth(2, self.depth)
        if not 0 < self.hint_epochs < 1:
            raise ValueError(f"hint_epochs must lie between 0 and 1, both excluded, but got {self.hint_epochs}.")

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
        return nn.ModuleDict({"regressor": nn.Conv2d(guided.shape[1], hint.shape[1], kernel_size=3, padding=1)})

    def hint(self, step: Step) -> Losses:
        """The regressed guided feature against the hint (B, C, H, W)."""
        guided, hint = self._middle(step.student), self._middle(step.teacher)
        guided, hint = pooled_alike(guided, hint)
        return {"hint": hint_loss(step.auxiliary["regressor"](guided), hint)}

    def distill(self, step: Step) -> Losses:
        """Labels, and softened logits (B, K) with the falling weight."""
        weight = self.weight_start + (self.weight_end - self.weight_start) * step.progress
        return {
            **step.task_loss(),
            "kd": weight * kd_loss(step.student.logits, step.teacher.logits, self.temperature),
        }

    def joint(self, step: Step) -> Losses:
        """Labels (B,) and the hint at once."""
        hint = self.hint_weight * 2 * self.hint(step)["hint"]
        return {**step.task_loss(), "hint": hint}

    def _middle(self, signals: Signals) -> Tensor:
        features = features_of(signals)
        return features[at_depth(len(features), self.depth)]
