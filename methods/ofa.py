"""Teaches exits at the student's stages by the teacher's predictions, with more of the label: one for all."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

from kdbench.methods.base import Losses, Method, Paper, Signals, Step, features_of, loss_weight, method, tuned
from kdbench.methods.checks import non_negative, positive, require, same_shape
from kdbench.methods.functional import one_class_each


def ofa_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    r"""$-\sum_k [(p^t_k + 1_{k=y})^\epsilon - 1_{k=y}] \log p^s_k$, mean over the batch; at T = 1.

    Args:
        student_logits: (B, K)
        teacher_logits: (B, K)
        labels: (B,) classes, or (B, K) rows with a single one.
        epsilon: above 1 the label's class weighs more the surer the teacher is.

    Raises:
        ValueError: if shapes do not fit, or there are less than two classes.
        Unsupported: if the class of a sample is mixed or lacking.
    """
    same_shape(student_logits, teacher_logits)
    label = F.one_hot(one_class_each(labels, student_logits), student_logits.shape[1]).to(student_logits.dtype)
    weights = (F.softmax(teacher_logits, dim=1) + label) ** epsilon - label
    return -(weights * F.log_softmax(student_logits, dim=1)).sum(dim=1).mean()


def separable(inputs: int, outputs: int) -> nn.Module:
    """Halves a map by depthwise and pointwise convolutions, twice, with batch norm and ReLU after each pair.

    Args:
        inputs: channels.
        outputs: channels.
    """
    layers: list[nn.Module] = []
    for stride, after in ((2, inputs), (1, outputs)):
        layers += [
            nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=False),
            nn.Conv2d(inputs, after, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


def exit_head(inputs: int, halvings: int, width: int, classes: int) -> nn.Module:
    """From a stage's map (B, inputs, H, W) to logits (B, classes), started as the program's.

    Args:
        inputs: channels of the map.
        halvings: `separable` parts, each but the last doubling channels; with none a 1x1 convolution.
        width: channels before the classifier.
        classes: K.
    """
    layers: list[nn.Module] = []
    for place in range(halvings):
        layers.append(separable(inputs, width if place == halvings - 1 else 2 * inputs))
        inputs *= 2
    layers = layers or [nn.Conv2d(inputs, width, 1)]
    head = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return head


@method
class OFA(Method):
    """Loss = cross-entropy + logit_weight * `ofa_loss` + weight * sum over exits of `ofa_loss` of their logits.

    Exits stand on four stages of the student (all, if it has fewer; no bare stem), by relative depth. An exit halves
    its map as often as stages follow, by separable convolutions, and ends in a pooling and a linear layer; in training
    alone. epsilon is 1 to 1.5 in the program's tables; its authors take weights of 0.1 for exits on CIFAR, in their
    answers to users, some of whom did not reproduce several cells. Published numbers are of CIFAR-100 at 224 pixels,
    300 epochs and a weight decay of 0.002.

    Departures: on transformers the program's exits merge patches and end in blocks; here they are the same separable
    convolutions on the maps that their tokens lie in. It takes the most likely class of a mixed label; mixed or missing
    labels are refused here.
    """

    collection = "modern"
    paper = Paper(
        "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
        "Hao, Guo, Han, Tang, Hu, Wang, Xu",
        2023,
        "https://arxiv.org/abs/2310.19444",
    )
    equation: ClassVar[str] = (
        r"L = L_{task} + w_z \, l(z_s) + w \sum_e l(z_e), \quad l(z) = -\frac{1}{B} \sum_i \sum_k "
        r"\left[(p^t_k + 1_{k=y})^\epsilon - 1_{k=y}\right] \log \mathrm{softmax}(z)_k"
    )
    needs = frozenset({"features", "pooled", "class_targets"})
    weight: float = loss_weight(1.0, "exits")
    logit_weight: float = loss_weight(1.0, "ofa")
    epsilon: float = tuned(1.0, FloatDistribution(0.8, 2.0))
    exits: int = 4

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(weight=self.weight, logit_weight=self.logit_weight)
        positive(epsilon=self.epsilon, exits=self.exits)

    def loss_weights(self) -> dict[str, tuple[str, ...]]:
        """Those that are not 0."""
        return {name: terms for name, terms in super().loss_weights().items() if getattr(self, name)}

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """An exit on each of the chosen stages."""
        maps, classes = self._maps(student), student.logits.shape[1]
        width = max(require("pooled", each.pooled).shape[1] for each in (student, teachers[0]))
        last = len(maps) - 1
        return nn.ModuleDict(
            {f"exit_{i}": exit_head(each.shape[1], last - i, width, classes) for i, each in enumerate(maps)}
        )

    def loss(self, step: Step) -> Losses:
        """Labels, and the teacher's predictions (B, K) for the student's own and for those of its exits."""
        assert isinstance(step.targets, Tensor), "class_targets are needed"
        given = step.teacher.logits, step.targets, self.epsilon
        exits = [ofa_loss(step.auxiliary[f"exit_{i}"](each), *given) for i, each in enumerate(self._maps(step.student))]
        return {
            **step.task_loss(),
            "ofa": self.logit_weight * ofa_loss(step.student.logits, *given),
            "exits": self.weight * torch.stack(exits).sum(),
        }

    def _maps(self, student: Signals) -> list[Tensor]:
        """As many stages' maps as there are exits, the last of them last."""
        maps = features_of(student)[student.stem :]
        count = min(self.exits, len(maps))
        return [maps[len(maps) * (place + 1) // count - 1] for place in range(count)]
