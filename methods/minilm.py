"""Makes the student's last attention relate tokens as the teacher's does, then trains it on the task: MiniLM."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from optuna.distributions import BaseDistribution, FloatDistribution
from torch import Tensor, nn

from kdbench.methods.base import Losses, Method, Net, Paper, Signals, Stage, Step, as_given, method, tuned
from kdbench.methods.checks import non_negative, require
from kdbench.methods.functional import check_mask, masked_mean, same_tokens, with_unlabelled
from kdbench.methods.hooks import StageOptions

Pair = tuple[Tensor, Tensor]


def attention_relation_loss(student_qk: Pair, teacher_qk: Pair, mask: Tensor | None = None) -> Tensor:
    r"""KL of the attention distributions softmax(Q K^T / sqrt d), teacher || student, mean over batch, heads, queries.

    Args:
        student_qk: queries and keys, (B, heads, N, d) each.
        teacher_qk: likewise; d may differ.
        mask: (B, N), 0 at padded positions: they get no attention as keys and do not count as queries.

    Raises:
        ValueError: if batch, heads or tokens differ, or the mask does not fit.
    """
    return _relation_loss(*student_qk, *teacher_qk, mask)


def value_relation_loss(student_value: Tensor, teacher_value: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""KL of the value relations softmax(V V^T / sqrt d), teacher || student, mean over batch, heads and rows.

    Args:
        student_value: (B, heads, N, d)
        teacher_value: (B, heads, N, d'); d' may differ.
        mask: (B, N), 0 at padded positions.

    Raises:
        ValueError: if batch, heads or tokens differ, or the mask does not fit.
    """
    return _relation_loss(student_value, student_value, teacher_value, teacher_value, mask)


def _relation_loss(query: Tensor, key: Tensor, their_query: Tensor, their_key: Tensor, mask: Tensor | None) -> Tensor:
    if query.dim() != 4 or query.shape[:3] != their_query.shape[:3]:
        shapes = f"{tuple(query.shape)} and {tuple(their_query.shape)}"
        raise ValueError(f"relations need (B, heads, N, d) with equal batch, heads and tokens, but got {shapes}.")
    check_mask(mask, query)
    student, teacher = _log_relation(query, key, mask), _log_relation(their_query, their_key, mask)
    divergence = (teacher.exp() * (teacher - student)).sum(dim=-1)
    return masked_mean(divergence, None if mask is None else mask[:, None, :])


def _log_relation(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :].bool(), torch.finfo(scores.dtype).min)
    return F.log_softmax(scores, dim=-1)


def relation_heads(vectors: Tensor, heads: int) -> Tensor:
    """Vectors (B, H, N, d) cut into another number of heads: (B, heads, N, H d / heads)."""
    batch, own, tokens, width = vectors.shape
    return vectors.transpose(1, 2).reshape(batch, tokens, heads, own * width // heads).transpose(1, 2)


@method
class MiniLM(Method):
    """Stage "transfer": attention and value relations of the last block; stage "task": cross-entropy alone.

    As in the paper, the first stage takes no labels (so it also uses the unlabelled images, unless `unlabelled` is
    false) and sends no gradient past the last attention; the second fine-tunes the student on the task. Student and
    teacher may differ in width and depth. Where they differ in heads, which the paper excludes, vectors are cut into as
    many relation heads as divide both numbers of heads (the idea of MiniLMv2, Wang et al. 2021).

    `one_stage` adds the relations to cross-entropy, so that they can be composed with others.

    Departures: vision transformers of timm in place of BERT. Stages share the run's epochs, half each by default; the
    paper's 400,000 updates on text say nothing of images. Queries and keys are taken as they meet, rotated and normed
    where a network does so; biases of the scores, as of relative positions and between shifted windows, are left out of
    the relations. Attention that works in windows is compared window by window; where it does not relate each token
    with every other one (pooled keys, class attention, talking heads) the network is refused.
    """

    collection = "survey"
    paper = Paper(
        "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers",
        "Wang, Wei, Dong, Bao, Yang, Zhou",
        2020,
        "https://arxiv.org/abs/2002.10957",
    )
    equation = (
        r"\mathcal{L}_1 = R(Q_t, K_t, Q_s, K_s) + \lambda \, R(V_t, V_t, V_s, V_s), \quad \text{then} \quad "
        r"\mathcal{L}_2 = \mathcal{L}_{\text{task}}(z_s, y)"
        "\n"
        r"R(A_t, B_t, A_s, B_s) = \text{mean}\,\text{KL}\Big(\sigma\Big(\frac{A_t B_t^\top}{\sqrt{d_t}}\Big) "
        r"\parallel \sigma\Big(\frac{A_s B_s^\top}{\sqrt{d_s}}\Big)\Big), \quad \lambda = \text{value\_weight}"
    )
    knowledge = "self-attention"
    needs = frozenset({"qkv"})
    value_weight: float = tuned(1.0, FloatDistribution(0.1, 10.0, log=True))
    transfer_epochs: float = tuned(0.5, FloatDistribution(0.2, 0.8))
    unlabelled: bool = True
    one_stage: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(value_weight=self.value_weight)
        if not 0 < self.transfer_epochs < 1:
            raise ValueError(
                f"transfer_epochs must lie between 0 and 1, both excluded, but got {self.transfer_epochs}."
            )

    def space(self) -> dict[str, BaseDistribution]:
        """The first stage has a length where there are two."""
        own = super().space()
        return {name: own[name] for name in own if not (self.one_stage and name == "transfer_epochs")}

    def needed(self) -> frozenset[str]:
        """Queries, keys and values; targets that can be empty too, where unlabelled samples take part."""
        return self.needs | {"class_targets"} if self.uses_unlabelled() else self.needs

    def uses_unlabelled(self) -> bool:
        """In the first stage, unless it is told not to; labels and images go together where both stages are one."""
        return self.unlabelled and not self.one_stage

    def stages(self, teachers: tuple[Net, ...]) -> Iterable[Stage]:
        """Relations, then the task; or both at once, on labelled images."""
        if self.one_stage:
            return (Stage("joint", self.joint, teachers=teachers),)
        data = with_unlabelled if self.unlabelled else as_given
        return (
            Stage("transfer", self.transfer, teachers=teachers, epochs=self.transfer_epochs, data=data),
            Stage(
                "task", self.task, teachers=(), epochs=1 - self.transfer_epochs, options=StageOptions(needs=frozenset())
            ),
        )

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """None; checks that the tokens are alike."""
        same_tokens(require("qkv", student.qkv)[-1][0], require("qkv", teachers[0].qkv)[-1][0])
        return nn.ModuleDict()

    def transfer(self, step: Step) -> Losses:
        """Relations between the N tokens, (B, heads, N, N)."""
        mine, theirs = require("qkv", step.student.qkv)[-1], require("qkv", step.teacher.qkv)[-1]
        mask = step.student.mask
        heads = math.gcd(mine[0].shape[1], theirs[0].shape[1])
        query, key, value = (relation_heads(each, heads) for each in mine)
        their_query, their_key, their_value = (relation_heads(each, heads) for each in theirs)
        return {
            "attention": attention_relation_loss((query, key), (their_query, their_key), mask),
            "value": self.value_weight * value_relation_loss(value, their_value, mask),
        }

    def joint(self, step: Step) -> Losses:
        """Both stages' losses."""
        return self.task(step) | self.transfer(step)

    def task(self, step: Step) -> Losses:
        """Cross-entropy of the logits (B, K)."""
        return step.task_loss()
