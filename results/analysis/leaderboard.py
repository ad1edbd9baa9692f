"""The leaderboard of a suite: from its plan and the run store to rows, at any time."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.record import Environment, Metric
from results.analysis.comparison import Comparison, comparisons
from results.analysis.statistics import Interval, could_be_best, interval
from results.store.plan import Planned, SweepPlan
from results.store.run_store import RunStore, StoredRun

Run = tuple[Planned, StoredRun]


@dataclass(frozen=True)
class Row:
    """A method on a pair; a field that cannot be known yet is None."""

    pair: str
    method: str
    status: str
    """done; partial (fewer seeds than the suite asks); pending; unsupported, diverged, failed."""
    reason: str
    seeds: int
    score: Interval | None
    """The suite's metric on the test part, as a share if it is printed in %."""
    gain_control: Interval | None
    """By how much it is better than the suite's control, paired by seed."""
    gain_baseline: Interval | None
    """By how much it is better than the suite's baseline, paired by seed."""
    p_control: float | None
    """P value of `gain_control`, corrected for all rows of the pair, as `kdbench compare` has it."""
    p_baseline: float | None
    """That of `gain_baseline`."""
    tied: bool
    """Whether it may be the best of the pair as well as the one that leads, by comparisons with the best."""
    agreement: float | None
    """Share of the test decisions that student and teacher make alike."""
    parameters: int | None
    compression: float | None
    """How many times more parameters the teacher has than the student."""
    latency_ms: float | None
    trials: int
    """The number of tuning trials that ended, pruned ones among them."""
    samples: int | None
    """The number of samples that a run trains on, unlabelled and synthetic ones among them."""
    epochs: int
    """The number of epochs of one run."""
    teacher_forwards: int
    """The number of samples that teachers were run on, over trials and seeds."""
    seconds: float
    """Training time of all trials and seeds; that of teachers is not counted."""
    setting: dict[str, Any]
    """The best setting that tuning found."""


@dataclass(frozen=True)
class Budget:
    """What every method of a suite is given."""

    trials: int
    epochs: int
    seeds: int


@dataclass(frozen=True)
class LabelShares:
    """Labelled shares of the training part."""

    student: float
    teacher: float


@dataclass(frozen=True)
class Board:
    """The leaderboard of a suite."""

    suite: str
    about: str
    metric: Metric
    """The primary one, which decides the order of the rows."""
    control: str
    """The method without distillation, tuned under the same budget."""
    baseline: str
    """The distillation that a new method must beat, tuned under the same budget."""
    shows: str
    """last or best: the epoch whose test score is shown."""
    budget: Budget
    labels: LabelShares
    teachers: dict[str, float]
    """Test score of each teacher, by the name of its model."""
    hardware: str
    done: int
    expected: int
    rows: list[Row]


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
        budget=Budget(suite.tuning.trials, suite.recipe.epochs, suite.seeds),
        labels=LabelShares(suite.data.train_fraction, suite.teacher_fraction or suite.data.train_fraction),
        teachers=_teachers(plan, known),
        hardware="; ".join(Counter(_machine(run) for _, run in known if run.outcome)),
        done=finished,
        expected=plan.expected(),
        rows=rows,
    )


def _rows(plan: SweepPlan, pair: str, known: list[Run]) -> list[Row]:
    """Rows of a pair, best first, then those without a score."""
    sign = plan.suite.metric.sign
    methods = {method: _runs(plan, [run for run in known if run[0].method == method]) for method in plan.methods(pair)}
    scores = {name: {seed: sign * value for seed, value in runs.scores.items()} for name, runs in methods.items()}
    means = {method: statistics.fmean(values.values()) for method, values in scores.items() if values}
    order = sorted(methods, key=lambda method: (method not in means, -means.get(method, 0.0)))
    possible = could_be_best({method: scores[method] for method in means})
    controls = (plan.suite.control, plan.suite.baseline)
    gains = {(each.control, each.method): each for each in comparisons({pair: scores}, dict.fromkeys(controls))}
    rows = []
    for method in order:
        over = [gains.get((control, method)) for control in controls]
        rows.append(_row(plan, pair, method, methods[method], over, method in possible and method != order[0]))
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
    pair: str,
    method: str,
    runs: _Runs,
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
        pair=pair,
        method=method,
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
        latency_ms=statistics.median(run.cost["latency_ms"] for run in done) if done else None,
        trials=sum(run.finished or run.status == "stopped" for _, run in runs.trials),
        samples=next((int(run.cost["training_set"]) for run in done if "training_set" in run.cost), None),
        epochs=max((epoch.of for run in runs.all for epoch in run.epochs), default=0),
        teacher_forwards=sum(map(_teacher_forwards, runs.all)),
        seconds=sum(epoch.seconds for run in runs.all for epoch in run.epochs),
        setting=runs.seeds[0][0].setting if runs.seeds else {},
    )


def _teachers(plan: SweepPlan, known: list[Run]) -> dict[str, float]:
    """Test score of each teacher, by the model with what tells it from another of its architecture."""
    notes = {pair.name: pair.note for pair in plan.suite.pairs}
    found: dict[str, float] = {}
    for planned, run in known:
        if planned.phase == "teacher" and run.outcome:
            value = run.outcome.headline(plan.suite.show, "test", plan.suite.metric.name)
            seed = f"(seed {run.spec.seed})" if run.spec.seed else ""
            name = " ".join(filter(None, (run.spec.student.name, notes.get(planned.pair, ""), seed)))
            found |= {} if value is None else {name: value}
    return found


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
