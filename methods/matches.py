"""Terms that only a composition has: TextBrewer's soft losses, and its matches of hidden states and of attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.methods.base import Losses, Method, Signals, Step, Unsupported
from kdbench.methods.checks import one_of, positive, require, same_shape
from kdbench.methods.distilbert import cosine_loss
from kdbench.methods.functional import check_depths, check_mask, kd_loss, masked_mean, matched, same_tokens
from kdbench.methods.minilm import attention_relation_loss, relation_heads
from kdbench.methods.tinybert import attention_score_loss, attention_scores, hidden_loss

PROJECTIONS: dict[str, type[nn.Module]] = {"linear": nn.Identity, "relu": nn.ReLU, "tanh": nn.Tanh}
"""What follows the linear layer that takes a student's states to the teacher's width."""

Mask = Tensor | None
Heads = tuple[Tensor, Tensor]
"""Queries and keys of a layer, (B, heads, N, d) each."""


def soft_mse_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Mean squared difference of logits divided by the temperature.

    Args:
        student_logits: (B, K)
        teacher_logits: (B, K)
        temperature: T, positive.

    Raises:
        ValueError: if the shapes differ.
    """
    same_shape(student_logits, teacher_logits)
    return F.mse_loss(student_logits / temperature, teacher_logits / temperature)


def first_state_loss(student_hidden: Tensor, teacher_hidden: Tensor, mask: Mask = None) -> Tensor:
    """Squared distance of the first positions' states, each of norm 1, mean over the batch.

    Args:
        student_hidden: (B, N, D)
        teacher_hidden: (B, N, D)
        mask: not used, as the first position is never padding.

    Raises:
        ValueError: if the shapes differ.
    """
    same_shape(student_hidden, teacher_hidden)
    difference = F.normalize(student_hidden[:, 0], dim=1) - F.normalize(teacher_hidden[:, 0], dim=1)
    return difference.square().sum(dim=1).mean()


def gram_loss(student_hidden: Tensor, teacher_hidden: Tensor, mask: Mask = None) -> Tensor:
    """Mean squared difference of the products of channels, averaged over positions: (B, D, D).

    Args:
        student_hidden: (B, N, D)
        teacher_hidden: (B, N, D)
        mask: (B, N), 0 at padded positions, which count for nothing.

    Raises:
        ValueError: if the shapes differ, or the mask does not fit.
    """
    same_shape(student_hidden, teacher_hidden)
    check_mask(mask, student_hidden)
    real = torch.ones_like(student_hidden[..., :1]) if mask is None else mask[..., None].to(student_hidden.dtype)
    count = real.sum(dim=1, keepdim=True).clamp_min(1)
    first, second = (each.transpose(1, 2) @ (each * real) / count for each in (student_hidden, teacher_hidden))
    return F.mse_loss(first, second)


def neuron_loss(student_hidden: Tensor, teacher_hidden: Tensor, mask: Mask = None) -> Tensor:
    """Mean squared difference of the products of positions, averaged over channels: (B, N, N).

    Args:
        student_hidden: (B, N, D)
        teacher_hidden: (B, N, D'); D' may differ.
        mask: (B, N), 0 at padded positions, which count for nothing.

    Raises:
        ValueError: if batch or positions differ, or the mask does not fit.
    """
    same_shape(student_hidden[..., 0], teacher_hidden[..., 0])
    check_mask(mask, student_hidden)
    first, second = (each @ each.transpose(1, 2) / each.shape[2] for each in (student_hidden, teacher_hidden))
    pairs = None if mask is None else mask[:, :, None].bool() & mask[:, None, :].bool()
    return masked_mean((first - second).square(), pairs)


def attention_sum_loss(student: Heads, teacher: Heads, mask: Mask = None) -> Tensor:
    """Mean squared difference of scores that are added up over heads, of which there may be other numbers."""
    first, second = (attention_scores(*each).sum(dim=1, keepdim=True) for each in (student, teacher))
    return attention_score_loss(first, second, mask)


def attention_mean_loss(student: Heads, teacher: Heads, mask: Mask = None) -> Tensor:
    """KL of the attention, teacher || student, that scores averaged over heads give; there may be other numbers."""
    # side by side h heads are one, whose scores are sqrt h times the mean of theirs
    first, second = (
        (relation_heads(query, 1) / math.sqrt(query.shape[1]), relation_heads(key, 1))
        for query, key in (student, teacher)
    )
    return attention_relation_loss(first, second, mask)


def attention_mse_loss(student: Heads, teacher: Heads, mask: Mask = None) -> Tensor:
    """Mean squared difference of scores, head by head."""
    return attention_score_loss(attention_scores(*student), attention_scores(*teacher), mask)


HIDDEN: dict[str, Callable[[Tensor, Tensor, Mask], Tensor]] = {
    "hidden_mse": hidden_loss,
    "cos": cosine_loss,
    "pkd": first_state_loss,
    "gram": gram_loss,
    "nst": neuron_loss,
}
"""Distances of hidden states, by TextBrewer's names; all but nst are of equal widths."""
ATTENTION: dict[str, Callable[[Heads, Heads, Mask], Tensor]] = {
    "attention_mse": attention_mse_loss,
    "attention_mse_sum": attention_sum_loss,
    "attention_ce": attention_relation_loss,
    "attention_ce_mean": attention_mean_loss,
}
"""Distances of attention, by TextBrewer's names; a divergence has the gradient of its cross-entropy."""


@dataclass(frozen=True)
class SoftMatch(Method):
    """TextBrewer's soft losses, which lack the factor T^2: a divergence (kd_ce) or `soft_mse_loss` (kd_mse)."""

    kind: str
    temperature: float = 4.0

    def __post_init__(self) -> None:
        """Checks the range."""
        positive(temperature=self.temperature)

    def loss(self, step: Step) -> Losses:
        """Logits (B, K)."""
        student, teacher = step.student.logits, step.teacher.logits
        if self.kind == "kd_mse":
            return {self.kind: soft_mse_loss(student, teacher, self.temperature)}
        return {self.kind: kd_loss(student, teacher, self.temperature) / self.temperature**2}


@dataclass(frozen=True)
class HiddenMatch(Method):
    """A sum over layers, by relative depth, of a distance of hidden states, of which 0 is the embedding.

    The student's are projected where widths differ, linearly or with an activation after.
    """

    needs = frozenset({"tokens"})
    kind: str
    depths: tuple[float, ...] = (1.0,)
    teacher_depths: tuple[float, ...] = ()
    projection: str = "linear"

    def __post_init__(self) -> None:
        """Checks depths and projection."""
        check_depths(self.depths, self.teacher_depths)
        one_of(tuple(PROJECTIONS), projection=self.projection)

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """A projection for each layer whose widths differ."""
        pairs = self._states(student, teachers[0])
        same_tokens(*pairs[0])
        modules: dict[str, nn.Module] = {}
        for index, (mine, theirs) in enumerate(pairs if self.kind != "nst" else ()):
            if mine.shape[-1] != theirs.shape[-1]:
                layer = nn.Linear(mine.shape[-1], theirs.shape[-1])
                modules[f"layer_{index}"] = nn.Sequential(layer, PROJECTIONS[self.projection]())
        return nn.ModuleDict(modules)

    def loss(self, step: Step) -> Losses:
        """The states (B, N, D) of each layer."""
        terms = []
        for index, (mine, theirs) in enumerate(self._states(step.student, step.teacher)):
            name = f"layer_{index}"
            mine = step.auxiliary[name](mine) if name in step.auxiliary else mine
            terms.append(HIDDEN[self.kind](mine, theirs, step.student.mask))
        return {self.kind: torch.stack(terms).sum()}

    def _states(self, student: Signals, teacher: Signals) -> list[tuple[Tensor, Tensor]]:
        mine, theirs = require("tokens", student.tokens), require("tokens", teacher.tokens)
        return matched(mine, theirs, self.depths, self.teacher_depths)


@dataclass(frozen=True)
class AttentionMatch(Method):
    """A sum over layers, by relative depth, of a distance of attention."""

    needs = frozenset({"qkv"})
    kind: str
    depths: tuple[float, ...] = (1.0,)
    teacher_depths: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Checks the depths."""
        check_depths(self.depths, self.teacher_depths)

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """None; checks that tokens are alike, and heads where each is compared."""
        for (mine, _), (theirs, _) in self._layers(student, teachers[0]):
            same_tokens(mine, theirs)
            if self.kind in ("attention_mse", "attention_ce") and mine.shape[1] != theirs.shape[1]:
                raise Unsupported(
                    f"{self.kind} compares head by head, and the student has {mine.shape[1]}, the teacher "
                    f"{theirs.shape[1]}; attention_mse_sum and attention_ce_mean do not."
                )
        return nn.ModuleDict()

    def loss(self, step: Step) -> Losses:
        """Queries and keys of each layer, (B, heads, N, d)."""
        layers = self._layers(step.student, step.teacher)
        terms = [ATTENTION[self.kind](mine, theirs, step.student.mask) for mine, theirs in layers]
        return {self.kind: torch.stack(terms).sum()}

    def _layers(self, student: Signals, teacher: Signals) -> list[tuple[Heads, Heads]]:
        mine, theirs = require("qkv", student.qkv), require("qkv", teacher.qkv)
        first, second = ([(query, key) for query, key, _ in each] for each in (mine, theirs))
        return matched(first, second, self.depths, self.teacher_depths)


MATCHES: dict[str, type[Method]] = {
    **dict.fromkeys(("kd_ce", "kd_mse"), SoftMatch),
    **dict.fromkeys(HIDDEN, HiddenMatch),
    **dict.fromkeys(ATTENTION, AttentionMatch),
}
"""The terms by their names, each the `kind` of its class."""
