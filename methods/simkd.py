"""Gives the student the teacher's classifier, and trains it to give that the features it knows: SimKD."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.methods.base import Losses, Method, Paper, Signals, Step, method
from kdbench.methods.checks import positive, require, same_shape


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of maps.

    Args:
        student: (B, D, H, W), through the projector.
        teacher: (B, D, H, W)

    Raises:
        ValueError: if the shapes differ.
    """
    same_shape(student, teacher)
    return F.mse_loss(student, teacher)


class Projector(nn.Module):
    """From the student's map to the teacher's: 1x1, 3x3 and 1x1 convolutions, batch norm and ReLU after each."""

    def __init__(self, inputs: int, outputs: int, side: int, factor: int) -> None:
        """Builds the layers.

        Args:
            inputs: channels of the student's map.
            outputs: channels of the teacher's.
            side: height of the teacher's map, to which a larger one of the student is pooled first.
            factor: by which the layers between have fewer channels than the teacher.
        """
        super().__init__()
        waist, self.side = max(1, outputs // factor), side
        layers: list[nn.Module] = []
        for before, after, kernel in ((inputs, waist, 1), (waist, waist, 3), (waist, outputs, 1)):
            convolution = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, feature: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, h, w), where h and w are at most the teacher's."""
        if feature.shape[2] > self.side:
            feature = F.adaptive_avg_pool2d(feature, self.side)
        projected: Tensor = self.layers(feature)
        return projected


class FrozenHead(nn.Module):
    """A copy of the teacher's classifier on the mean of a map; its parameters are not trained."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Copies rows (K, D) and bias (K,)."""
        super().__init__()
        self.weight, self.bias = (nn.Parameter(each.detach().clone(), requires_grad=False) for each in (weight, bias))

    def forward(self, feature: Tensor) -> Tensor:
        """Logits (B, K) of a map (B, D, H, W)."""
        return F.linear(feature.mean(dim=(2, 3)), self.weight, self.bias)


@method
class SimKD(Method):
    """Loss = `feature_loss` of the projected map before the student's pooling and the teacher's; no labels, no logits.

    What is deployed is the student up to that map, the projector, and the teacher's classifier, frozen: the prediction
    is theirs, and so are the parameters, multiply-adds and latency that are reported. The student's own classifier is
    neither trained nor used. The larger map is average-pooled to the other's size, the student's before the projector.
    There is no weight to tune; a fine-tuning on labels trains student and projector.

    Maps are those whose mean the classifier takes (`head_map`), after their ReLU, as the projector ends in one; where a
    class token or a norm stands between map and classifier, the network is refused. The paper's table gives its rivals
    both cross-entropy and KD.
    """

    collection = "modern"
    paper = Paper(
        "Knowledge Distillation with the Reused Teacher Classifier",
        "Chen, Mei, Zhang, Wang, Feng, Chen",
        2022,
        "https://arxiv.org/abs/2203.14001",
    )
    equation: ClassVar[str] = (
        r"L = \overline{(P(f) - g)^2}, \quad \text{deployed: } W_t \, \overline{P(f)}^{HW} + b_t, "
        r"\quad P = \text{ReLU BN } C_{1 \times 1} \text{ ReLU BN } C_{3 \times 3} \text{ ReLU BN } C_{1 \times 1}"
    )
    knowledge = "feature"
    deploys_modules = True
    needs = frozenset({"head_map", "classifier", "classifier_bias"})
    factor: int = 2

    def __post_init__(self) -> None:
        """Checks the range."""
        positive(factor=self.factor)

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """The projector, and the teacher's head."""
        mine, theirs = (require("head_map", each.head_map) for each in (student, teachers[0]))
        head = (
            require("classifier", teachers[0].classifier),
            require("classifier_bias", teachers[0].classifier_bias),
        )
        projector = Projector(mine.shape[1], theirs.shape[1], theirs.shape[2], self.factor)
        return nn.ModuleDict({"projector": projector, "head": FrozenHead(*head)})

    def predictions(self, student: Signals, auxiliary: nn.ModuleDict) -> dict[str, Tensor]:
        """Logits (B, K) of the teacher's head on the projected map."""
        return {"logits": auxiliary["head"](auxiliary["projector"](require("head_map", student.head_map)))}

    def loss(self, step: Step) -> Losses:
        """The projected map against the teacher's (B, D, H, W)."""
        projected = step.auxiliary["projector"](require("head_map", step.student.head_map))
        theirs = require("head_map", step.teacher.head_map)
        if theirs.shape[2:] != projected.shape[2:]:
            theirs = F.adaptive_avg_pool2d(theirs, projected.shape[2:])
        return {"feature": feature_loss(projected, theirs)}
