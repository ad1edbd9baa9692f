"""The leaderboard of a suite: from its plan and the run store to rows, at any time."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kdbench.bench.record import Environment
from kdbench.results.analysis.board import Board, Budget, LabelShares, Row
from kdbench.results.analysis.comparison import Comparison, within_groups
from kdbench.results.analysis.statistics import Interval, could_be_best, interval
from kdbench.results.store.plan import LABELS_ALONE, UNLABELLED, Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.stored_run import StoredRun

Run = tuple[Planned, StoredRun]


class Place(NamedTuple):
    """Where a row stands."""

    pair: str
    given: str
    method: str


@dataclass(frozen=True)
class _Runs:
    """The runs of a method on a pair, and the test scores of its seeds."""

    trials: list[Run]
    seeds: list[Run]
    scores: dict[int, float]

    @property
    def all(self) -> list[StoredRun]:
        return [run for _, run in self.trials + self.seeds]


def leaderboard(plan: SweepPlan, store: RunStore) -> Board:
    """The leaderboard as it stands: whole, or with what there is."""
    suite = plan.suite
    runs = [(planned, store.get(planned.key)) for planned in plan.runs()]
    known = [(planned, run) for planned, run in runs if run is not None]
    rows = [row for pair in plan.pairs() for row in _rows(plan, pair, [run for run in known if run[0].pair == pair])]
    finished = sum(1 for p, run in known if p.phase != "teacher" and (run.finished or run.status == "stopped"))
    return Board(
        suite=plan.name,
        about=suite.about,
        metric=suite.metric,
        control=suite.control,
        baseline=suite.baseline,
        shows=suite.show,
        budget=Budget(
            suite.tuning.trials, suite.recipe.epochs, suite.seeds, suite.tuning.warm_from, suite.tuning.warm_trials
        ),
        labels=LabelShares(suite.data.train_fraction, suite.teacher_fraction or suite.data.train_fraction),
        teachers=_teachers(plan, known),
        unlabelled_ratio=suite.recipe.unlabelled_ratio if UNLABELLED in suite.given.values() else None,
        batch_size=suite.recipe.batch_size,
        reasons=suite.reasons,
        hardware="; ".join(Counter(_machine(run) for _, run in known if run.outcome)),
        damaged=damaged_of(plan, known),
        done=finished,
        expected=plan.expected(),
        rows=rows,
    )


def damaged_of(plan: SweepPlan, known: Sequence[Run]) -> list[str]:
    """Which of a plan's runs, and which lines of the plan, are left out since they are damaged, and by what file."""
    runs = [
        f"{each.method} {each.phase} {each.number} of {each.pair} ({each.key}): {run.reason}"
        for each, run in known
        if run.damaged
    ]
    return [*runs, *(f"{plan.folder / 'plan.jsonl'}, line {number}, is damaged." for number in plan.damaged)]


def _rows(plan: SweepPlan, pair: str, known: list[Run]) -> list[Row]:
    """Rows of a pair, by what methods are given; of these best first, then those without a score."""
    suite, sign = plan.suite, plan.suite.metric.sign
    given = {method: suite.given.get(method, "") for method in plan.methods(pair)}
    methods = {method: _runs(plan, [run for run in known if run[0].method == method]) for method in given}
    taught = [run for run in known if run[0].phase == "teacher"]
    signed = {name: {seed: sign * value for seed, value in runs.scores.items()} for name, runs in methods.items()}
    scores = {name: seeds for name, seeds in signed.items() if seeds}
    gains = {(each.control, each.method): each for each in within_groups(plan, {pair: scores})}
    rows = []
    for group in dict.fromkeys(suite.given.get(method, "") for method in (*suite.given, *given)):
        means = {name: statistics.fmean(scores[name].values()) for name in scores if given[name] == group}
        fellows = [name for name in given if given[name] == group]
        order = sorted(fellows, key=lambda name: (name not in means, -means.get(name, 0.0)))
        possible = could_be_best({name: scores[name] for name in means})
        for name in order:
            baseline = suite.baselines.get(group, suite.baseline)
            over = [gains.get((control, name)) for control in (suite.control, baseline)]
            tied = name in possible and name != order[0]
            rows.append(_row(plan, Place(pair, group, name), methods[name], taught, over, tied))
    return rows


def _runs(plan: SweepPlan, known: list[Run]) -> _Runs:
    """The runs of one method on one pair, by phase."""
    suite = plan.suite
    seeds = [(planned, run) for planned, run in known if planned.phase == "seed"]
    scores = {
        planned.number: value
        for planned, run in seeds
        if run.outcome and (value := run.outcome.headline(suite.show, "test", suite.metric.name)) is not None
    }
    return _Runs([run for run in known if run[0].phase == "trial"], seeds, scores)


def _row(
    plan: SweepPlan,
    place: Place,
    runs: _Runs,
    taught: list[Run],
    over: Sequence[Comparison | None],
    tied: bool,
) -> Row:
    """A method's row, from its runs and its comparisons with control and baseline."""
    suite, mine = plan.suite, runs.scores
    status, reason = _status(runs, suite.seeds)
    done = [run.outcome for _, run in runs.seeds if run.outcome and run.outcome.status == "done"]
    agreements = [value for run in done if (value := run.headline(suite.show, "test", "agreement")) is not None]
    parameters = next((int(run.cost["parameters"]) for run in done), None)
    teacher = next((int(run.cost["teacher_parameters"]) for run in done if "teacher_parameters" in run.cost), None)
    control, baseline = over
    return Row(
        pair=place.pair,
        given=place.given,
        method=place.method,
        status=status,
        reason=reason,
        seeds=len(mine),
        score=interval(list(mine.values())) if mine else None,
        gain_control=control.difference if control else None,
        gain_baseline=baseline.difference if baseline else None,
        p_control=control.p_holm if control else None,
        p_baseline=baseline.p_holm if baseline else None,
        tied=tied,
        agreement=statistics.fmean(agreements) if agreements else None,
        parameters=parameters,
        compression=teacher / parameters if teacher and parameters else None,
        latency_ms=_median([run.cost["latency_ms"] for run in done if "latency_ms" in run.cost]),
        latency_spread_ms=_median([half_spread(run.cost) for run in done if "latency_high_ms" in run.cost]),
        trials=sum(run.finished or run.status == "stopped" for _, run in runs.trials),
        samples=next((int(run.cost["training_set"]) for run in done if "training_set" in run.cost), None),
        epochs=max((epoch.of for run in runs.all for epoch in run.epochs), default=0),
        updates=_updates(runs, [] if place.given == LABELS_ALONE else taught),
        teacher_forwards=sum(map(_teacher_forwards, runs.all)),
        seconds=sum(epoch.seconds for run in runs.all for epoch in run.epochs),
        setting=runs.seeds[0][0].setting if runs.seeds else {},
    )


def half_spread(cost: Mapping[str, float]) -> float:
    """Milliseconds: half the distance of the quartiles of one sample's latency."""
    return (cost["latency_high_ms"] - cost["latency_low_ms"]) / 2


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _updates(runs: _Runs, taught: list[Run]) -> int | None:
    """Updates of all networks that one run takes: its own, and those of its teachers; None of records without them.

    Args:
        runs: of a method on a pair.
        taught: the pair's teachers, if it asks them.
    """
    counts = []
    for _, run in runs.seeds:
        weights = {teacher.weights for teacher in run.spec.teachers}
        needed = [run, *(teacher for _, teacher in taught if f"run:{teacher.key}" in weights)]
        found = [each.outcome.cost["updates"] for each in needed if each.outcome and "updates" in each.outcome.cost]
        counts += [sum(found)] if len(found) == len(needed) else []
    return round(statistics.fmean(counts)) if counts else None


def _teachers(plan: SweepPlan, known: list[Run]) -> dict[str, Interval]:
    """Test score of each teacher, by the model with what tells it from another of its architecture."""
    pairs = {pair.name: pair for pair in plan.suite.pairs}
    found: dict[str, list[float]] = {}
    for planned, run in known:
        if planned.phase == "teacher" and run.outcome:
            value = run.outcome.headline(plan.suite.show, "test", plan.suite.metric.name)
            pair = pairs[planned.pair]
            index = planned.number % len(pair.teachers)
            again = pair.teachers[:index].count(pair.teachers[index])
            name = " ".join(filter(None, (run.spec.student.name, pair.note, f"({again + 1})" * bool(again))))
            found.setdefault(name, []).extend([] if value is None else [value])
    return {name: interval(values) for name, values in found.items() if values}


def _teacher_forwards(run: StoredRun) -> int:
    """Samples that teachers were run on: of a finished run with those that were labelled before training."""
    if run.outcome and "teacher_forwards" in run.outcome.cost:
        return int(run.outcome.cost["teacher_forwards"])
    return sum(epoch.teacher_forwards for epoch in run.epochs)


def _status(runs: _Runs, seeds: int) -> tuple[str, str]:
    """How a method stands on a pair, and why if it has no score."""
    for _, run in runs.seeds:
        if run.status in ("unsupported", "diverged", "failed"):
            return run.status, run.reason
    finished = sum(run.finished for _, run in runs.seeds)
    return ("done" if finished >= seeds else "partial" if finished else "pending"), ""


def _machine(run: StoredRun) -> str:
    environment = run.outcome.environment if run.outcome else Environment()
    names = f"{environment.hardware}, {environment.threads} thread(s) a run"
    return f"{names}, torch {environment.torch}, timm {environment.timm}"
