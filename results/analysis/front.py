"""The Pareto front of a search for a student: chosen on validation, then scored on test over fresh seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdbench.bench.record import Metric
from kdbench.results.analysis.statistics import Interval, interval
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.search import Candidate, Search


@dataclass(frozen=True)
class Trial:
    """A finished run of the search."""

    planned: Planned
    candidate: Candidate
    cost: float
    """Milliseconds, or parameters."""
    validation: float


@dataclass(frozen=True)
class Point:
    """A student of the front: no cheaper one, and none as cheap, is better on validation."""

    trial: Trial
    test: Interval | None
    """Over the seeds that were retrained."""
    keys: tuple[str, ...]
    """Of these runs, by seed."""


@dataclass(frozen=True)
class Front:
    """What a search has found."""

    suite: str
    metric: Metric
    search: Search
    trials: list[Trial]
    ended: int
    """Trials that ended, those without a score among them."""
    budget: int
    """Trials in all."""
    epochs: int
    seeds: int
    points: list[Point]
    """Cheapest first."""

    def values(self) -> dict[str, Any]:
        """The front as JSON values."""
        cost = self.search.limits.cost
        return {
            "suite": self.suite,
            "metric": self.metric.name,
            "cost": cost,
            "trials": self.ended,
            "left_out": list(self.search.left_out),
            "front": [
                {
                    "student": point.trial.candidate.name,
                    "method": point.trial.planned.method,
                    "setting": point.trial.planned.setting,
                    "parameters": point.trial.candidate.parameters,
                    "latency_ms": point.trial.candidate.latency_ms,
                    "validation": point.trial.validation,
                    "test": point.test.mean if point.test else None,
                    "half_width": point.test.half_width if point.test else None,
                    "runs": list(point.keys),
                }
                for point in self.points
            ],
        }


def trials_of(plan: SweepPlan, store: RunStore, search: Search) -> tuple[list[Trial], int]:
    """The trials of a search that have a score, and how many have ended."""
    students = {pair.name: pair.student for pair in plan.suite.pairs}
    known = {each.name: each for each in search.candidates}
    found, ended = list[Trial](), 0
    for planned in plan.runs():
        run = store.get(planned.key) if planned.phase == "trial" else None
        if run is None or not run.outcome:
            continue
        ended += 1
        value = run.outcome.headline(plan.suite.show, "validation")
        name = students[planned.pair]
        if value is not None and name in known:
            found.append(Trial(planned, known[name], search.cost(name), value))
    return found, ended


def pareto(trials: list[Trial], sign: int) -> list[Trial]:
    """The trials that no other is better than at no more cost, cheapest first; of equals the earliest."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda each: (each.cost, -sign * each.validation, each.planned.number)):
        if not front or sign * trial.validation > sign * front[-1].validation:
            front.append(trial)
    return front


def front_of(plan: SweepPlan, store: RunStore, search: Search) -> Front:
    """What a search has found, as it stands."""
    suite = plan.suite
    trials, ended = trials_of(plan, store, search)
    points = [_point(trial, plan, store) for trial in pareto(trials, suite.metric.sign)]
    budget, epochs = suite.tuning.trials, suite.recipe.epochs
    return Front(plan.name, suite.metric, search, trials, ended, budget, epochs, suite.seeds, points)


def _point(trial: Trial, plan: SweepPlan, store: RunStore) -> Point:
    mine = trial.planned
    scores: dict[int, tuple[float, str]] = {}
    for planned in plan.runs():
        alike = (planned.pair, planned.method, planned.setting) == (mine.pair, mine.method, mine.setting)
        run = store.get(planned.key) if alike and planned.phase == "seed" else None
        value = run.outcome.headline(plan.suite.show, "test") if run and run.outcome else None
        if value is not None:
            scores[planned.number] = (value, planned.key)
    ordered = [scores[seed] for seed in sorted(scores)]
    test = interval([value for value, _ in ordered]) if ordered else None
    return Point(trial, test, tuple(key for _, key in ordered))
