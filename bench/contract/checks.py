"""The contract of a method, check by check; each that is broken says what to change."""

from __future__ import annotations

import contextlib
import io
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdbench.bench.contract.gradients import gradients_reach_what_they_should
from kdbench.bench.contract.memory import Memory
from kdbench.bench.contract.rules import KEPT, Broken, finite, rule, steady
from kdbench.bench.contract.terms import losses_are_named_numbers, weights_are_calibrated
from kdbench.bench.contract.toy import CPU, PAIRS, RECIPE, Ended, Toy, toy_data
from kdbench.bench.contract.words import (
    defaults_lie_in_the_search_space,
    says_what_it_is_given,
    says_where_it_comes_from,
)
from kdbench.bench.networks.signals import GRADIENTS
from kdbench.bench.record import Stopped
from kdbench.bench.spec import Compute, Recipe, Spec
from kdbench.bench.teachers.backends import Memory as CacheBackend
from kdbench.bench.teachers.cache import TeacherCache
from kdbench.bench.training.engine import run, updates
from kdbench.bench.training.interleave import interleave
from kdbench.methods.base import Net

BENCH = Path(__file__).parents[1]
"""Of this package: where an error was raised in a method's own code is sought elsewhere."""


def trains(toy: Toy) -> None:
    """A whole run ends with finite losses, and a student that can be scored."""
    outcome, _, memory = toy.whole
    rule(outcome.status == "done", f"the run on {toy.home} ended as {outcome.status}: {outcome.reason}")
    finite(memory)
    rule(len(memory.epochs) >= RECIPE.epochs, f"its stages have {len(memory.epochs)} of {RECIPE.epochs} epochs")
    score = outcome.headline("last", "test", "accuracy") or 0.0
    rule(0 < score <= 1, "the headline of predictions must be logits (M, K) that can be scored")


def one_seed_gives_one_result(toy: Toy) -> None:
    """The same seed gives the same weights to the bit, another seed others."""
    again = toy.run()
    draws = "draw random numbers by torch on the default generator, or by networks.generator(name), and by nothing else"
    rule(again.files == toy.whole.files, f"the same seed gave other weights: {draws}")
    rule(again.outcome.scores == toy.whole.outcome.scores, f"the same seed gave other scores: {draws}")
    other = _first_epoch(toy, toy.spec(seed=2))
    alike = [epoch.losses for epoch in other.epochs] == [epoch.losses for epoch in toy.whole.memory.epochs[:1]]
    rule(not alike, "another seed gave the same losses: nothing may set the seed")


def goes_on_to_the_bit(toy: Toy) -> None:
    """A run that is stopped early, half way or before its last epoch goes on to the weights that it would have had."""
    stopped = _first_epoch(toy, toy.spec())
    rule(list(stopped.states) == [1], "a run that is stopped after its first epoch must leave its checkpoint")
    steady(_untimed(stopped.state), _untimed(toy.whole.memory.states[1]))
    epochs = len(toy.whole.memory.epochs)
    for stop in sorted({1, epochs // 2, epochs - 1}):
        _resumed(toy, stop)


def _first_epoch(toy: Toy, spec: Spec) -> Memory:
    """What a run that is stopped after its first epoch has recorded."""
    stopped = toy.memory(spec, stop_after=1)
    with contextlib.suppress(Stopped):
        run(spec, toy_data(), stopped, CPU)
    return stopped


def _resumed(toy: Toy, stop: int) -> None:
    outcome, files, memory = toy.whole
    resumed, same, rest = toy.run(resume=memory.states[stop])
    rule(same == files and resumed.scores == outcome.scores, f"resumed after epoch {stop}, weights differ: {KEPT}")
    losses = [epoch.losses for epoch in memory.epochs[stop:]]
    rule([epoch.losses for epoch in rest.epochs] == losses, f"resumed after epoch {stop}, losses differ: {KEPT}")
    counts = ("samples", "teacher_forwards", "epochs")
    rule(
        [resumed.cost[name] for name in counts] == [outcome.cost[name] for name in counts],
        f"resumed after epoch {stop}, the costs differ: stages must depend on hyperparameters alone",
    )


def _untimed(state: bytes) -> dict[str, Any]:
    """A checkpoint without what a clock measured."""
    values: dict[str, Any] = torch.load(io.BytesIO(state), weights_only=True)
    cost = {name: value for name, value in values["cost"].items() if not name.endswith("seconds")}
    return {**values, "cost": cost}


def answers_may_be_shared(toy: Toy) -> None:
    """Teachers' answers that were kept, or are shared with a run side by side, change no bit."""
    outcome, files, memory = toy.whole
    spec, cache = toy.spec(), TeacherCache(CacheBackend(2**30))
    recorders = [toy.memory(spec) for _ in range(3)]
    pair = interleave([updates(spec, toy_data(), each, CPU, cache) for each in recorders[:2]], CPU)
    results = [*pair, run(spec, toy_data(), recorders[2], CPU, cache)]
    for result, recorder in zip(results, recorders, strict=True):
        if isinstance(result, Exception):
            raise result
        again = Ended(*result, recorder)
        same = again.files == files and again.outcome.scores == outcome.scores
        losses = [epoch.losses for epoch in recorder.epochs] == [epoch.losses for epoch in memory.epochs]
        rule(
            same and losses, "shared answers of the teacher changed the result: a loss may not write into what it sees"
        )
        asked = again.outcome.cost["teacher_forwards"] == outcome.cost["teacher_forwards"]
        rule(asked, "the teacher was asked about other samples: stages must depend on hyperparameters alone")
    cached = again.outcome.cost["teacher_cached"]
    if toy.method.needs & GRADIENTS:
        rule(cached == 0, "gradients of a teacher depend on the weights' moment and cannot be kept")
    elif len(list(toy.method.stages((Net("teacher"),)))) == 1:
        whole = cached == outcome.cost["teacher_forwards"] and outcome.cost["teacher_cached"] == 0
        rule(whole, "the teacher's kept answers were not used: its stage's teachers must be those that stages is given")


def works_in_bf16(toy: Toy) -> None:
    """In bf16 and channels-last all losses are finite."""
    fast = {"compute": Compute(precision="bf16", layout="channels_last")}
    spec = toy.spec(recipe=_short())
    teachers = tuple(teacher.model_copy(update=fast) for teacher in spec.teachers)
    spec = spec.model_copy(update={"student": spec.student.model_copy(update=fast), "teachers": teachers})
    ended = toy.run(spec)
    status = f"the run in bf16 ended as {ended.outcome.status}: {ended.outcome.reason}"
    rule(ended.outcome.status == "done", f"{status}; compute what bf16 cannot hold in .float()")
    finite(ended.memory)


def other_pairs_work_or_are_refused(toy: Toy) -> None:
    """On networks of other families it works, or says in a sentence what is missing."""
    for pair in PAIRS:
        if pair != toy.home:
            on_pair(toy, pair)


def on_pair(toy: Toy, pair: str) -> None:
    """On a pair it works, or says in a sentence what is missing."""
    way = "raise kdbench.methods.base.Unsupported with a sentence that names what is missing"
    try:
        outcome, _, memory = toy.run(toy.spec(pair, recipe=_short()))
    except Exception as error:  # what the method's own code raises
        raise Broken(f"on {pair} it raised {_place(error)}: {way}, or match the shapes") from error
    said = outcome.status == "unsupported" and len(outcome.reason) > 20
    rule(outcome.status == "done" or said, f"on {pair} it ended as {outcome.status}: {outcome.reason!r}: {way}")
    finite(memory)


def _short() -> Recipe:
    return RECIPE.model_copy(update={"epochs": 2})


CHECKS: dict[str, Callable[[Toy], None]] = {
    check.__name__.replace("_", " "): check
    for check in (
        says_where_it_comes_from,
        defaults_lie_in_the_search_space,
        says_what_it_is_given,
        losses_are_named_numbers,
        trains,
        gradients_reach_what_they_should,
        weights_are_calibrated,
        one_seed_gives_one_result,
        goes_on_to_the_bit,
        answers_may_be_shared,
        works_in_bf16,
        other_pairs_work_or_are_refused,
    )
}
"""All checks by their names, the cheap ones first; each raises Broken."""


@dataclass(frozen=True)
class Verdict:
    """What a check has found."""

    check: str
    problem: str
    """What to change; empty if nothing."""


def check(name: str) -> Iterator[Verdict]:
    """Checks a method by its id, one verdict after another; those after a broken one are still given."""
    toy = Toy(name)
    torch.set_num_threads(1)  # networks are so small that more would wait for each other
    for title, each in CHECKS.items():
        try:
            each(toy)
        except Broken as broken:
            yield Verdict(title, str(broken))
        except Exception as error:  # what the method's own code raises
            yield Verdict(title, f"it raised {_place(error)}")
        else:
            yield Verdict(title, "")


def _place(error: Exception) -> str:
    """An error as one line, with the line of code that it comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        each for each in frames if not (Path(each.filename).is_relative_to(BENCH) or "site-packages" in each.filename)
    ]
    where = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{where}"
