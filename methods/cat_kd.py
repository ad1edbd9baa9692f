"""Makes the student look where the teacher looks for every class: class attention transfer."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.methods.base import Losses, Method, Paper, Signals, Step, loss_weight, method
from kdbench.methods.checks import non_negative, positive, require, same_batch, same_shape


def class_attention_loss(student: Tensor, teacher: Tensor, resolution: int, normalise: bool) -> Tensor:
    """Mean squared difference of class maps that are average-pooled to resolution x resolution.

    Args:
        student: (B, K, H, W), a map for each class.
        teacher: (B, K, H', W')
        resolution: height and width to which maps are pooled.
        normalise: whether each class's pooled map is divided by its L2 norm.

    Raises:
        ValueError: if they are no maps of one batch size and as many classes.
    """
    same_batch(student, teacher, dims=4)
    mine, theirs = (F.adaptive_avg_pool2d(each, resolution) for each in (student, teacher))
    same_shape(mine, theirs)
    if normalise:
        mine, theirs = (F.normalize(each.flatten(2), dim=2) for each in (mine, theirs))
    return F.mse_loss(mine, theirs)


def class_maps(signals: Signals) -> Tensor:
    """The classifier's rows times the map that it takes the mean of: (B, K, H, W), without the bias."""
    rows, head_map = require("classifier", signals.classifier), require("head_map", signals.head_map)
    return torch.einsum("kd,bdhw->bkhw", rows, head_map)


@method
class CATKD(Method):
    """Loss = cross-entropy + weight * `class_attention_loss` of the classifier's rows times the map before the pooling.

    The raw form at resolution 2 with weight 1.5 is the program's for WRN-40-2 to 40-1 on CIFAR-100; there the weight is
    0.7 for ResNet-56 to 20, 1.8 for ResNet-110 to 32, 4.5 for VGG13 to 8, 12 for WRN-40-2 to 16-2 and 15 for
    ResNet-32x4 to 8x4. Across families it normalises: at resolution 2 with 40 for ResNet-50 and 15 for VGG13 to
    MobileNetV2, at 4 with 80 for WRN-40-2 to ShuffleNetV1 and 600 for ResNet-32x4 to ShuffleNets. On ImageNet raw at 4
    with 0.5, or normalised at 2 with 10 from ResNet-50 to MobileNet.

    Departure: the program's networks have a 1x1 convolution without bias before the pooling; here they keep their
    linear classifier, whose rows are that convolution, and whose bias takes no part. A network whose classifier takes
    no mean of a map (`head_map`) is refused.
    """

    collection = "modern"
    paper = Paper(
        "Class Attention Transfer Based Knowledge Distillation",
        "Guo, Yan, Li, Lin",
        2023,
        "https://arxiv.org/abs/2304.12777",
    )
    equation: ClassVar[str] = (
        r"L = L_{task} + w \, \overline{(n(P(A_s)) - n(P(A_t)))^2}, \quad A = W F, \; F \text{ the map whose mean is "
        r"classified}, \; P \text{ pools to } r \times r, \; n(a) = a \text{ or } a / \|a\|_2"
    )
    knowledge = "feature"
    needs = frozenset({"head_map", "classifier"})
    weight: float = loss_weight(1.5, "attention")
    resolution: int = 2
    normalise: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(weight=self.weight)
        positive(resolution=self.resolution)

    def loss(self, step: Step) -> Losses:
        """Labels, and maps of all classes (B, K, H, W)."""
        apart = class_attention_loss(
            class_maps(step.student), class_maps(step.teacher), self.resolution, self.normalise
        )
        return {**step.task_loss(), "attention": self.weight * apart}
