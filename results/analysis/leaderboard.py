"""The leaderboard of a suite: from its plan and the run store to rows, at any time."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Any

from bench.record import Environment
from results.analysis.statistics import Interval, interval, paired
from results.store.plan import Planned, SweepPlan
from results.store.run_store import RunStore, StoredRun

CONTROL = "student"
"""The row that a gain is measured against: no distillation, tuned under the same budget."""
BASELINE = "kd"
"""The distillation that a new method must beat, tuned under the same budget."""


@dataclass(frozen=True)
class Row:
    """A method on a pair. Accuracies are shares of the test part; a field that cannot be known yet is None."""

    pair: str
    method: str
    status: str
    """done; partial (fewer seeds than the suite asks); pending; unsupported, diverged, failed."""
    reason: str
    seeds: int
    accuracy: Interval | None
    gain_student: Interval | None
    """Over the control, paired by seed."""
    gain_kd: Interval | None
    """Over the baseline, paired by seed."""
    tied: bool
    """Whether the paired difference to the best row of the pair has an interval that includes zero."""
    agreement: float | None
    parameters: int | None
    compression: float | None
    """Parameters of the teacher over the student's."""
    latency_ms: float | None
    trials: int
    images: int | None
    """That a run trains on, unlabelled and synthetic ones among them."""
    epochs: int
    """Of one run."""
    teacher_forwards: int
    """Images that teachers were run on, over trials and seeds."""
    seconds: float
    """Spent on trials and seeds, teachers' training not counted."""
    setting: dict[str, Any]
    """The best setting that tuning found."""


@dataclass(frozen=True)
class Board:
    """The leaderboard of a suite."""

    suite: str
    about: str
    shows: str
    """last or best: the epoch whose test accuracy is shown."""
    budget: dict[str, int]
    labels: dict[str, float]
    """Labelled share of the training part, for "student" and "teacher"."""
    teachers: dict[str, float]
    """Test accuracy of each teacher, by the name of its model."""
    hardware: str
    done: int
    expected: int
    rows: list[Row]


@dataclass(frozen=True)
class _Cell:
    """The runs of a method on a pair."""

    trials: list[tuple[Planned, StoredRun]]
    seeds: list[tuple[Planned, StoredRun]]

    def accuracies(self, shows: str) -> dict[int, float]:
        scores = {planned.number: run.outcome.headline(shows, "test") for planned, run in self.seeds if run.outcome}
        return {seed: value for seed, value in scores.items() if value is not None}


def leaderboard(plan: SweepPlan, store: RunStore) -> Board:
    """The leaderboard as it stands: whole, or with what there is."""
    runs = [(planned, store.get(planned.key)) for planned in plan.runs()]
    known = [(planned, run) for planned, run in runs if run is not None]
    shows = plan.suite.show
    rows: list[Row] = []
    for pair in plan.pairs():
        mine = [(p, run) for p, run in known if p.pair == pair]
        cells = {
            method: _Cell(
                [(p, run) for p, run in mine if p.method == method and p.phase == "trial"],
                [(p, run) for p, run in mine if p.method == method and p.phase == "seed"],
            )
            for method in plan.methods(pair)
        }
        rows += _rows(pair, cells, shows, plan.suite.seeds)
    noted = {pair.name: pair.note for pair in plan.suite.pairs}
    teachers = {
        _teacher_name(run, noted.get(planned.pair, "")): value
        for planned, run in known
        if planned.phase == "teacher" and run.outcome and (value := run.outcome.headline(shows, "test")) is not None
    }
    hardware = Counter(_machine(run) for _, run in known if run.outcome)
    finished = sum(1 for p, run in known if p.phase != "teacher" and (run.finished or run.status == "stopped"))
    return Board(
        plan.name,
        plan.suite.about,
        shows,
        {
            "trials": plan.suite.tuning.trials,
            "epochs": plan.suite.recipe.epochs,
            "seeds": plan.suite.seeds,
        },
        {
            "student": plan.suite.data.train_fraction,
            "teacher": plan.suite.teacher_fraction or plan.suite.data.train_fraction,
        },
        teachers,
        "; ".join(hardware),
        finished,
        plan.expected(),
        rows,
    )


def _rows(pair: str, cells: dict[str, _Cell], shows: str, seeds: int) -> list[Row]:
    """Rows of a pair, best first, then those without a number."""
    accuracies = {method: cell.accuracies(shows) for method, cell in cells.items()}
    scored = {method: interval(list(values.values())) for method, values in accuracies.items() if values}
    order = sorted(cells, key=lambda method: -scored[method].mean if method in scored else 1.0)
    best = order[0] if order and order[0] in scored else None
    rows = []
    for method in order:
        cell, mine = cells[method], accuracies[method]
        status, reason = _status(cell, seeds)
        lead = paired(accuracies[best], mine) if best and mine else None
        done = [run.outcome for _, run in cell.seeds if run.outcome and run.outcome.status == "done"]
        agreements = [value for run in done if (value := run.headline(shows, "test", "agreement")) is not None]
        parameters = next((int(run.cost["parameters"]) for run in done), None)
        teacher = next((int(run.cost["teacher_parameters"]) for run in done if "teacher_parameters" in run.cost), None)
        epochs = [epoch for _, run in cell.trials + cell.seeds for epoch in run.epochs]
        rows.append(
            Row(
                pair,
                method,
                status,
                reason,
                len(mine),
                scored.get(method),
                _gain(accuracies, method, CONTROL),
                _gain(accuracies, method, BASELINE),
                method != best and lead is not None and lead.includes_zero,
                statistics.fmean(agreements) if agreements else None,
                parameters,
                teacher / parameters if teacher and parameters else None,
                statistics.median(run.cost["latency_ms"] for run in done) if done else None,
                len([run for _, run in cell.trials if run.finished or run.status == "stopped"]),
                next((int(run.cost["training_set"]) for run in done if "training_set" in run.cost), None),
                max((epoch.of for epoch in epochs), default=0),
                sum(_teacher_forwards(run) for _, run in cell.trials + cell.seeds),
                sum(epoch.seconds for epoch in epochs),
                cell.seeds[0][0].setting if cell.seeds else {},
            )
        )
    return rows


def _teacher_name(run: StoredRun, note: str) -> str:
    """The model, with what tells it from another of its architecture."""
    seed = f"(seed {run.spec.seed})" if run.spec.seed else ""
    return " ".join(filter(None, (run.spec.student.name, note, seed)))


def _teacher_forwards(run: StoredRun) -> int:
    """Images that teachers were run on: of a finished run with those that were labelled before training."""
    if run.outcome and "teacher_forwards" in run.outcome.cost:
        return int(run.outcome.cost["teacher_forwards"])
    return sum(epoch.teacher_forwards for epoch in run.epochs)


def _status(cell: _Cell, seeds: int) -> tuple[str, str]:
    """How a cell stands, and why if it has no number."""
    for _, run in cell.seeds:
        if run.status in ("unsupported", "diverged", "failed"):
            return run.status, run.reason
    finished = sum(run.finished for _, run in cell.seeds)
    return ("done" if finished >= seeds else "partial" if finished else "pending"), ""


def _gain(accuracies: dict[str, dict[int, float]], method: str, reference: str) -> Interval | None:
    if method == reference or reference not in accuracies:
        return None
    return paired(accuracies[method], accuracies[reference])


def _machine(run: StoredRun) -> str:
    environment = run.outcome.environment if run.outcome else Environment()
    names = f"{environment.hardware}, {environment.threads} thread(s) a run"
    return f"{names}, torch {environment.torch}, timm {environment.timm}"
