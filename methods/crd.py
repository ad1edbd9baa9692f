"""Tells an image's teacher features from those of other classes' images by the student's: contrastive distillation."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

from kdbench.methods.base import Data, Losses, Method, Paper, Signals, Step, Unsupported, loss_weight, method, tuned
from kdbench.methods.checks import fraction, non_negative, positive, require
from kdbench.methods.functional import class_targets

EPSILON = 1e-7
"""The program's, beside a ratio of densities."""


def log_contrast(scores: Tensor, samples: int) -> Tensor:
    """`crd_loss` of the logarithms of scores."""
    noise = (scores.shape[1] - 1) / samples
    both = torch.logaddexp(scores, scores.new_tensor(math.log(noise + EPSILON)))
    positive, negative = scores[:, 0] - both[:, 0], math.log(noise) - both[:, 1:]
    return -(positive.sum() + negative.sum()) / len(scores)


def crd_loss(scores: Tensor, samples: int) -> Tensor:
    """Contrast of an image with M others, where c = M / samples: -(sum log o+ / (o+ + c) + sum log c / (o- + c)) / B.

    Args:
        scores: (B, 1 + M) of positive numbers: o+ of the image itself, then o- of M images of other classes.
        samples: of the training set.

    Raises:
        ValueError: if there is not one image to contrast with.
    """
    if scores.dim() != 2 or scores.shape[1] < 2:
        raise ValueError(f"scores are (B, 1 + M) of an image and M others, but got {tuple(scores.shape)}.")
    return log_contrast(scores.log(), samples)


class Banks(nn.Module):
    """What was last seen of every training image: two unit vectors, one of the student's and one of the teacher's.

    They are state, 2 * samples * width numbers that are saved and resumed, as are both scales of the scores.
    """

    student: Tensor
    teacher: Tensor
    scales: Tensor
    labels: Tensor
    order: Tensor
    starts: Tensor
    counts: Tensor

    def __init__(self, labels: Tensor, width: int) -> None:
        """Starts evenly, as the program does: from zeros nothing would be learned.

        Args:
            labels: (n,) classes of the training images.
            width: of the vectors.

        Raises:
            Unsupported: if all images are of one class.
        """
        super().__init__()
        bound = math.sqrt(3 / width)
        for name in ("student", "teacher"):
            self.register_buffer(name, torch.empty(len(labels), width).uniform_(-bound, bound))
        self.register_buffer("scales", torch.full((2,), -1.0))
        counts = torch.bincount(labels)
        if int(counts.max()) == len(labels):
            raise Unsupported("contrasts are with images of other classes, and all training images are of one.")
        self.fewest = len(labels) - int(counts.max())
        """Images of other classes that any image has at least."""
        about = {"labels": labels, "order": labels.argsort(stable=True), "counts": counts}
        for name, value in {**about, "starts": counts.cumsum(0) - counts}.items():
            self.register_buffer(name, value, persistent=False)

    def others(self, indices: Tensor, number: int) -> Tensor:
        """Indices (B, number) of images of other classes than each image's: all different, if there are so many.

        Args:
            indices: (B,) of images.
            number: of others for each.
        """
        own = self.labels[indices]
        start, count = self.starts[own][:, None], self.counts[own][:, None]
        there = len(self.labels) - count
        if self.fewest < number:
            draws = torch.rand(len(indices), number, device=indices.device)
            places = torch.minimum((draws * there).long(), there - 1)
        else:
            draws = torch.rand(len(indices), int(there.max()), device=indices.device)
            beyond = torch.arange(draws.shape[1], device=indices.device) >= there
            places = draws.masked_fill(beyond, -1.0).topk(number, dim=1, sorted=False).indices
        return self.order[places + count * (places >= start)]

    def scores(self, side: int, anchors: Tensor, chosen: Tensor, temperature: float) -> Tensor:
        """Logarithms (B, M) of exp(anchor . vector / temperature) over a scale, fixed at the first batch.

        Args:
            side: 0 for the student's anchors and the teacher's bank, 1 for the mirror.
            anchors: (B, width), unit vectors.
            chosen: (B, M), whose vectors.
            temperature: of the contrast.
        """
        bank = self.student if side else self.teacher
        scores = (anchors @ bank.T).gather(1, chosen) / temperature
        fresh = scores.detach().logsumexp(dim=(0, 1)).exp() * len(bank) / scores.numel()
        scale = torch.where(self.scales[side] < 0, fresh, self.scales[side])
        self.scales = torch.where(torch.arange(2, device=scale.device) == side, scale, self.scales)
        return scores - scale.log()

    @torch.no_grad()
    def follow(self, indices: Tensor, student: Tensor, teacher: Tensor, momentum: float) -> None:
        """Moves the images' vectors towards new ones; into new tensors, as gradients still need the old ones."""
        for name, new in (("student", student), ("teacher", teacher)):
            bank = getattr(self, name)
            moved = F.normalize(momentum * bank[indices] + (1 - momentum) * new, dim=1)
            setattr(self, name, bank.index_copy(0, indices, moved))


@method
class CRD(Method):
    """Loss = cross-entropy + weight * (`crd_loss` of the student's anchors + `crd_loss` of the teacher's).

    Pooled features of both go through a linear layer to `width` dimensions and are L2-normalised; both layers are
    trained. Two banks keep what was last seen of every training image. o = exp(anchor . vector / contrast_temperature)
    over Z, for the image's own vector and those of `negatives` images of other classes in the other network's bank; Z
    is the number of images times the mean of the first batch's. Then the images' vectors go half way (`momentum`) to
    the new ones, and are normalised again. Every number is the program's for CIFAR-100, from which the table comes;
    its CRD + KD is the composition "kd+0.8*crd". On ImageNet users are a point below the printed number.

    Negatives are different images where every class has as many others, and are drawn with replacement elsewhere, as
    in the program. Its scores are of gathered vectors, B * negatives * width numbers; here they are gathered from a
    product of matrices, B * images numbers, which are fewer up to two million images: of 50,000 images a batch of 64
    takes 0.4 seconds of one core, one of 1024 7 seconds and 1.2 GiB. Logarithms are taken before the exponentials, so
    that no score is infinite.
    """

    collection = "modern"
    paper = Paper(
        "Contrastive Representation Distillation",
        "Tian, Krishnan, Isola",
        2020,
        "https://arxiv.org/abs/1910.10699",
    )
    equation: ClassVar[str] = (
        r"L = L_{task} - \frac{w}{B} \sum_i \left[\log \frac{o_{ii}}{o_{ii} + c} + \sum_{j \in N_i} "
        r"\log \frac{c}{o_{ij} + c}\right] - \text{its mirror}, \quad o_{ij} = \frac{1}{Z} "
        r"\exp\left(a_i \cdot b_j / \tau\right), \; a = \frac{W u}{\|W u\|}, \; b_j \text{ in the bank}, "
        r"\; c = |N_i| / n"
    )
    knowledge = "relation"
    needs = frozenset({"pooled", "class_targets"})
    weight: float = loss_weight(0.8, "crd")
    contrast_temperature: float = tuned(0.07, FloatDistribution(0.03, 0.2, log=True))
    negatives: int = 16384
    width: int = 128
    momentum: float = 0.5

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(weight=self.weight)
        positive(contrast_temperature=self.contrast_temperature, negatives=self.negatives, width=self.width)
        fraction(momentum=self.momentum)

    def modules_of_data(self, student: Signals, teachers: tuple[Signals, ...], data: Data) -> nn.ModuleDict:
        """An embedding of each network's pooled features, and the banks."""
        targets = class_targets(data)
        labels = targets if targets.dim() == 1 else targets.argmax(dim=1)
        mine, theirs = (require("pooled", each.pooled).shape[1] for each in (student, teachers[0]))
        embeddings = {"student": nn.Linear(mine, self.width), "teacher": nn.Linear(theirs, self.width)}
        return nn.ModuleDict({**embeddings, "banks": Banks(labels.cpu(), self.width)})

    def loss(self, step: Step) -> Losses:
        """Labels, and contrasts of pooled features (B, D)."""
        banks = step.auxiliary["banks"]
        assert isinstance(banks, Banks) and step.indices is not None, "a step knows its samples"
        sides = {"student": step.student, "teacher": step.teacher}
        mine, theirs = (
            F.normalize(step.auxiliary[name](require("pooled", seen.pooled)), dim=1) for name, seen in sides.items()
        )
        indices = step.indices.to(mine.device)
        chosen = torch.cat([indices[:, None], banks.others(indices, self.negatives)], dim=1)
        apart = [
            log_contrast(banks.scores(side, anchors, chosen, self.contrast_temperature), len(banks.labels))
            for side, anchors in enumerate((mine, theirs))
        ]
        banks.follow(indices, mine, theirs, self.momentum)
        return {**step.task_loss(), "crd": self.weight * torch.stack(apart).sum()}
