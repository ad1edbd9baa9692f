"""Makes its own soft labels, of its confidence in a batch and of a weak head's ranks: universal self-distillation."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.methods.base import Losses, Method, Paper, Signals, Step, Unsupported, features_of, loss_weight, method
from kdbench.methods.checks import non_negative, one_of, same_shape
from kdbench.methods.functional import all_but, one_class_each, only

EPSILON = 1e-6
"""The program's, in the shares whose sum gives ranks."""
SMOOTHING = 0.1
"""Of the weak head's labels."""
RANKS = ("program", "paper")


def target_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """-(1 + p_y^2 - its mean over the batch) log p_y, mean over the batch; the factor has no gradient.

    Args:
        logits: (B, K)
        labels: (B,) classes, or (B, K) rows with a single one.

    Raises:
        ValueError: if shapes do not fit, or there are less than two classes.
        Unsupported: if the class of a sample is mixed or lacking.
    """
    chosen = one_class_each(labels, logits)[:, None]
    logarithm = F.log_softmax(logits, dim=1).gather(1, chosen)
    squares = logarithm.detach().exp().square()
    return -((1 + squares - squares.mean()) * logarithm).mean()


def zipf_labels(logits: Tensor, weak_logits: Tensor, labels: Tensor, ranks: str = "program") -> Tensor:
    """(B, K): 1 / rank of each class but the label's, over their sum; ranks are of a sum of two shares.

    The shares are of the weak head and of the student: p over 1 - p_y + 1e-6. The program takes the logarithm of the
    student's p in its place, as it uses a name again; the paper means p.

    Args:
        logits: (B, K) of the student.
        weak_logits: (B, K) of the weak head.
        labels: (B,) classes, or (B, K) rows with a single one.
        ranks: program or paper.

    Raises:
        ValueError: if shapes do not fit, or there are less than two classes.
        Unsupported: if the class of a sample is mixed or lacking.
    """
    same_shape(logits, weak_logits)
    chosen = one_class_each(labels, logits)[:, None]
    weak, own = F.softmax(weak_logits, dim=1), F.log_softmax(logits, dim=1)
    own = own.exp() if ranks == "paper" else own
    order = sum(each / (1 - each.gather(1, chosen) + EPSILON) for each in (weak, own))
    assert isinstance(order, Tensor), "two shares"
    place = order.argsort(dim=1, descending=True).argsort(dim=1)
    shares = all_but(chosen[:, 0], logits) / (1 + place.to(logits.dtype))
    return (shares / shares.sum(dim=1, keepdim=True)).detach()


def others_loss(logits: Tensor, weak_logits: Tensor, labels: Tensor, ranks: str = "program") -> Tensor:
    """Cross-entropy of the softmax over all classes but the label's with `zipf_labels`, mean over the batch.

    Arguments and errors are those of `zipf_labels`.
    """
    shares = zipf_labels(logits, weak_logits, labels, ranks)
    return -(shares * only(logits, all_but(one_class_each(labels, logits), logits))).sum(dim=1).mean()


def weak_loss(weak_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the weak head with labels smoothed by 0.1, mean over the batch.

    Args:
        weak_logits: (B, K)
        labels: (B,) classes, or (B, K) rows with a single one.

    Raises:
        ValueError: if shapes do not fit, or there are less than two classes.
        Unsupported: if the class of a sample is mixed or lacking.
    """
    chosen, logarithms = one_class_each(labels, weak_logits), F.log_softmax(weak_logits, dim=1)
    own = logarithms.gather(1, chosen[:, None])[:, 0]
    return -((1 - SMOOTHING) * own + SMOOTHING * logarithms.mean(dim=1)).mean()


def uskd_loss(logits: Tensor, weak_logits: Tensor, labels: Tensor, alpha: float, beta: float, mu: float) -> Tensor:
    """Alpha * `target_loss` + beta * `others_loss` + mu * `weak_loss`, as the program has it; without cross-entropy.

    Arguments and errors are those of `zipf_labels`, and the three weights.
    """
    hard = alpha * target_loss(logits, labels) + beta * others_loss(logits, weak_logits, labels)
    return hard + mu * weak_loss(weak_logits, labels)


@method
class USKD(Method):
    """Loss = cross-entropy + alpha * `target_loss` + beta * `others_loss` + mu * `weak_loss`; without a teacher.

    The weak head is a linear layer on the mean over positions of the stage before the last; it takes part in training
    alone, and its loss trains the stages below too. alpha = 1, beta = 0.1 and mu = 0.005 are the program's for
    ImageNet, all three 0.1 for CIFAR-100.

    `ranks` = "program", the default, adds the logarithm of the student's probability to the weak head's probability, as
    the program does by using a name again; "paper" adds probabilities. Departure: the program takes the two largest
    shares of a mixed label; mixed or missing labels are refused here.
    """

    collection = "modern"
    paper = Paper(
        "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and "
        "Customized Soft Labels",
        "Yang, Zeng, Li, Zhang, Yuan, Li",
        2023,
        "https://arxiv.org/abs/2303.13005",
    )
    equation: ClassVar[str] = (
        r"L = L_{task} - \alpha \, \overline{(1 + p_y^2 - \overline{p_y^2}) \log p_y} "
        r"- \beta \, \overline{\sum_{k \ne y} z_k \log q_k} - \mu \, \overline{\sum_k y'_k \log p^w_k}, \quad "
        r"z_k \propto 1 / \text{rank}, \; q = p_{k \ne y} / (1 - p_y), \; y' = 0.9 \, y + 0.1 / K"
    )
    needs_teacher = False
    needs = frozenset({"features", "class_targets"})
    alpha: float = loss_weight(1.0, "target")
    beta: float = loss_weight(0.1, "others")
    mu: float = loss_weight(0.005, "weak")
    ranks: str = "program"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(alpha=self.alpha, beta=self.beta, mu=self.mu)
        one_of(RANKS, ranks=self.ranks)

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """The weak head."""
        return nn.ModuleDict({"weak": nn.Linear(_pooled(student).shape[1], student.logits.shape[1])})

    def loss(self, step: Step) -> Losses:
        """Labels, and the soft labels (B, K) that the student makes itself."""
        assert isinstance(step.targets, Tensor), "class_targets are needed"
        logits, weak = step.student.logits, step.auxiliary["weak"](_pooled(step.student))
        return {
            **step.task_loss(),
            "target": self.alpha * target_loss(logits, step.targets),
            "others": self.beta * others_loss(logits, weak, step.targets, self.ranks),
            "weak": self.mu * weak_loss(weak, step.targets),
        }


def _pooled(student: Signals) -> Tensor:
    """The mean over positions (B, C) of the stage before the last."""
    maps: tuple[Tensor, ...] = features_of(student)
    if len(maps) < 2:
        raise Unsupported("the student has one stage alone, so there is none before the last for a weak head.")
    return torch.mean(maps[-2], dim=(2, 3))
