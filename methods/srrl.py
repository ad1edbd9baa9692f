"""Makes the student's features, through the teacher's classifier, give the teacher's logits: softmax regression."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.methods.base import Losses, Method, Paper, Signals, Step, loss_weight, method
from kdbench.methods.checks import non_negative, require, same_batch, same_shape


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the maps' means over positions.

    Args:
        student: (B, C, H, W)
        teacher: (B, C, H', W')

    Raises:
        ValueError: if they are no maps of one batch size and as many channels.
    """
    same_batch(student, teacher, dims=4)
    mine, theirs = (each.mean(dim=(2, 3)) for each in (student, teacher))
    same_shape(mine, theirs)
    return F.mse_loss(mine, theirs)


def regression_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean squared difference of the teacher's logits, and of its classifier's on the student's features.

    Args:
        student_logits: (B, K)
        teacher_logits: (B, K)

    Raises:
        ValueError: if the shapes differ.
    """
    same_shape(student_logits, teacher_logits)
    return F.mse_loss(student_logits, teacher_logits)


@method
class SRRL(Method):
    """Loss = cross-entropy + feature_weight * `feature_loss` + weight * `regression_loss`.

    The student's map goes through a 1x1 convolution, batch norm and ReLU to the teacher's channels; the regression is
    of the teacher's classifier, with its bias, on the mean of that. Weights of 1 are the program's for ImageNet; for
    CIFAR-100 a rival suite takes 5 for the regression.

    Maps are those whose mean the classifier takes (`head_map`); a network that has none is refused. SimKD's suite
    projects the pooled vector instead, so that ReLU follows the mean; the program's form is here.
    """

    collection = "modern"
    paper = Paper(
        "Knowledge Distillation via Softmax Regression Representation Learning",
        "Yang, Martinez, Bulat, Tzimiropoulos",
        2021,
        "https://openreview.net/forum?id=ZzwDy_wiWv",
    )
    equation: ClassVar[str] = (
        r"L = L_{task} + w_f \, \overline{(r - v)^2} + w \, \overline{(W_t r + b_t - z_t)^2}, "
        r"\quad r = \overline{\mathrm{ReLU}(\mathrm{BN}(C f))}^{HW}, \; v = \text{pooled features of the teacher}"
    )
    knowledge = "feature"
    needs = frozenset({"head_map", "classifier", "classifier_bias"})
    weight: float = loss_weight(1.0, "regression")
    feature_weight: float = loss_weight(1.0, "feature")

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(weight=self.weight, feature_weight=self.feature_weight)

    def loss_weights(self) -> dict[str, tuple[str, ...]]:
        """Those that are not 0."""
        return {name: terms for name, terms in super().loss_weights().items() if getattr(self, name)}

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """The connector from the student's channels to the teacher's."""
        mine, theirs = (require("head_map", each.head_map).shape[1] for each in (student, teachers[0]))
        convolution = nn.Conv2d(mine, theirs, kernel_size=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        return nn.ModuleDict({"connector": nn.Sequential(convolution, nn.BatchNorm2d(theirs), nn.ReLU())})

    def loss(self, step: Step) -> Losses:
        """Labels, pooled features (B, D), and logits (B, K) of the teacher's classifier."""
        mine = step.auxiliary["connector"](require("head_map", step.student.head_map))
        theirs, teacher = require("head_map", step.teacher.head_map), step.teacher
        rows, bias = require("classifier", teacher.classifier), require("classifier_bias", teacher.classifier_bias)
        logits = F.linear(mine.mean(dim=(2, 3)), rows, bias)
        return {
            **step.task_loss(),
            "feature": self.feature_weight * feature_loss(mine, theirs),
            "regression": self.weight * regression_loss(logits, teacher.logits),
        }
