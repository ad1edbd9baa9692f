"""Starts the student from every other block of the teacher and distills predictions and hidden states: DistilBERT."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

from kdbench.methods.base import (
    STUDENT,
    Losses,
    Method,
    Net,
    Networks,
    Paper,
    Signals,
    Stage,
    Step,
    Unsupported,
    loss_weight,
    method,
    tuned,
)
from kdbench.methods.checks import non_negative, positive, require, same_shape
from kdbench.methods.functional import check_mask, kd_loss, masked_mean, same_tokens, uniform_map
from kdbench.methods.hooks import StageOptions, nothing


def cosine_loss(student_hidden: Tensor, teacher_hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over positions of one minus the cosine similarity along D.

    Args:
        student_hidden: (B, N, D)
        teacher_hidden: (B, N, D)
        mask: (B, N), 0 at padded positions, which count for nothing.

    Raises:
        ValueError: if the shapes differ, or the mask does not fit.
    """
    same_shape(student_hidden, teacher_hidden)
    check_mask(mask, student_hidden)
    return masked_mean(1 - F.cosine_similarity(student_hidden, teacher_hidden, dim=-1), mask)


def copy_blocks(student: nn.Module, teacher: nn.Module) -> None:
    """Copies the teacher's weights by name into the student, whose blocks are taken from all along the teacher.

    Args:
        student: a timm model with `blocks`.
        teacher: of the same family and width, with as many blocks or more.

    Raises:
        Unsupported: if a weight of the student is not there, or has another shape.
    """
    student_blocks: Any = student.blocks
    teacher_blocks: Any = teacher.blocks
    origins, source = uniform_map(len(student_blocks), len(teacher_blocks)), teacher.state_dict()
    state = {}
    for name, weight in student.state_dict().items():
        prefix, _, rest = name.partition(".")
        if prefix == "blocks":
            index, _, rest = rest.partition(".")
            origin = f"blocks.{origins[int(index)]}.{rest}"
        else:
            origin = name
        if origin not in source or source[origin].shape != weight.shape:
            theirs = tuple(source[origin].shape) if origin in source else "nothing of that name"
            raise Unsupported(f"the student's {name} is {tuple(weight.shape)}, and the teacher has {theirs} to copy.")
        state[name] = source[origin]
    student.load_state_dict(state)


@method
class DistilBERT(Method):
    """Loss = soft_weight * T^2 * KL + hard_weight * cross-entropy + cosine_weight * `cosine_loss` of the last states.

    Weights 5, 2, 1 and T = 2 are those of the command in the authors' description of their program, whose hard loss is
    masked language modelling; here it is cross-entropy with the labels. The student has the teacher's width and fewer
    blocks, and starts from every other block (more generally, evenly spaced ones, the last among them) and from all
    other weights.

    `copy` = false starts from random weights, which makes this a sum of losses that can be composed with others.

    Departures: vision transformers of timm in place of BERT, whose blocks norm what they put out: the last states are
    taken after the network's final norm, where it does not norm what it has pooled instead. The authors' script takes
    blocks 0, 2, 4, 7, 9, 11 of 12.
    """

    collection = "survey"
    paper = Paper(
        "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter",
        "Sanh, Debut, Chaumond, Wolf",
        2019,
        "https://arxiv.org/abs/1910.01108",
    )
    equation = (
        r"\mathcal{L} = w_{\text{soft}}\,T^2\,\text{KL}(\sigma(z_t/T) \parallel \sigma(z_s/T)) + "
        r"w_{\text{hard}}\,\mathcal{L}_{\text{task}}(z_s, y) + w_{\cos} \, \text{mean}\,(1 - \cos(h_s, h_t))"
        "\n"
        r"w_{\text{soft}} = \text{soft\_weight}, \quad w_{\text{hard}} = \text{hard\_weight}, \quad w_{\cos} "
        r"= \text{cosine\_weight}"
    )
    knowledge = "self-attention"
    needs = frozenset({"tokens"})
    temperature: float = tuned(2.0, FloatDistribution(1.0, 20.0, log=True))
    soft_weight: float = loss_weight(5.0, "kd")
    hard_weight: float = 2.0
    cosine_weight: float = loss_weight(1.0, "cosine")
    copy: bool = True

    def __post_init__(self) -> None:
        """Checks the ranges."""
        positive(temperature=self.temperature)
        non_negative(soft_weight=self.soft_weight, hard_weight=self.hard_weight, cosine_weight=self.cosine_weight)

    def stages(self, teachers: tuple[Net, ...]) -> Iterable[Stage]:
        """One stage, that starts from the teacher's weights."""

        def start(networks: Networks) -> None:
            copy_blocks(networks.model(STUDENT), networks.model(teachers[0]))
            networks.share_normalisation(STUDENT, teachers[0])

        return (
            Stage("train", self.loss, teachers=teachers, options=StageOptions(prepare=start if self.copy else nothing)),
        )

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """None; checks that the tokens are alike."""
        mine, theirs = require("tokens", student.tokens)[-1], require("tokens", teachers[0].tokens)[-1]
        same_tokens(mine, theirs)
        if mine.shape[-1] != theirs.shape[-1]:
            raise Unsupported(
                f"the student is {mine.shape[-1]} wide and the teacher {theirs.shape[-1]}: give equal ones."
            )
        return nn.ModuleDict()

    def loss(self, step: Step) -> Losses:
        """Soft and hard targets (B, K), and the direction of the last hidden states (B, N, D)."""
        mine, theirs = require("tokens", step.student.tokens)[-1], require("tokens", step.teacher.tokens)[-1]
        return {
            "kd": self.soft_weight * kd_loss(step.student.logits, step.teacher.logits, self.temperature),
            **step.task_loss(self.hard_weight),
            "cosine": self.cosine_weight * cosine_loss(mine, theirs, step.student.mask),
        }
