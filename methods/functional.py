"""Losses that two or more methods share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from methods.base import same_batch, same_shape


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


def at_depth(stages: int, depth: float) -> int:
    """The index of the stage at a relative depth, 0 the first and 1 the last.

    Raises:
        ValueError: if depth is not between 0 and 1.
    """
    if not 0 <= depth <= 1:
        raise ValueError(f"depth must lie between 0 and 1, but got {depth=}.")
    return round(depth * (stages - 1))
