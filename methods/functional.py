"""Losses, and ways of matching layers, that two or more methods share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.methods.base import Data, Networks, Unsupported
from kdbench.methods.checks import same_batch, same_shape
from kdbench.methods.rows import Rows, count, join

L = TypeVar("L")
"""What stands for a layer: its map, its states, its queries and keys."""
R = TypeVar("R")
"""Likewise, of the other network."""
NOWHERE = -1e9
"""A logit of a class that is left out: its probability is zero to the bit, and nothing is infinite."""


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor) -> Tensor:
    r"""Softened Kullback-Leibler divergence, $T^2 \, KL(softmax(z_t / T) \| softmax(z_s / T))$, mean over the batch.

    The factor $T^2$ keeps the gradient's size as T changes (Hinton et al. 2015, section 2).

    Args:
        student_logits: (B, K)
        teacher_logits: (B, K)
        temperature: T, positive.

    Raises:
        ValueError: if the shapes differ, or are not (B, K).
    """
    same_shape(student_logits, teacher_logits)
    same_batch(student_logits, teacher_logits, dims=2)
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def labelled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the images that have a label; zero if none has.

    Args:
        logits: (B, K)
        labels: (B,) classes, or (B, K) probabilities, where a row of zeros is an image without a label.

    Raises:
        ValueError: if the labels do not fit the logits.
    """
    if labels.dim() == 1:
        if len(labels) != len(logits):
            shapes = f"{tuple(logits.shape)} and {tuple(labels.shape)}"
            raise ValueError(f"there must be one label an image, but got {shapes}.")
        return F.cross_entropy(logits, labels)
    same_shape(logits, labels)
    labelled = (labels.sum(dim=1) > 0).sum().clamp_min(1)
    return F.cross_entropy(logits, labels, reduction="sum") / labelled


def one_class_each(targets: Rows, logits: Tensor) -> Tensor:
    """Classes (B,) of samples each of which has exactly one.

    Args:
        targets: (B,) classes, or (B, K) rows with a single one.
        logits: (B, K), of at least two classes.

    Raises:
        ValueError: if there is not one target for each row of logits, or less than two classes.
        Unsupported: if the class of a sample is mixed or lacking.
    """
    if not isinstance(targets, Tensor) or len(targets) != len(logits) or logits.dim() != 2 or logits.shape[1] < 2:
        shape = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        shapes = f"{shape} for {tuple(logits.shape)}"
        raise ValueError(f"there must be one label a row of logits (B, K) of two classes or more, but got {shapes}.")
    if targets.dim() == 1:
        return targets
    same_shape(targets, logits)
    if not ((targets == 0) | (targets == 1)).all() or not (targets.sum(dim=1) == 1).all():
        raise Unsupported("this loss tells a label's class from all others: labels may not be mixed or missing.")
    return targets.argmax(dim=1)


def only(logits: Tensor, kept: Tensor) -> Tensor:
    """Logarithms (B, K) of the softmax over some classes of each row; of a row that keeps none, over all alike.

    Args:
        logits: (B, K)
        kept: (B, K) bool.
    """
    return F.log_softmax(logits.masked_fill(~kept, NOWHERE), dim=1)


def all_but(labels: Tensor, logits: Tensor) -> Tensor:
    """(B, K) bool: every class but a sample's own.

    Args:
        labels: (B,) classes.
        logits: (B, K)
    """
    return torch.ones_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], False)


def target_or_not(logits: Tensor, labels: Tensor) -> Tensor:
    """Logarithms (B, 2) of the probability of a class and of all others together, exact however near to 1.

    Args:
        logits: (B, K)
        labels: (B,) classes.
    """
    chosen = F.one_hot(labels, logits.shape[1]).bool()
    others = logits.masked_fill(chosen, -math.inf).logsumexp(dim=1)
    margin = logits.gather(1, labels[:, None])[:, 0] - others
    return torch.stack([F.logsigmoid(margin), F.logsigmoid(-margin)], dim=1)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of logarithms of probabilities (B, K), mean over the batch."""
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def warmed_up(progress: float, warmup: float) -> float:
    """A factor that rises linearly from 0 to 1 over the first share `warmup` of training; always 1 without one."""
    return min(progress / warmup, 1.0) if warmup else 1.0


def pooled_alike(first: Tensor, second: Tensor, pool: str = "avg") -> tuple[Tensor, Tensor]:
    """Two feature maps at the smaller height and width of the two, the larger one pooled.

    Args:
        first: (B, C1, H1, W1)
        second: (B, C2, H2, W2)
        pool: avg or max.

    Raises:
        ValueError: if they are no feature maps of one batch size.
    """
    same_batch(first, second, dims=4)
    size = (min(first.shape[-2], second.shape[-2]), min(first.shape[-1], second.shape[-1]))
    pooling = F.adaptive_max_pool2d if pool == "max" else F.adaptive_avg_pool2d
    one, two = (each if each.shape[-2:] == size else pooling(each, size) for each in (first, second))
    return one, two


def matched(
    student: Sequence[L], teacher: Sequence[L], depths: Sequence[float], teacher_depths: Sequence[float] = ()
) -> list[tuple[L, L]]:
    """Pairs of a student's and a teacher's layers, by relative depth, 0 the first and 1 the last.

    Args:
        student: its layers, shallow to deep.
        teacher: likewise, maybe another number of them.
        depths: of the student's layers.
        teacher_depths: of the teacher's, as many; the student's by default.
    """
    theirs = teacher_depths or depths
    return [
        (student[at_depth(len(student), mine)], teacher[at_depth(len(teacher), other)])
        for mine, other in zip(depths, theirs, strict=True)
    ]


def even_pairs(student: Sequence[L], teacher: Sequence[R]) -> list[tuple[L, R]]:
    """Pairs of layers by relative depth, evenly from the first to the last: as many as the network with fewer has."""
    count = min(len(student), len(teacher))
    depths = [place / (count - 1) for place in range(count)] if count > 1 else [1.0]
    return [(student[at_depth(len(student), each)], teacher[at_depth(len(teacher), each)]) for each in depths]


def check_depths(depths: Sequence[float], teacher_depths: Sequence[float] = ()) -> None:
    """Checks what `matched` takes.

    Raises:
        ValueError: if there is no depth, one lies outside 0 to 1, or there are not as many of the teacher's.
    """
    if not depths:
        raise ValueError("depths must name at least one layer, but is empty.")
    for depth in (*depths, *teacher_depths):
        at_depth(2, depth)
    if teacher_depths and len(teacher_depths) != len(depths):
        raise ValueError(f"depths and teacher_depths must be as many, but got {depths} and {teacher_depths}.")


def with_unlabelled(data: Data, networks: Networks) -> Data:
    """The labelled samples and the unlabelled ones, whose targets are rows of zeros: a stage's `data`."""
    targets = class_targets(data)
    if targets.dim() == 1:
        targets = F.one_hot(targets, data.classes).float()
    nothing = targets.new_zeros(count(data.unlabelled), data.classes)
    return dataclasses.replace(
        data,
        inputs=join([data.inputs, data.unlabelled]),
        targets=torch.cat([targets, nothing]),
        additional=count(data.unlabelled),
    )


def class_targets(data: Data) -> Tensor:
    """Targets of one decision a sample, (N,) classes or (N, K) rows.

    Raises:
        Unsupported: if samples have other targets.
    """
    targets = data.targets
    if not isinstance(targets, Tensor) or targets.dim() > 2 or len(targets) != count(data.inputs):
        raise Unsupported("this method edits targets of one class a sample, and these data have others.")
    return targets


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of the values where the mask is set, of all without a mask; zero where it is set nowhere.

    Args:
        values: (...)
        mask: what can be broadcast to the values' shape.
    """
    if mask is None:
        return values.mean()
    weights = mask.to(values.dtype).expand_as(values)
    return (values * weights).sum() / weights.sum().clamp_min(1)


def check_mask(mask: Tensor | None, tokens: Tensor) -> None:
    """Checks that a mask (B, N) fits tokens.

    Args:
        mask: (B, N), or None.
        tokens: (B, N, D), (B, heads, N, d) or (B, heads, N, N).

    Raises:
        ValueError: naming both shapes.
    """
    if mask is not None and tuple(mask.shape) != (tokens.shape[0], tokens.shape[-2]):
        raise ValueError(f"a mask (B, N) must fit the tokens, but got {tuple(mask.shape)} for {tuple(tokens.shape)}.")


def same_tokens(student: Tensor, teacher: Tensor) -> None:
    """Checks that two networks cut an image into as many tokens.

    Raises:
        Unsupported: naming both numbers; tokens are (B, N, D) or queries (B, heads, N, d).
    """
    if student.shape[0] != teacher.shape[0] or student.shape[-2] != teacher.shape[-2]:
        raise Unsupported(
            f"the student has {student.shape[-2]} tokens in {student.shape[0]} sequences, the teacher "
            f"{teacher.shape[-2]} in {teacher.shape[0]}, so they cannot be compared one by one: give both the same "
            "image and patch size."
        )


def uniform_map(student_layers: int, teacher_layers: int) -> list[int]:
    """For each student layer, the index of the teacher's layer that ends the same share of the network.

    With half the layers it is every other one: (2, 4) gives [1, 3] (Jiao et al. 2020: g(m) = m N / M).

    Raises:
        Unsupported: if the student has more layers.
    """
    if student_layers > teacher_layers:
        raise Unsupported(f"a student of {student_layers} blocks cannot follow a teacher of {teacher_layers}.")
    return [(layer + 1) * teacher_layers // student_layers - 1 for layer in range(student_layers)]


def at_depth(stages: int, depth: float) -> int:
    """The index of the stage nearest to a relative depth, 0 the first and 1 the last; the deeper of two.

    Raises:
        ValueError: if depth is not between 0 and 1.
    """
    if not 0 <= depth <= 1:
        raise ValueError(f"depth must lie between 0 and 1, but got {depth=}.")
    return math.floor(depth * (stages - 1) + 0.5)
