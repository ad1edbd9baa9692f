"""Trains the student on hard labels alone: the control that every table needs."""

from __future__ import annotations

from methods.base import Losses, Method, Paper, Step, method


@method
class Student(Method):
    """Cross-entropy with the labels, without a teacher.

    It is tuned under the same budget as every method (learning rate and weight decay, as the suite says), so that a
    gain over it is a gain over a tuned baseline.
    """

    paper = Paper(
        "Learning representations by back-propagating errors",
        "Rumelhart, Hinton, Williams",
        1986,
        "https://doi.org/10.1038/323533a0",
    )
    role = "control"
    knowledge = "none"
    needs_teacher = False

    def loss(self, step: Step) -> Losses:
        """Cross-entropy of the student's logits (B, K) with the labels."""
        return step.task_loss()
