"""What tuning tried: each trial's setting and its worth on validation, of a suite and the longer tuning before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from kdbench.bench.errors import InputError
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.stored_run import StoredRun

Place = tuple[str, str]
"""A pair and a row, by name."""


@dataclass(frozen=True)
class Trial:
    """A tuning trial that has begun."""

    suite: str
    """NAME@HASH of the suite whose study it is of."""
    number: int
    setting: dict[str, Any]
    status: Literal["complete", "pruned", "no result"]
    score: float | None
    """The suite's metric on validation: at the epoch that tables show, or at the last one of a pruned trial."""
    epochs: int
    """The number of epochs that it came to."""
    chosen: bool = False
    """Whether the suite's seeds are trained with its setting."""


def tried(plan: SweepPlan, store: RunStore) -> dict[Place, list[Trial]]:
    """The trials of each row on each pair, in their order, after those of the longer tuning that the suite starts from.

    That tuning's are there if the store has them; they are told apart by their suite.
    """
    found: dict[Place, list[Trial]] = {}
    seeds = {(each.pair, each.method): each.setting for each in plan.runs() if each.phase == "seed"}
    for source in (*_longer(plan, store), plan):
        for planned in source.runs():
            run = store.get(planned.key) if planned.phase == "trial" else None
            if run and not run.damaged and (place := (planned.pair, planned.method)):
                found.setdefault(place, []).append(_trial(source, planned, run, seeds.get(place)))
    there = {(pair, row) for pair in plan.pairs() for row in plan.methods(pair)}
    return {place: trials for place, trials in found.items() if place in there}


def _longer(plan: SweepPlan, store: RunStore) -> list[SweepPlan]:
    """The plan of the tuning that a suite's comes from, if the store has it."""
    name = plan.suite.tuning.warm_from
    try:
        return [SweepPlan.find(store.root, name)] if name else []
    except InputError:
        return []


def _trial(plan: SweepPlan, planned: Planned, run: StoredRun, chosen: dict[str, Any] | None) -> Trial:
    score = run.outcome.headline(plan.suite.show, "validation", plan.suite.metric.name) if run.outcome else None
    status: Literal["complete", "pruned", "no result"] = "complete" if score is not None else "no result"
    if run.pruned and run.epochs:
        status, score = "pruned", run.epochs[-1].validation
    same = status == "complete" and planned.setting == chosen
    return Trial(plan.name, planned.number, planned.setting, status, score, len(run.epochs), same)
