"""A user's method, as tests write it into files."""

MY_KD = '''"""Trains the student to have the teacher's logits, without their mean."""

from __future__ import annotations

import torch.nn.functional as F

from kdbench.methods.base import Losses, Method, Paper, Step, loss_weight, method
from kdbench.methods.checks import non_negative


@method
class MyKD(Method):
    """Loss = the task's + weight * mean squared difference of the logits, each image's mean removed from them."""

    paper = Paper("An Afternoon's Idea", "Somebody", 2025)
    weight: float = loss_weight(1.0, "centred")

    def __post_init__(self) -> None:
        """Checks the range."""
        non_negative(weight=self.weight)

    def loss(self, step: Step) -> Losses:
        """Hard targets, and the teacher's logits (M, K)."""
        mine, theirs = (each.logits - each.logits.mean(dim=1, keepdim=True) for each in (step.student, step.teacher))
        return {**step.task_loss(), "centred": self.weight * F.mse_loss(mine, theirs)}
'''
