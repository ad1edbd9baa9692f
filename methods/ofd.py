"""Makes a student's maps before activations the teacher's where these matter: the overhaul of feature distillation."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdbench.methods.base import Losses, Method, Paper, Signals, Step, Unsupported, loss_weight, method
from kdbench.methods.checks import non_negative, require, same_shape
from kdbench.methods.functional import even_pairs, pooled_alike

RARE = 1e-3
"""The probability of a negative value up to which its mean is not computed."""
DEVIATIONS = 3.0
"""How far below zero the margin is there, in standard deviations."""


def margin(weight: Tensor, bias: Tensor) -> Tensor:
    """Mean (C,) of a channel's values below zero, each normal with the batch norm's bias and weight; float64 inside.

    Where a value is below zero with a probability of at most 0.001, it is -3 standard deviations.

    Args:
        weight: (C,) of the batch norm, whose size is the standard deviation.
        bias: (C,), the mean.
    """
    deviation = weight.double().abs().clamp_min(torch.finfo(torch.float64).tiny)
    mean = bias.double()
    apart = mean / deviation
    below = torch.special.ndtr(-apart)
    density = (-apart.square() / 2).exp() / math.sqrt(2 * math.pi)
    expected = mean - deviation * density / below.clamp_min(RARE)
    return torch.where(below > RARE, expected, -DEVIATIONS * deviation).to(weight.dtype)


def overhaul_loss(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Sum of (student - g)^2 with g = max(teacher, margin), but where both are below zero and the student is not above.

    Args:
        student: (B, C, H, W), before the activation.
        teacher: (B, C, H, W), likewise.
        margin: (1, C, 1, 1)

    Raises:
        ValueError: if the shapes differ.
    """
    same_shape(student, teacher)
    wanted = torch.maximum(teacher, margin)
    counts = (student > wanted) | (wanted > 0)
    return ((student - wanted).square() * counts).sum()


def connector(inputs: int, outputs: int) -> nn.Module:
    """A 1x1 convolution without bias and a batch norm, as the program starts them.

    Args:
        inputs: channels of the student's map.
        outputs: channels of the teacher's.
    """
    convolution = nn.Conv2d(inputs, outputs, kernel_size=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


class Margins(nn.Module):
    """The teacher's margins, one for each channel of each map; they follow from its weights and are no state."""

    def __init__(self, margins: list[Tensor]) -> None:
        """Keeps margins (C_i,)."""
        super().__init__()
        for place, each in enumerate(margins):
            self.register_buffer(f"stage_{place}", each[None, :, None, None], persistent=False)


@method
class OFD(Method):
    """Loss = cross-entropy + weight / B * sum over stages, halved from the last one on, of `overhaul_loss`.

    The student's maps go through a 1x1 convolution and batch norm; both networks' maps are taken before the last
    activation of each stage but a bare stem. A teacher's value below its channel's `margin` counts as that margin.
    weight = 1e-3 is the program's for CIFAR, 1e-4 for ImageNet.

    Departures: the program's teacher is in training mode on purpose (its table 8), so that its batch norm normalises by
    the batch; here a teacher is frozen in evaluation mode, as in every method. One suite takes margins from the batch;
    here they are the program's, from the weights of the batch norm before, so a teacher without one is refused. Maps of
    unequal size are average-pooled alike. Where networks have other numbers of stages, as many as the fewer are matched
    by relative depth.
    """

    collection = "modern"
    paper = Paper(
        "A Comprehensive Overhaul of Feature Distillation",
        "Heo, Kim, Yun, Park, Kwak, Choi",
        2019,
        "https://arxiv.org/abs/1904.01866",
    )
    equation: ClassVar[str] = (
        r"L = L_{task} + \frac{w}{B} \sum_{i=1}^{n} 2^{i-n} \sum \left[c_i(f_i) > g_i' \text{ or } g_i' > 0\right] "
        r"(c_i(f_i) - g_i')^2, \quad g_i' = \max(g_i, m_i), \; m = \mathrm{E}[x | x < 0], \; x \sim N(b, a^2)"
    )
    knowledge = "feature"
    needs = frozenset({"preactivations", "norms"})
    weight: float = loss_weight(1e-3, "ofd")

    def __post_init__(self) -> None:
        """Checks the range."""
        non_negative(weight=self.weight)

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """A connector for each pair of maps, and the teacher's margins."""
        norms = require("norms", teachers[0].norms)
        pairs = even_pairs(_maps(student), list(zip(_maps(teachers[0]), norms[teachers[0].stem :], strict=True)))
        margins: list[Tensor] = []
        for _, (theirs, norm) in pairs:
            if norm is None:
                raise Unsupported(
                    "the teacher has a stage without a batch norm before its last activation (norms), from which the "
                    f"margins of its {theirs.shape[1]} channels would follow."
                )
            margins.append(margin(*norm))
        modules: dict[str, nn.Module] = {
            f"connector_{place}": connector(mine.shape[1], theirs.shape[1])
            for place, (mine, (theirs, _)) in enumerate(pairs)
        }
        return nn.ModuleDict({**modules, "margins": Margins(margins)})

    def loss(self, step: Step) -> Losses:
        """Labels, and the maps (B, C, H, W) before activations."""
        pairs, terms = even_pairs(_maps(step.student), _maps(step.teacher)), []
        for place, (mine, theirs) in enumerate(pairs):
            mine, theirs = pooled_alike(step.auxiliary[f"connector_{place}"](mine), theirs)
            apart = overhaul_loss(mine, theirs, getattr(step.auxiliary["margins"], f"stage_{place}"))
            terms.append(apart / 2 ** (len(pairs) - 1 - place))
        return {**step.task_loss(), "ofd": self.weight * torch.stack(terms).sum() / len(step.student.logits)}


def _maps(signals: Signals) -> tuple[Tensor, ...]:
    """Those before the last activation of every stage but a bare stem."""
    return require("preactivations", signals.preactivations)[signals.stem :]
