"""Teaches each assistant, and the student, by the teacher and all larger assistants at once: dense guidance."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from optuna.distributions import FloatDistribution

from kdbench.methods.base import STUDENT, Losses, Method, Net, Paper, Signals, Stage, Step, method, tuned
from kdbench.methods.checks import fraction, positive
from kdbench.methods.functional import kd_loss
from kdbench.methods.takd import chain


@method
class DGKD(Method):
    """Loss of every stage = (1 - alpha) * cross-entropy + alpha * sum of T^2 * KL from teacher and assistants so far.

    `architectures` names the assistants' models, from the largest to the smallest; an empty name is the student's own.
    Of two or more networks that teach, one is left out at random in each batch, with `drop`. alpha = 1, without labels,
    is the program's default; its released script stops on a flag with a wrong name.

    Each assistant has `assistant_epochs` of a run's budget besides the student's own, which published tables do not
    show; a run's epochs and costs count them. Departure: one assistant is the default, where the paper has up to five.
    """

    collection = "modern"
    paper = Paper(
        "Densely Guided Knowledge Distillation using Multiple Teacher Assistants",
        "Son, Na, Choi, Hwang",
        2021,
        "https://arxiv.org/abs/2009.08825",
    )
    equation: ClassVar[str] = (
        r"L_n = (1 - \alpha) L_{task} + \alpha \sum_{m < n, \, m \ne d} T^2 \, \mathrm{KL}\left(\mathrm{softmax}"
        r"(z_m / T) \,\|\, \mathrm{softmax}(z_n / T)\right), \quad d \text{ drawn for each batch}"
    )
    temperature: float = tuned(4.0, FloatDistribution(1.0, 20.0, log=True))
    alpha: float = tuned(1.0, FloatDistribution(0.05, 1.0))
    architectures: tuple[str, ...] = ("",)
    assistant_epochs: float = 1.0
    drop: bool = True

    def __post_init__(self) -> None:
        """Checks the ranges."""
        positive(temperature=self.temperature, assistant_epochs=self.assistant_epochs)
        fraction(alpha=self.alpha)
        if not self.architectures:
            raise ValueError("architectures must name at least one assistant, but is empty.")

    def assistants(self) -> dict[str, str]:
        """The assistants' architectures."""
        return {net.model: name for net, name in zip(chain(self.architectures), self.architectures, strict=True)}

    def stages(self, teachers: tuple[Net, ...]) -> Iterable[Stage]:
        """Each network from all before."""
        taught_by = teachers
        for net in chain(self.architectures):
            yield Stage(net.model, self.loss, (net,), taught_by, epochs=self.assistant_epochs)
            taught_by = (*taught_by, net)
        yield Stage("train", self.loss, (STUDENT,), taught_by)

    def loss(self, step: Step) -> Losses:
        """Labels, and the softened logits (B, K) of those that teach in this batch."""
        soft = [kd_loss(step.student.logits, each.logits, self.temperature) for each in self._heard(step.teachers)]
        return {**step.task_loss(1 - self.alpha), "kd": self.alpha * torch.stack(soft).sum()}

    def _heard(self, teachers: tuple[Signals, ...]) -> list[Signals]:
        """All that teach but one drawn, if there are several."""
        heard = list(teachers)
        if self.drop and len(heard) > 1:
            del heard[int(torch.randint(len(heard), ()))]
        return heard
