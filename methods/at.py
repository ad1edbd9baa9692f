"""Makes the student's feature maps strong where the teacher's are: attention transfer by activations."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.methods.base import Losses, Method, Paper, Signals, Step, features_of, loss_weight, method
from kdbench.methods.checks import fraction, non_negative, one_of, positive, same_shape
from kdbench.methods.functional import check_depths, kd_loss, matched, pooled_alike

FORMS = ("sum", "max", "full")
NORMALISATIONS = ("code", "paper")


def attention_map(feature: Tensor, p: float = 2, form: str = "sum") -> Tensor:
    """Where a feature map is strong: (B, H * W), each row of L2 norm 1; in form "full" the map itself: (B, C * H * W).

    Args:
        feature: (B, C, H, W)
        p: the power of the absolute activations.
        form: over channels, sum (the paper's F_sum^p; a mean gives the same once normalised) or max (F_max^p); full
            for all activations as they are, whatever p.

    Raises:
        ValueError: for another form, or a tensor that is no feature map.
    """
    one_of(FORMS, form=form)
    if feature.dim() != 4:
        raise ValueError(f"a feature map has shape (B, C, H, W), but got {tuple(feature.shape)}.")
    if form == "full":
        return F.normalize(feature.flatten(1), dim=1)
    powers = feature.abs().pow(p)
    strength = powers.sum(dim=1) if form == "sum" else powers.amax(dim=1)
    return F.normalize(strength.flatten(1), dim=1)


def attention_loss(
    student_feature: Tensor,
    teacher_feature: Tensor,
    p: float = 2,
    form: str = "sum",
    normalisation: str = "code",
) -> Tensor:
    r"""Distance of the two attention maps Q, the larger feature average-pooled to the smaller.

    Args:
        student_feature: (B, C, H, W)
        teacher_feature: (B, C', H', W')
        p: the power of the absolute activations.
        form: sum or max over channels, or full for all of them.
        normalisation: "code", the mean of (Q_s - Q_t)^2 over batch and positions, as the authors' program has it; or
            "paper", equation 2: half the norm ||Q_s - Q_t||_2 of each image, mean over the batch.

    Raises:
        ValueError: for other forms, or features that are no maps of one batch size.
    """
    one_of(NORMALISATIONS, normalisation=normalisation)
    student, teacher = pooled_alike(student_feature, teacher_feature)
    if form == "full":
        same_shape(student, teacher)
    difference = attention_map(student, p, form) - attention_map(teacher, p, form)
    if normalisation == "code":
        return difference.square().mean() * (difference.shape[1] // student[0, 0].numel())
    distances: Tensor = torch.linalg.vector_norm(difference, dim=1)
    return distances.mean() / 2


@method
class AT(Method):
    """Loss = (1 - alpha) * cross-entropy + alpha * T^2 * KL + beta * sum over stages of `attention_loss`.

    alpha = 0, the default, is attention transfer alone; alpha = 0.9 with T = 4 is the paper's AT+KD between ResNets,
    where beta falls during training (section 4.1.1); neither paper nor program says how, so `decay` = "linear" goes to
    0 at the end. beta = 1000 is the program's, with its mean, for 32x32 images: a smaller map weighs more, so it says
    little elsewhere. With `normalisation` = "paper" the norm is not squared and beta must be set anew.

    `form` = "full" is the paper's full-activation transfer (F-ActT, section 4.1.2): whole activations instead of maps,
    the student's through a 1x1 convolution where it has other channels. Its beta falls too, and is not given.

    Choices: the maps of the paper's three residual groups are those at relative depths 1/3, 2/3 and 1 of networks
    whose first stage is the stem.
    """

    collection = "survey"
    paper = Paper(
        "Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via "
        "Attention Transfer",
        "Zagoruyko, Komodakis",
        2017,
        "https://arxiv.org/abs/1612.03928",
    )
    equation = (
        r"\mathcal{L} = (1-\alpha)\,\mathcal{L}_{\text{task}}(z_s, y) + \alpha\,T^2\,\text{KL}(\sigma(z_t/T) "
        r"\parallel \sigma(z_s/T)) + \beta \sum_{j} \frac{1}{H_j W_j} \Vert Q_s^j - Q_t^j \Vert_2^2"
        "\n"
        r"Q^j = \frac{q^j}{\Vert q^j \Vert_2}, \quad q^j_{hw} = \sum_{c} |A^j_{chw}|^p"
    )
    knowledge = "feature"
    needs = frozenset({"features"})
    beta: float = loss_weight(1000.0, "at")
    alpha: float = 0.0
    temperature: float = 4.0
    decay: str = "constant"
    p: float = 2.0
    form: str = "sum"
    normalisation: str = "code"
    depths: tuple[float, ...] = (0.33, 0.67, 1.0)
    teacher_depths: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(beta=self.beta)
        fraction(alpha=self.alpha)
        positive(temperature=self.temperature)
        if not 1 <= self.p < math.inf:  # below 1 the gradient at an activation of zero is infinite
            raise ValueError(f"p must be finite and at least 1, but got p={self.p}.")
        one_of(("constant", "linear"), decay=self.decay)
        one_of(FORMS, form=self.form)
        one_of(NORMALISATIONS, normalisation=self.normalisation)
        check_depths(self.depths, self.teacher_depths)

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """In form "full" a regressor for each of `depths` at which the channels differ."""
        if self.form != "full":
            return nn.ModuleDict()
        pairs = matched(features_of(student), features_of(teachers[0]), self.depths, self.teacher_depths)
        widths = [(mine.shape[1], theirs.shape[1]) for mine, theirs in pairs]
        return nn.ModuleDict(
            {f"regressor_{i}": nn.Conv2d(*pair, kernel_size=1) for i, pair in enumerate(widths) if pair[0] != pair[1]}
        )

    def loss(self, step: Step) -> Losses:
        """Labels, attention at each of `depths`, and soft targets (B, K) if alpha is set."""
        pairs = matched(features_of(step.student), features_of(step.teacher), self.depths, self.teacher_depths)
        maps = []
        for index, (mine, theirs) in enumerate(pairs):
            regressor = f"regressor_{index}"
            mine = step.auxiliary[regressor](mine) if regressor in step.auxiliary else mine
            maps.append(attention_loss(mine, theirs, self.p, self.form, self.normalisation))
        beta = self.beta * (1 - step.progress if self.decay == "linear" else 1.0)
        losses = {
            **step.task_loss(1 - self.alpha),
            "at": beta * torch.stack(maps).sum(),
        }
        if self.alpha:
            losses["kd"] = self.alpha * kd_loss(step.student.logits, step.teacher.logits, self.temperature)
        return losses
