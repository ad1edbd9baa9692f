"""Distills only for the first part of training, from a teacher that may itself have been stopped early: ESKD."""

from __future__ import annotations

from collections.abc import Iterable

from optuna.distributions import FloatDistribution

from kdbench.methods.base import Losses, Method, Net, Paper, Stage, Step, method, tuned
from kdbench.methods.checks import fraction, non_negative, positive
from kdbench.methods.functional import kd_loss

EARLY = Net("teacher", copy="early")


def still_distilling(progress: float, stop: float) -> bool:
    """Whether the soft targets still take part at this share of training."""
    return progress < stop


@method
class ESKD(Method):
    """Loss = alpha * T^2 * KL + (1 - alpha) * cross-entropy up to the share `stop` of training, then cross-entropy.

    The paper's two cures for a teacher that is too good, each on its own:
    - `stop` below 1 ends distillation early; at 1 the loss is that of KD throughout.
    - `teacher_epochs` above 0 trains a teacher of the pair's architecture from random weights, by a schedule shortened
      to this share of the run's epochs, and distills from it (the paper's "15/50" in place of "60/200" is 0.25). It
      learns from the run's own labelled part alone, even where the pair's teacher was given more labels, and its cost
      is counted with the run's. At 0 the pair's teacher is taken as it is, for its training is shared by all methods of
      a suite.

    Choices: the point where distillation ends is read off curves in the paper; 0.5 is ours, and it is searched. Alpha
    and T are those of KD.
    """

    collection = "survey"
    paper = Paper(
        "On the Efficacy of Knowledge Distillation",
        "Cho, Hariharan",
        2019,
        "https://arxiv.org/abs/1910.01348",
    )
    equation = (
        r"\mathcal{L} = a(p)\,T^2\,\text{KL}(\sigma(z_t/T) \parallel \sigma(z_s/T)) + "
        r"(1-a(p))\,\mathcal{L}_{\text{task}}(z_s, y)"
        "\n"
        r"a(p) = \begin{cases} \alpha & p < \text{stop} \\ 0 & \text{otherwise} \end{cases}, \quad p = "
        r"\text{share of training done}"
    )
    temperature: float = tuned(4.0, FloatDistribution(1.0, 20.0, log=True))
    alpha: float = tuned(0.9, FloatDistribution(0.1, 1.0))
    stop: float = tuned(0.5, FloatDistribution(0.1, 1.0))
    teacher_epochs: float = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        positive(temperature=self.temperature)
        fraction(alpha=self.alpha, stop=self.stop)
        non_negative(teacher_epochs=self.teacher_epochs)

    def stages(self, teachers: tuple[Net, ...]) -> Iterable[Stage]:
        """The early teacher if there is to be one, then the student."""
        if self.teacher_epochs:
            yield Stage("teacher", self.labels_alone, (EARLY,), (), epochs=self.teacher_epochs)
            teachers = (EARLY,)
        yield Stage("train", self.loss, teachers=teachers)

    def labels_alone(self, step: Step) -> Losses:
        """Cross-entropy of the logits (B, K)."""
        return step.task_loss()

    def loss(self, step: Step) -> Losses:
        """Soft and hard targets on logits (B, K), then hard ones alone; the soft loss is still logged, at weight 0."""
        alpha = self.alpha if still_distilling(step.progress, self.stop) else 0.0
        return {
            "kd": alpha * kd_loss(step.student.logits, step.teacher.logits, self.temperature),
            **step.task_loss(1 - alpha),
        }
