"""Adds up losses of other methods, each with its weight and layers, from one or several teachers: TextBrewer."""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from optuna.distributions import BaseDistribution, FloatDistribution
from torch import Tensor, nn

from kdbench.methods.base import (
    STUDENT,
    TEACHER,
    Data,
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
from kdbench.methods.checks import non_negative, one_of, positive
from kdbench.methods.hooks import StageOptions, nothing
from kdbench.methods.matches import MATCHES
from kdbench.methods.registry import OUTSIDE, REGISTRY
from kdbench.methods.rows import Rows

TERM = re.compile(r"(?:(?P<weight>[0-9.eE-]+)\*)?(?P<id>\w+(?:@[0-9a-f]+)?)(?:\((?P<values>.*)\))?")
SCHEDULES = ("constant", "linear_decay", "linear_growth")


@dataclass(frozen=True)
class Term:
    """A method of a composition, and its weight."""

    name: str
    """The method's, with the place in the composition where it is not the first of that name."""
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
    found: dict[str, Term] = {}
    for place, text in enumerate(_split(losses, "+"), start=1):
        term = _term(text.strip())
        name = term.name if term.name not in found else f"{term.name}_{place}"
        found[name] = replace(term, name=name)
    return tuple(found.values())


def schedule_at(progress: float, schedule: str) -> float:
    """A factor between 0 and 1: constant at 1, falling to 0 (linear_decay) or rising from it (linear_growth)."""
    return {"constant": 1.0, "linear_decay": 1 - progress, "linear_growth": progress}[schedule]


@method
class TextBrewer(Method):
    """Loss = hard_weight * cross-entropy + weight * sum over terms of (its weight * that method's own losses).

    `losses` names the terms, joined by "+", each with an optional weight and hyperparameters, as in
    "kd+0.5*at(beta=500,depths=[0.5,1])": methods of the registry that train in one stage; and TextBrewer's own, its
    soft losses (kd_ce, kd_mse) and its matches of transformers' layers (hidden_mse, cos, pkd, gram, nst, attention_mse,
    attention_mse_sum, attention_ce, attention_ce_mean), with a `projection` of states where widths differ. A term's
    layers are its own `depths` and `teacher_depths`. `weights` has factors on terms by name, as {"kd": 2, "at_3": 0.5}
    (a name's later terms have their place behind it), and is what tuning searches, one by one.

    Defaults are TextBrewer's: temperature 4, the soft loss at weight 1 without T^2, no labels (`hard_weight` = 0), and
    an intermediate match that works on every pair, FSP. `probability_shift` swaps a teacher's largest logit with that
    of the label, so that it is never wrong. `kdbench run --method "kd+at"` is short for this method with those losses
    and `hard_weight` = 1, as other programs add them up.

    `temperature` holds for every term that has one and does not set it; it goes linearly to `temperature_end` if that
    is given; `schedule` and `hard_schedule` scale the distillation losses and the hard one during training; with
    several teachers a term is the mean over teachers, unless its method takes several itself.

    Methods of several stages have an option that adds their losses up: `fitnets(one_stage=true)`, likewise `fsp`,
    `tinybert`, `minilm`; `distilbert(copy=false)`. A `scheduled_kd` term goes on to halve the temperature given here.

    Departures: for image classifiers of timm. Layers are named by relative depth, of hidden states the embedding is the
    first; gram and nst relate a layer to itself, as in its examples; a cross-entropy of distributions is a divergence,
    of equal gradient. TextBrewer averages the logits of several teachers and matches no layers then; here every teacher
    has its term. Its weights of intermediate matches are constant, and its temperatures depend on each example (flsw,
    cwsm) where ours is linear.
    """

    collection = "survey"
    paper = Paper(
        "TextBrewer: An Open-Source Knowledge Distillation Toolkit for Natural Language Processing",
        "Yang, Cui, Chen, Che, Liu, Wang, Hu",
        2020,
        "https://arxiv.org/abs/2002.12620",
    )
    equation = (
        r"\mathcal{L} = w_h \, s_h(p)\,\mathcal{L}_{\text{task}}(z_s, y) + w \, s(p) \sum_{i} w_i \, c_i \, "
        r"\frac{1}{m} \sum_{t=1}^{m} \mathcal{L}_i(s, t), \quad \text{by default} \quad "
        r"\text{KL}(\sigma(z_t/T) \parallel \sigma(z_s/T)) + \mathcal{L}_{\text{fsp}}"
        "\n"
        r"w_h = \text{hard\_weight}, \quad w = \text{weight}, \quad w_i = \text{weights}_i, \quad c_i = "
        r"\text{its factor in losses}, \quad s_h, s = \text{hard\_schedule}, \text{schedule}"
    )
    several_teachers = True
    composition = "losses"
    composed_with: ClassVar[dict[str, Any]] = {"hard_weight": 1.0}
    losses: str = "kd_ce+fsp(one_stage=true)"
    weights: dict[str, float] = field(default_factory=dict)
    weight: float = 1.0
    hard_weight: float = 0.0
    temperature: float = tuned(4.0, FloatDistribution(1.0, 20.0, log=True))
    temperature_end: float = 0.0
    schedule: str = "constant"
    hard_schedule: str = "constant"
    probability_shift: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges and reads the terms."""
        non_negative(weight=self.weight, hard_weight=self.hard_weight, temperature_end=self.temperature_end)
        positive(temperature=self.temperature)
        one_of(SCHEDULES, schedule=self.schedule)
        one_of(SCHEDULES, hard_schedule=self.hard_schedule)
        names = [term.name for term in terms_of(self.losses)]
        if unknown := sorted(set(self.weights) - set(names)):
            raise ValueError(f"weights names {', '.join(unknown)}, but the terms of losses are {', '.join(names)}.")
        non_negative(**{f"weights.{name}": factor for name, factor in self.weights.items()})

    def space(self) -> dict[str, BaseDistribution]:
        """The temperature, if any term has this one."""
        return super().space() if any(_tempered(term) for term in terms_of(self.losses)) else {}

    def loss_weights(self) -> dict[str, tuple[str, ...]]:
        """The factor on each term."""
        return {f"weights.{term.name}": (term.name,) for term in terms_of(self.losses)}

    def calibrated_at(self) -> float:
        """Where the last warm-up of any of the terms has ended."""
        return max(term.method.calibrated_at() for term in terms_of(self.losses))

    def needed(self) -> frozenset[str]:
        """What any of the terms needs, and labels that a teacher can be shifted to."""
        shift = frozenset({"class_targets"}) if self.probability_shift else frozenset()
        return shift.union(*(term.method.needed() for term in terms_of(self.losses)))

    def stages(self, teachers: tuple[Net, ...]) -> Iterable[Stage]:
        """One stage, with the strictest gradient clipping of any term."""
        norms = [_only_stage(term.method).options.clip_norm for term in terms_of(self.losses)]
        clip_norm = min((norm for norm in norms if norm), default=0.0)
        return (Stage("train", self.loss, teachers=teachers, options=StageOptions(clip_norm=clip_norm)),)

    def modules_of_data(self, student: Signals, teachers: tuple[Signals, ...], data: Data) -> nn.ModuleDict:
        """Every term's own modules, for each teacher that it learns from."""
        modules = {
            _name(place, group): term.method.modules_of_data(student, taught, data)
            for place, term in enumerate(terms_of(self.losses))
            for group, taught in enumerate(_groups(term, teachers))
        }
        return nn.ModuleDict({name: module for name, module in modules.items() if len(module)})

    def loss(self, step: Step) -> Losses:
        """Labels, and each term by its name."""
        scale = self.weight * schedule_at(step.progress, self.schedule)
        hard = self.hard_weight * schedule_at(step.progress, self.hard_schedule)
        losses = step.task_loss(hard)
        if self.probability_shift:
            shifted = [replace(each, logits=shift_to_labels(each.logits, step.targets)) for each in step.teachers]
            step = replace(step, teachers=tuple(shifted))
        for place, term in enumerate(terms_of(self.losses)):
            factor = scale * term.weight * self.weights.get(term.name, 1.0)
            losses[term.name] = factor * self._value(step, place, term)
        return losses

    def _value(self, step: Step, place: int, term: Term) -> Tensor:
        """A term's losses but the hard one, mean over the teachers."""
        learner = term.method
        if _tempered(term):
            learner = replace(learner, temperature=self._temperature(step.progress))  # type: ignore[type-var]
        values = []
        for group, taught in enumerate(_groups(term, step.teachers)):
            name = _name(place, group)
            auxiliary = step.auxiliary[name] if name in step.auxiliary else nn.ModuleDict()
            assert isinstance(auxiliary, nn.ModuleDict)
            seen = replace(step, teachers=taught, auxiliary=auxiliary, hard_loss=no_hard_loss)
            values += [torch.stack(list(_only_stage(learner).loss(seen).values())).sum()]
        return torch.stack(values).mean()

    def _temperature(self, progress: float) -> float:
        end = self.temperature_end or self.temperature
        return self.temperature + (end - self.temperature) * progress


def shift_to_labels(logits: Tensor, targets: Rows) -> Tensor:
    """Logits in which the largest and that of the label have changed places, where there is a label.

    Args:
        logits: (B, K)
        targets: (B,) classes, or (B, K) probabilities, of which a row of zeros is a sample without a label.
    """
    assert isinstance(targets, Tensor), "needed() names class_targets"
    top, rows = logits.argmax(dim=1), torch.arange(len(logits), device=logits.device)
    labels = targets if targets.dim() == 1 else torch.where(targets.any(dim=1), targets.argmax(dim=1), top)
    shifted = logits.clone()
    shifted[rows, top], shifted[rows, labels] = logits[rows, labels], logits[rows, top]
    return shifted


def no_hard_loss(student: Signals, targets: Rows) -> Losses:
    """What a term's loss is given for the task's own, which is counted once, beside the terms."""
    return {}


def _tempered(term: Term) -> bool:
    """Whether a term has the composition's temperature."""
    return "temperature" in term.method.hyperparameters() and "temperature" not in term.given


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
    if name not in (known := {**REGISTRY, **OUTSIDE, **MATCHES}):
        near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.5) or sorted(known))
        raise ValueError(f"losses name methods, and there is no {name!r}; near: {near}.")
    try:
        weight = float(match["weight"] or 1)
        items = _split(match["values"], ",") if match["values"] else []
        values = dict(_value(item, name, known[name]) for item in items)
        learner = known[name](**values, **({"kind": name} if name in MATCHES else {}))
        if not learner.needs_teacher or learner.composition or learner.deploys_modules:
            raise ValueError(f"{name} has no loss on one teacher's signals and cannot be added.")
        _only_stage(learner)
        non_negative(weight=weight)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the term {text!r} of losses: {error}") from None
    return Term(name, weight, learner, frozenset(values))


def _only_stage(learner: Method) -> Stage:
    """The stage of a method that trains the student alone, on the data as given.

    Raises:
        ValueError: if the method does anything else.
    """
    stage, *others = learner.stages((TEACHER,))
    if others or stage.students != (STUDENT,) or stage.data is not as_given or stage.options.prepare is not nothing:
        raise ValueError(f"{learner.id} is more than a loss (it has stages or data of its own) and cannot be added.")
    return stage


def _value(item: str, name: str, learner: type[Method]) -> tuple[str, Any]:
    """A hyperparameter as NAME=VALUE; the value is JSON, or text."""
    key, equals, text = (part.strip() for part in item.partition("="))
    fields = [each for each in learner.__dataclass_fields__ if each != "kind"]  # type: ignore[attr-defined]
    if not equals or key not in fields:
        raise ValueError(f"{name} takes NAME=VALUE of {', '.join(fields)}, but got {item.strip()!r}.")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    return key, tuple(value) if isinstance(value, list) else value


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
