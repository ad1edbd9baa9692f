"""Distills by targets that change during training: annealed logits, or a temperature and a weight by schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch.nn.functional as F
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from torch import Tensor

from kdbench.methods.base import Losses, Method, Net, Paper, Stage, Step, method, tuned
from kdbench.methods.checks import fraction, one_of, positive, same_shape
from kdbench.methods.functional import kd_loss
from kdbench.methods.hooks import StageOptions

SWITCH = CategoricalDistribution((True, False))
ANNEALING = frozenset({"max_temperature", "annealed"})
"""The searched hyperparameters of `form` = "annealing"; the other ones are of "practice"."""


def annealed_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: int, highest: int) -> Tensor:
    r"""Mean squared difference between the student's logits and $\frac{T}{T_{max}}$ times the teacher's.

    Args:
        student_logits: (B, K)
        teacher_logits: (B, K)
        temperature: T, 1 to `highest`.
        highest: $T_{max}$.

    Raises:
        ValueError: if the shapes differ.
    """
    same_shape(student_logits, teacher_logits)
    return F.mse_loss(student_logits, teacher_logits * (temperature / highest))


def rising_temperature(progress: float, highest: int) -> int:
    """The temperature at this share of training: 1, 2, ... `highest`, each for as long."""
    return min(highest, 1 + _times(progress * highest))


def temperature_at(progress: float, start: float, factor: float, every: float, lowest: float) -> float:
    """The temperature at this share of training: multiplied by `factor` each share `every`, never below `lowest`."""
    return max(lowest, float(start * factor ** _times(progress / every)))


def _times(quotient: float) -> int:
    """A quotient rounded down, where 0.3 / 0.1 is 3."""
    return math.floor(quotient + 1e-9)


def alpha_at(progress: float, low: float, high: float, peak: float) -> float:
    """The weight of soft targets: linear from `low` up to `high` at the share `peak` of training, then back down."""
    if progress < peak:
        return low + (high - low) * progress / peak
    return high - (high - low) * (progress - peak) / (1 - peak) if peak < 1 else high


@method
class ScheduledKD(Method):
    """Two schedules, by `form`: "annealing", the cited paper's, and "practice", which no paper describes.

    Annealing-KD, as its authors' program for CIFAR has it: in the first stage, the share `annealed` of training (200 of
    300 epochs), the loss is `annealed_loss` alone, with T from 1 to `max_temperature` (10) in equal steps; in the
    second, cross-entropy with the labels alone. Each stage has the recipe's whole schedule of learning rates.
    Departure: the program goes on from the first stage's best weights on the test images, ours from the last. Both
    numbers are searched.

    The practice: loss = alpha(t) * T(t)^2 * KL + (1 - alpha(t)) * cross-entropy; four habits, each a switch.
    - `decay`: T starts at `temperature` (5) and is halved at each share `every` of training (a quarter), but not below
      `lowest`. Without: constant.
    - `ramp`: alpha rises linearly from `alpha_low` to `alpha_high` at the share `peak` of training and falls back.
      Without: `alpha_high` throughout.
    - `normalise`: the teacher's logits are divided by their L2 norm, for each image. Off by default: targets of norm 1
      are nearly flat at T = 5, so it goes with low temperatures.
    - `clip`: the gradient norm is clipped at `clip_norm` (1).

    The practice's numbers are our choices; the switches, `temperature` and `peak` are searched, the others are not.
    """

    collection = "survey"
    paper = Paper(
        "Annealing Knowledge Distillation",
        "Jafari, Rezagholizadeh, Sharma, Ghodsi",
        2021,
        "https://arxiv.org/abs/2104.07163",
    )
    equation = (
        r"\text{annealing:} \quad \mathcal{L}_1 = \frac{1}{K} \Vert z_s - \frac{\tau}{\tau_{\max}} z_t "
        r"\Vert_2^2, \quad \tau = 1, \dots, \tau_{\max}, \quad \text{then} \quad \mathcal{L}_2 = "
        r"\mathcal{L}_{\text{task}}(z_s, y)"
        "\n"
        r"\text{practice:} \quad \mathcal{L} = \alpha(p)\,T(p)^2\,\text{KL}(\sigma(z_t/T(p)) \parallel "
        r"\sigma(z_s/T(p))) + (1-\alpha(p))\,\mathcal{L}_{\text{task}}(z_s, y)"
        "\n"
        r"\tau_{\max} = \text{max\_temperature}, \quad p = \text{share of training done}"
    )
    form: str = "annealing"
    max_temperature: int = tuned(10, IntDistribution(2, 20))
    annealed: float = tuned(2 / 3, FloatDistribution(0.2, 0.9))
    temperature: float = tuned(5.0, FloatDistribution(1.0, 20.0, log=True))
    decay: bool = tuned(True, SWITCH)
    ramp: bool = tuned(True, SWITCH)
    normalise: bool = tuned(False, SWITCH)
    clip: bool = tuned(True, SWITCH)
    peak: float = tuned(0.5, FloatDistribution(0.0, 1.0))
    alpha_low: float = 0.1
    alpha_high: float = 0.9
    factor: float = 0.5
    every: float = 0.25
    lowest: float = 1.0
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        one_of(("annealing", "practice"), form=self.form)
        positive(max_temperature=self.max_temperature, annealed=self.annealed, every=self.every)
        positive(temperature=self.temperature, lowest=self.lowest, factor=self.factor, clip_norm=self.clip_norm)
        fraction(annealed=self.annealed, peak=self.peak, alpha_low=self.alpha_low, alpha_high=self.alpha_high)

    def space(self) -> dict[str, BaseDistribution]:
        """The ranges of this form's hyperparameters."""
        own = super().space()
        return {name: own[name] for name in own if (name in ANNEALING) == (self.form == "annealing")}

    def stages(self, teachers: tuple[Net, ...]) -> Iterable[Stage]:
        """The teacher's logits and then the labels; or one stage, its gradients clipped if so switched."""
        if self.form == "practice":
            options = StageOptions(clip_norm=self.clip_norm if self.clip else 0.0)
            return (Stage("train", self.loss, teachers=teachers, options=options),)
        first = Stage("annealing", self.annealing, teachers=teachers, epochs=self.annealed)
        labels = Stage("labels", self.labels_alone, teachers=(), epochs=1 - self.annealed)
        return (first, labels) if self.annealed < 1 else (first,)

    def annealing(self, step: Step) -> Losses:
        """The teacher's logits (B, K), nearer to their full size with every step of the temperature."""
        temperature = rising_temperature(step.progress, self.max_temperature)
        loss = annealed_loss(step.student.logits, step.teacher.logits, temperature, self.max_temperature)
        return {"annealed": loss}

    def labels_alone(self, step: Step) -> Losses:
        """Cross-entropy of the logits (B, K)."""
        return step.task_loss()

    def loss(self, step: Step) -> Losses:
        """Soft and hard targets on logits (B, K), as the moment weighs them."""
        temperature, alpha, targets = self.temperature, self.alpha_high, step.teacher.logits
        if self.decay:
            temperature = temperature_at(step.progress, temperature, self.factor, self.every, self.lowest)
        if self.ramp:
            alpha = alpha_at(step.progress, self.alpha_low, self.alpha_high, self.peak)
        if self.normalise:
            targets = F.normalize(targets, dim=1)
        return {
            "kd": alpha * kd_loss(step.student.logits, targets, temperature),
            **step.task_loss(1 - alpha),
        }
