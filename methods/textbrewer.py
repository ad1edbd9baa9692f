"""Adds up losses of other methods, each with its weight and layers, from one or several teachers: TextBrewer."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

from methods.base import (
    REGISTRY,
    STUDENT,
    TEACHER,
    Losses,
    Method,
    Net,
    Paper,
    Signals,
    Stage,
    Step,
    as_given,
    method,
    tuned,
)
from methods.checks import non_negative, one_of, positive
from methods.hooks import StageOptions, nothing
from methods.rows import Rows

TERM = re.compile(r"(?:(?P<weight>[0-9.eE-]+)\*)?(?P<id>\w+)(?:\((?P<values>.*)\))?")
SCHEDULES = ("constant", "linear_decay", "linear_growth")


@dataclass(frozen=True)
class Term:
    """A method of a composition, and its weight."""

    weight: float
    method: Method
    given: frozenset[str]
    """Hyperparameters that the composition sets."""


@functools.cache
def terms_of(losses: str) -> tuple[Term, ...]:
    """The terms of a composition such as "kd+0.5*at(beta=500,depths=[0.5,1])+sp".

    Raises:
        ValueError: if it cannot be read, or names what is no composable method; the message says which term.
    """
    return tuple(_term(text.strip()) for text in _split(losses, "+"))


def schedule_at(progress: float, schedule: str) -> float:
    """A factor between 0 and 1: constant at 1, falling to 0 (linear_decay) or rising from it (linear_growth)."""
    return {"constant": 1.0, "linear_decay": 1 - progress, "linear_growth": progress}[schedule]


@method
class TextBrewer(Method):
    """Loss = hard_weight * cross-entropy + weight * sum over terms of (its weight * that method's own losses).

    `losses` names the terms: methods of the registry that train in one stage, joined by "+", each with an optional
    weight and hyperparameters, as "kd+0.5*at(beta=500,depths=[0.5,1])". A term's layers are its own `depths` and
    `teacher_depths`. `kdbench run --method "kd+at"` is short for this method with those losses.

    `temperature` holds for every term that has one and does not set it; it goes linearly
    to `temperature_end` if that is given; `schedule` and `hard_schedule` scale the distillation losses and the hard one
    during training; with several teachers a term is the mean over teachers, unless its method takes several itself.

    Methods of several stages have an option that adds their losses up: `fitnets(one_stage=true)`, likewise `fsp`,
    `tinybert`, `minilm`; `distilbert(copy=false)`. A `scheduled_kd` term goes on to halve the temperature given here.

    Departures: for image classifiers of timm, and intermediate losses are those of the registry's methods rather than
    TextBrewer's own list (hidden_mse, cos, mmd, pkd, fsp, nst). TextBrewer averages the logits of several teachers and
    matches no layers then; here every teacher has its term. Its weights of intermediate matches are constant, its soft
    loss has no T^2, and its temperatures depend on each example (flsw, cwsm) where ours is linear.
    """

    paper = Paper(
        "TextBrewer: An Open-Source Knowledge Distillation Toolkit for Natural Language Processing",
        "Yang, Cui, Chen, Che, Liu, Wang, Hu",
        2020,
        "https://arxiv.org/abs/2002.12620",
    )
    several_teachers = True
    composition = "losses"
    losses: str = "kd+at"
    weight: float = tuned(1.0, FloatDistribution(0.1, 10.0, log=True))
    hard_weight: float = tuned(1.0, FloatDistribution(0.1, 10.0, log=True))
    temperature: float = tuned(4.0, FloatDistribution(1.0, 20.0, log=True))
    temperature_end: float = 0.0
    schedule: str = "constant"
    hard_schedule: str = "constant"

    def __post_init__(self) -> None:
        """Checks the ranges and reads the terms."""
        non_negative(weight=self.weight, hard_weight=self.hard_weight, temperature_end=self.temperature_end)
        positive(temperature=self.temperature)
        one_of(SCHEDULES, schedule=self.schedule)
        one_of(SCHEDULES, hard_schedule=self.hard_schedule)
        terms_of(self.losses)

    def needed(self) -> frozenset[str]:
        """What any of the terms needs."""
        return frozenset().union(*(term.method.needed() for term in terms_of(self.losses)))

    def stages(self, teachers: tuple[Net, ...]) -> Iterable[Stage]:
        """One stage, with the strictest gradient clipping of any term."""
        norms = [_only_stage(term.method).options.clip_norm for term in terms_of(self.losses)]
        clip_norm = min((norm for norm in norms if norm), default=0.0)
        return (Stage("train", self.loss, teachers=teachers, options=StageOptions(clip_norm=clip_norm)),)

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """Every term's own modules, for each teacher that it learns from."""
        modules = {
            _name(place, group): term.method.auxiliary_modules(student, taught)
            for place, term in enumerate(terms_of(self.losses))
            for group, taught in enumerate(_groups(term, teachers))
        }
        return nn.ModuleDict({name: module for name, module in modules.items() if len(module)})

    def loss(self, step: Step) -> Losses:
        """Labels, and each term by its method's id."""
        scale = self.weight * schedule_at(step.progress, self.schedule)
        hard = self.hard_weight * schedule_at(step.progress, self.hard_schedule)
        losses = step.task_loss(hard)
        for place, term in enumerate(terms_of(self.losses)):
            name = term.method.id if term.method.id not in losses else f"{term.method.id}_{place + 1}"
            losses[name] = scale * term.weight * self._value(step, place, term)
        return losses

    def _value(self, step: Step, place: int, term: Term) -> Tensor:
        """A term's losses but the hard one, mean over the teachers."""
        learner = term.method
        if "temperature" in learner.hyperparameters() and "temperature" not in term.given:
            learner = dataclasses.replace(learner, temperature=self._temperature(step.progress))  # type: ignore[type-var]
        values = []
        for group, taught in enumerate(_groups(term, step.teachers)):
            name = _name(place, group)
            auxiliary = step.auxiliary[name] if name in step.auxiliary else nn.ModuleDict()
            assert isinstance(auxiliary, nn.ModuleDict)
            seen = dataclasses.replace(step, teachers=taught, auxiliary=auxiliary, hard_loss=no_hard_loss)
            values += [torch.stack(list(_only_stage(learner).loss(seen).values())).sum()]
        return torch.stack(values).mean()

    def _temperature(self, progress: float) -> float:
        end = self.temperature_end or self.temperature
        return self.temperature + (end - self.temperature) * progress


def no_hard_loss(student: Signals, targets: Rows) -> Losses:
    """What a term's loss is given for the task's own, which is counted once, beside the terms."""
    return {}


def _name(place: int, group: int) -> str:
    return f"term_{place + 1}_teacher_{group + 1}"


def _groups(term: Term, teachers: tuple[Signals, ...]) -> list[tuple[Signals, ...]]:
    """The teachers that a term's loss sees at once."""
    return [teachers] if term.method.several_teachers else [(teacher,) for teacher in teachers]


def _term(text: str) -> Term:
    match = TERM.fullmatch(text)
    if not match:
        raise ValueError(f"a term of losses reads [WEIGHT*]METHOD[(NAME=VALUE,...)], but got {text!r}.")
    name = match["id"]
    if name not in REGISTRY:
        near = ", ".join(difflib.get_close_matches(name, REGISTRY, n=3, cutoff=0.5) or sorted(REGISTRY))
        raise ValueError(f"losses name methods, and there is no {name!r}; near: {near}.")
    try:
        weight = float(match["weight"] or 1)
        values = dict(_value(item, name) for item in _split(match["values"], ",")) if match["values"] else {}
        learner = REGISTRY[name](**values)
        if not learner.needs_teacher or learner.composition:
            raise ValueError(f"{name} has no loss on one teacher's signals and cannot be added.")
        _only_stage(learner)
        non_negative(weight=weight)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the term {text!r} of losses: {error}") from None
    return Term(weight, learner, frozenset(values))


def _only_stage(learner: Method) -> Stage:
    """The stage of a method that trains the student alone, on the data as given.

    Raises:
        ValueError: if the method does anything else.
    """
    stage, *others = learner.stages((TEACHER,))
    if others or stage.students != (STUDENT,) or stage.data is not as_given or stage.options.prepare is not nothing:
        raise ValueError(f"{learner.id} is more than a loss (it has stages or data of its own) and cannot be added.")
    return stage


def _value(item: str, name: str) -> tuple[str, Any]:
    """A hyperparameter as NAME=VALUE; the value is JSON, or text."""
    field, equals, text = (part.strip() for part in item.partition("="))
    fields = REGISTRY[name].__dataclass_fields__  # type: ignore[attr-defined]
    if not equals or field not in fields:
        raise ValueError(f"{name} takes NAME=VALUE of {', '.join(fields)}, but got {item.strip()!r}.")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    return field, tuple(value) if isinstance(value, list) else value


def _split(text: str, separator: str) -> list[str]:
    """Parts between separators that stand in no bracket."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "([") - (char in ")]")
        if char == separator and not depth:
            parts.append("")
        else:
            parts[-1] += char
    return parts
