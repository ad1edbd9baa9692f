"""Trains an assistant between teacher and student first, and the student from it: teacher assistants."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from optuna.distributions import FloatDistribution

from kdbench.methods.base import STUDENT, Losses, Method, Net, Paper, Stage, Step, method, tuned
from kdbench.methods.checks import fraction, positive
from kdbench.methods.functional import kd_loss


def chain(names: tuple[str, ...]) -> tuple[Net, ...]:
    """The assistants' networks, from the first to be trained to the last, for as many architectures."""
    return tuple(Net(f"assistant_{place + 1}") for place in range(len(names)))


@method
class TAKD(Method):
    """Loss of every stage = (1 - alpha) * cross-entropy + alpha * T^2 * KL from the network before.

    `architectures` names the assistants' models, from the largest to the smallest, as ["cifar_resnet14"]; each learns
    from the one before, the first from the teacher, and the student from the last. An empty name is the student's own
    architecture, which is the default where none between is known: name one. Each assistant has `assistant_epochs` of
    a run's budget besides the student's own, which published tables do not show; a run's epochs and costs count them.

    Departures: alpha (0.05 to 1) and T (1 to 20) were tuned by the paper on test accuracy; the defaults here are KD's.
    The program averages the divergence over classes too, which is 1/K of this; it starts ResNets' learning rate at a
    tenth by a comparison of the epoch with half of itself, and reports the best test epoch. None is copied.
    """

    collection = "modern"
    paper = Paper(
        "Improved Knowledge Distillation via Teacher Assistant",
        "Mirzadeh, Farajtabar, Li, Levine, Matsukawa, Ghasemzadeh",
        2020,
        "https://arxiv.org/abs/1902.03393",
    )
    equation: ClassVar[str] = (
        r"L_n = (1 - \alpha) L_{task} + \alpha \, T^2 \, \mathrm{KL}\left(\mathrm{softmax}(z_{n-1} / T) \,\|\, "
        r"\mathrm{softmax}(z_n / T)\right), \quad n = 0 \text{ the teacher, then assistants, then the student}"
    )
    temperature: float = tuned(4.0, FloatDistribution(1.0, 20.0, log=True))
    alpha: float = tuned(0.9, FloatDistribution(0.05, 1.0))
    architectures: tuple[str, ...] = ("",)
    assistant_epochs: float = 1.0

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
        """Each network from the one before."""
        taught_by = teachers
        for net in chain(self.architectures):
            yield Stage(net.model, self.loss, (net,), taught_by, epochs=self.assistant_epochs)
            taught_by = (net,)
        yield Stage("train", self.loss, (STUDENT,), taught_by)

    def loss(self, step: Step) -> Losses:
        """Labels, and the softened logits (B, K) of the network before."""
        soft = kd_loss(step.student.logits, step.teacher.logits, self.temperature)
        return {**step.task_loss(1 - self.alpha), "kd": self.alpha * soft}
