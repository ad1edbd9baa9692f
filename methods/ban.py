"""Trains a student, then generations of the same architecture, each from the one before: born-again networks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from optuna.distributions import FloatDistribution

from kdbench.methods.base import Losses, Method, Net, Paper, Stage, Step, method, tuned
from kdbench.methods.checks import fraction, positive
from kdbench.methods.functional import kd_loss


@method
class BAN(Method):
    """Generation 0: cross-entropy. Later ones: label_weight * cross-entropy + KL from the one before, both at T = 1.

    The divergence has the gradient of the paper's cross-entropy with the teacher's outputs. `label_weight` = 1 is its
    sum of both, 0 the outputs alone; between them it is searched. All generations have the student's architecture,
    start from random weights and have the whole schedule each; the last one is the run's result.

    Departures: one generation after the first is the default, where the paper has up to three; more are a matter of
    compute, so their number is not searched. Its ensemble of all generations, a result of its own, is not scored:
    predictions are made of one network. The paper's weights of images by the teacher's confidence, and permuted
    outputs, are not here. The pair's teacher takes no part.
    """

    collection = "modern"
    paper = Paper(
        "Born Again Neural Networks",
        "Furlanello, Lipton, Tschannen, Itti, Anandkumar",
        2018,
        "https://arxiv.org/abs/1805.04770",
    )
    equation: ClassVar[str] = (
        r"L_0 = L_{task}, \quad L_{g > 0} = \lambda L_{task} + \mathrm{KL}(\mathrm{softmax}(z_{g-1}) \,\|\, "
        r"\mathrm{softmax}(z_g))"
    )
    needs_teacher = False
    label_weight: float = tuned(1.0, FloatDistribution(0.0, 1.0))
    generations: int = 1
    generation_epochs: float = 1.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        fraction(label_weight=self.label_weight)
        positive(generation_epochs=self.generation_epochs, generations=self.generations)

    def stages(self, teachers: tuple[Net, ...]) -> Iterable[Stage]:
        """The first generation on labels, then each from the one before."""
        epochs = self.generation_epochs
        teacher = Net("student", copy="gen_0")
        yield Stage("gen_0", self.labels_alone, (teacher,), (), epochs=epochs)
        for generation in range(1, self.generations + 1):
            student = Net("student", copy="" if generation == self.generations else f"gen_{generation}")
            yield Stage(f"gen_{generation}", self.loss, (student,), (teacher,), epochs=epochs)
            teacher = student

    def labels_alone(self, step: Step) -> Losses:
        """Cross-entropy of the logits (B, K)."""
        return step.task_loss()

    def loss(self, step: Step) -> Losses:
        """Labels, and the outputs (B, K) of the generation before."""
        soft = kd_loss(step.student.logits, step.teacher.logits, temperature=1.0)
        return {**step.task_loss(self.label_weight), "kd": soft}
