"""Distills with a temperature and a weight that change during training, as practitioners report doing."""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from optuna.distributions import CategoricalDistribution, FloatDistribution

from methods.base import Losses, Method, Net, Paper, Stage, Step, method, tuned
from methods.checks import fraction, positive
from methods.functional import kd_loss
from methods.hooks import StageOptions

SWITCH = CategoricalDistribution((True, False))


def temperature_at(epoch: float, start: float, factor: float, every: float, lowest: float) -> float:
    """The temperature after so many epochs: multiplied by `factor` each `every` epochs, never below `lowest`."""
    return max(lowest, float(start * factor ** (epoch // every)))


def alpha_at(progress: float, low: float, high: float, peak: float) -> float:
    """The weight of soft targets: linear from `low` up to `high` at the share `peak` of training, then back down."""
    if progress < peak:
        return low + (high - low) * progress / peak
    return high - (high - low) * (progress - peak) / (1 - peak) if peak < 1 else high


@method
class ScheduledKD(Method):
    """Loss = alpha(t) * T(t)^2 * KL + (1 - alpha(t)) * cross-entropy; four habits of practice, each a switch.

    - `decay`: T starts at `temperature` (5) and is halved every 10 epochs, but not below `lowest`. Without: constant.
    - `ramp`: alpha rises linearly from `alpha_low` to `alpha_high` at the share `peak` of training and falls back.
      Without: `alpha_high` throughout.
    - `normalise`: the teacher's logits are divided by their L2 norm, for each image. Off by default: targets of norm 1
      are nearly flat at T = 5, so it goes with low temperatures.
    - `clip`: the gradient norm is clipped at 1.

    There is no single paper: temperature that decays is described by Jafari et al. (2021, "Annealing Knowledge
    Distillation"), which is cited here. The end values of alpha and T are our choices; all are searched.
    """

    paper = Paper(
        "Annealing Knowledge Distillation",
        "Jafari, Rezagholizadeh, Sharma, Ghodsi",
        2021,
        "https://arxiv.org/abs/2104.07163",
    )
    temperature: float = tuned(5.0, FloatDistribution(1.0, 20.0, log=True))
    decay: bool = tuned(True, SWITCH)
    ramp: bool = tuned(True, SWITCH)
    normalise: bool = tuned(False, SWITCH)
    clip: bool = tuned(True, SWITCH)
    peak: float = tuned(0.5, FloatDistribution(0.0, 1.0))
    alpha_low: float = 0.1
    alpha_high: float = 0.9
    factor: float = 0.5
    every: float = 10.0
    lowest: float = 1.0
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        positive(temperature=self.temperature, every=self.every, lowest=self.lowest, factor=self.factor)
        positive(clip_norm=self.clip_norm)
        fraction(peak=self.peak, alpha_low=self.alpha_low, alpha_high=self.alpha_high)

    def stages(self, teachers: tuple[Net, ...]) -> Iterable[Stage]:
        """One stage, its gradients clipped if so switched."""
        return (
            Stage(
                "train",
                self.loss,
                teachers=teachers,
                options=StageOptions(clip_norm=self.clip_norm if self.clip else 0.0),
            ),
        )

    def loss(self, step: Step) -> Losses:
        """Soft and hard targets on logits (B, K), as the moment weighs them."""
        temperature, alpha, targets = self.temperature, self.alpha_high, step.teacher.logits
        if self.decay:
            temperature = temperature_at(step.epoch, temperature, self.factor, self.every, self.lowest)
        if self.ramp:
            alpha = alpha_at(step.progress, self.alpha_low, self.alpha_high, self.peak)
        if self.normalise:
            targets = F.normalize(targets, dim=1)
        return {
            "kd": alpha * kd_loss(step.student.logits, targets, temperature),
            **step.task_loss(1 - alpha),
        }
