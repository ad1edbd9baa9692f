"""Distills at a temperature that is trained to make the task harder, more and more: curriculum temperature."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

from kdbench.methods.base import Losses, Method, Paper, Signals, Step, loss_weight, method, tuned
from kdbench.methods.checks import fraction, non_negative, one_of, positive
from kdbench.methods.dkd import dkd_loss
from kdbench.methods.functional import kd_loss

RAMP = 10 / 240
"""The program's 10 of 240 epochs."""


def reversal(progress: float, ramp: float) -> float:
    """By how much the temperature's gradient is reversed: (1 - cos(pi * progress / ramp)) / 2, from 0 to 1."""
    return (1 - math.cos(math.pi * min(progress / ramp, 1.0))) / 2 if ramp else 1.0


class CurriculumTemperature(nn.Module):
    """T = lowest + span * sigmoid(theta), whose gradient is turned around."""

    def __init__(self, lowest: float, span: float) -> None:
        """Starts at theta = 1.

        Args:
            lowest: of the temperatures.
            span: between the lowest and the highest.
        """
        super().__init__()
        self.theta = nn.Parameter(torch.ones(()))
        self.lowest, self.span = lowest, span

    def forward(self, strength: float) -> Tensor:
        """The temperature, a tensor without dimensions; theta's gradient is multiplied by -strength."""
        fixed = self.theta.detach()
        theta: Tensor = fixed - strength * (self.theta - fixed)
        return self.lowest + self.span * theta.sigmoid()


@method
class CTKD(Method):
    """Loss = hard_weight * cross-entropy + weight * T^2 * KL at a trained T, whose gradient is reversed.

    T = lowest + span * sigmoid(theta), from 1 to 21 by default. theta is one number, starts at 1 (T = 15.6) and is
    trained with the student, but to make the loss larger: its gradient, which passes through the factor T^2 too, is
    multiplied by -(1 - cos(pi * min(progress / ramp, 1))) / 2. So the student's task begins easy and becomes harder. It
    shares optimizer and weight decay with the student, as in the program. hard_weight = 0.1, weight = 0.9 and `ramp`,
    10 of 240 epochs, are the program's for CIFAR-100; on ImageNet both weights are 1 and the ramp is 5 epochs.

    `base` = "dkd" adds the temperature to `dkd_loss` with `alpha` = 1 and `beta` = 8, which are not read otherwise;
    set both weights to 1 with it.

    Departures: the ramp is a share of training and rises with every update, the program's by epochs from 1. Only the
    global form is here, as in the program, not the paper's temperature for each image. A copy of the program in another
    work reversed the flag for standardised logits; there is no such flag here.
    """

    collection = "modern"
    paper = Paper(
        "Curriculum Temperature for Knowledge Distillation",
        "Li, Li, Yang, Zhao, Song, Luo, Li, Yang",
        2023,
        "https://arxiv.org/abs/2211.16231",
    )
    equation: ClassVar[str] = (
        r"L = h L_{task} + w T^2 \, \mathrm{KL}\left(\mathrm{softmax}(z_t / T) \| \mathrm{softmax}(z_s / T)\right), "
        r"\quad T = T_0 + \Delta \, \sigma(\theta), \quad \theta \leftarrow \theta "
        r"+ \eta \, \frac{1 - \cos(\pi \min(\tau / r, 1))}{2} \, \frac{\partial L}{\partial \theta}"
    )
    weight: float = loss_weight(0.9, "kd")
    hard_weight: float = 0.1
    lowest: float = 1.0
    span: float = tuned(20.0, FloatDistribution(5.0, 40.0, log=True))
    ramp: float = RAMP
    base: str = "kd"
    alpha: float = 1.0
    beta: float = 8.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(weight=self.weight, hard_weight=self.hard_weight, alpha=self.alpha, beta=self.beta)
        positive(lowest=self.lowest, span=self.span)
        fraction(ramp=self.ramp)
        one_of(("kd", "dkd"), base=self.base)

    def needed(self) -> frozenset[str]:
        """The label's class, where it is told from the others."""
        return frozenset({"class_targets"}) if self.base == "dkd" else self.needs

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """The temperature."""
        return nn.ModuleDict({"temperature": CurriculumTemperature(self.lowest, self.span)})

    def loss(self, step: Step) -> Losses:
        """Labels, and soft targets (B, K) at the temperature of the moment."""
        student, teacher = step.student.logits, step.teacher.logits
        temperature = step.auxiliary["temperature"](reversal(step.progress, self.ramp))
        if self.base == "kd":
            soft = kd_loss(student, teacher, temperature)
        else:
            assert isinstance(step.targets, Tensor), "class_targets are needed"
            soft = dkd_loss(student, teacher, step.targets, temperature, self.alpha, self.beta)
        return {**step.task_loss(self.hard_weight), "kd": self.weight * soft}
