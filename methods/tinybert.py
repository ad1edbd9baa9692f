"""Teaches embeddings, attention scores and hidden states layer by layer, then predictions: TinyBERT."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

from kdbench.methods.base import Losses, Method, Net, Paper, Signals, Stage, Step, as_given, loss_weight, method, tuned
from kdbench.methods.checks import non_negative, one_of, positive, require, same_shape
from kdbench.methods.functional import check_mask, kd_loss, masked_mean, same_tokens, uniform_map, with_unlabelled


def attention_score_loss(student_scores: Tensor, teacher_scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of the unnormalised attention scores.

    Args:
        student_scores: (B, heads, N, N)
        teacher_scores: (B, heads, N, N)
        mask: (B, N), 0 at padded positions, which count neither as queries nor as keys.

    Raises:
        ValueError: if the shapes differ, or the mask does not fit.
    """
    same_shape(student_scores, teacher_scores)
    check_mask(mask, student_scores)
    pairs = None if mask is None else mask[:, None, :, None].bool() & mask[:, None, None, :].bool()
    return masked_mean((student_scores - teacher_scores).square(), pairs)


def hidden_loss(projected: Tensor, teacher_hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of hidden states, also of embeddings.

    Args:
        projected: (B, N, D), the student's through its projection.
        teacher_hidden: (B, N, D)
        mask: (B, N), 0 at padded positions, which count for nothing.

    Raises:
        ValueError: if the shapes differ, or the mask does not fit.
    """
    same_shape(projected, teacher_hidden)
    check_mask(mask, projected)
    return masked_mean((projected - teacher_hidden).square(), None if mask is None else mask[:, :, None])


def attention_scores(query: Tensor, key: Tensor) -> Tensor:
    """Unnormalised scores (B, heads, N, N) from queries and keys (B, heads, N, d)."""
    return query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])


@method
class TinyBERT(Method):
    """Stage "intermediate": embedding, hidden and attention losses of mapped layers; stage "prediction": KD.

    Student layer m learns from teacher layer g(m) = m N / M (the uniform map). Hidden states and embeddings go through
    learned projections to the teacher's width: `projection` = "paper" has one for embeddings and one for hidden states,
    shared by all layers; the authors' program has a single one for both ("code"). The prediction stage is the soft
    cross-entropy at T = 1 of the paper, written as KL; `--recipe finetune=0.1` adds hard labels.

    `one_stage` adds both stages' losses up in one, so that they can be composed with others.

    No stage reads a label, and the paper augments the task's text: `unlabelled` = true lets the unlabelled images take
    part in both stages.

    Departures: vision transformers of timm in place of BERT, one task-specific round (the paper has a general one on
    plain text before it). BERT norms every block's output; these networks norm what enters a block, and their residual
    stream once at the end: the last states are taken after that norm, those before it and the embedding as they are. A
    network that norms only what it has pooled has no such norm, and its last states are as they are too. With
    unequal numbers of heads, which the paper excludes, scores are compared as means over heads. The stages share the
    run's epochs; the paper's 20 and 3 are for text.
    """

    collection = "survey"
    paper = Paper(
        "TinyBERT: Distilling BERT for Natural Language Understanding",
        "Jiao, Yin, Shang, Jiang, Chen, Li, Wang, Liu",
        2020,
        "https://arxiv.org/abs/1909.10351",
    )
    equation = (
        r"\mathcal{L}_1 = \lambda_h \Big( \text{mse}(E_s W_e, E_t) + \sum_{m=1}^{M} \text{mse}(H_s^m W_h, "
        r"H_t^{g(m)}) \Big) + \lambda_a \sum_{m=1}^{M} \text{mse}(A_s^m, A_t^{g(m)})"
        "\n"
        r"\mathcal{L}_2 = T^2\,\text{KL}(\sigma(z_t/T) \parallel \sigma(z_s/T))"
        "\n"
        r"A = \frac{Q K^\top}{\sqrt{d}}, \quad g(m) = m N / M, \quad \lambda_h = \text{hidden\_weight}, \quad "
        r"\lambda_a = \text{attention\_weight}"
    )
    knowledge = "self-attention"
    needs = frozenset({"tokens", "qkv"})
    temperature: float = tuned(1.0, FloatDistribution(1.0, 10.0, log=True))
    attention_weight: float = loss_weight(1.0, "attention")
    hidden_weight: float = loss_weight(1.0, "hidden", "embedding")
    intermediate_epochs: float = 0.5
    projection: str = "paper"
    one_stage: bool = False
    unlabelled: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges."""
        positive(temperature=self.temperature)
        non_negative(attention_weight=self.attention_weight, hidden_weight=self.hidden_weight)
        one_of(("paper", "code"), projection=self.projection)
        if not 0 < self.intermediate_epochs < 1:
            raise ValueError(f"intermediate_epochs must lie between 0 and 1, but got {self.intermediate_epochs}.")

    def needed(self) -> frozenset[str]:
        """Tokens and attention; targets that can be empty too, where unlabelled samples take part."""
        return self.needs | {"class_targets"} if self.unlabelled else self.needs

    def uses_unlabelled(self) -> bool:
        """Both stages do, if they are told to."""
        return self.unlabelled

    def stages(self, teachers: tuple[Net, ...]) -> Iterable[Stage]:
        """Layers, then predictions; or both at once."""
        data, first = with_unlabelled if self.unlabelled else as_given, self.intermediate_epochs
        if self.one_stage:
            return (Stage("joint", self.joint, teachers=teachers, data=data),)
        return (
            Stage("intermediate", self.intermediate, teachers=teachers, epochs=first, data=data),
            Stage("prediction", self.prediction, teachers=teachers, epochs=1 - first, data=data),
        )

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """The projections, from the student's width to the teacher's."""
        mine, theirs = require("tokens", student.tokens), require("tokens", teachers[0].tokens)
        uniform_map(len(mine) - 1, len(theirs) - 1)
        same_tokens(mine[0], theirs[0])
        same_tokens(require("qkv", student.qkv)[0][0], require("qkv", teachers[0].qkv)[0][0])
        names = ("hidden", "embedding") if self.projection == "paper" else ("hidden",)
        return nn.ModuleDict({name: nn.Linear(mine[0].shape[-1], theirs[0].shape[-1]) for name in names})

    def intermediate(self, step: Step) -> Losses:
        """Embeddings and hidden states (B, N, D), and attention scores (B, heads, N, N)."""
        mine, theirs = require("tokens", step.student.tokens), require("tokens", step.teacher.tokens)
        layers = list(enumerate(uniform_map(len(mine) - 1, len(theirs) - 1)))
        hidden = step.auxiliary["hidden"]
        embedding = step.auxiliary["embedding" if "embedding" in step.auxiliary else "hidden"]
        states = [hidden_loss(hidden(mine[m + 1]), theirs[n + 1], step.student.mask) for m, n in layers]
        scores = [self._scores(step.student, step.teacher, m, n) for m, n in layers]
        return {
            "embedding": self.hidden_weight * hidden_loss(embedding(mine[0]), theirs[0], step.student.mask),
            "hidden": self.hidden_weight * torch.stack(states).sum(),
            "attention": self.attention_weight * torch.stack(scores).sum(),
        }

    def prediction(self, step: Step) -> Losses:
        """The teacher's logits (B, K)."""
        return {"kd": kd_loss(step.student.logits, step.teacher.logits, self.temperature)}

    def joint(self, step: Step) -> Losses:
        """Both stages' losses."""
        return self.intermediate(step) | self.prediction(step)

    @staticmethod
    def _scores(student: Signals, teacher: Signals, mine: int, theirs: int) -> Tensor:
        """`attention_score_loss` of two layers, over means where the numbers of heads differ."""
        first = attention_scores(*require("qkv", student.qkv)[mine][:2])
        second = attention_scores(*require("qkv", teacher.qkv)[theirs][:2])
        if first.shape[1] != second.shape[1]:
            first, second = first.mean(dim=1, keepdim=True), second.mean(dim=1, keepdim=True)
        return attention_score_loss(first, second, student.mask)
