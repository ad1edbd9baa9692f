"""How a suite's runs stand, and whether teachers are whole; derived from files, without a lock."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from kdbench.bench.errors import InputError
from kdbench.bench.record import ACCURACY, Metric
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore, WeightsLeftOut
from kdbench.results.store.stored_run import StoredRun


@dataclass(frozen=True)
class TeacherCost:
    """What frozen teachers cost while students were trained."""

    teacher_forwards: float = 0.0
    """The number of samples that teachers were asked about."""
    teacher_cached: float = 0.0
    """The number of these samples whose answers were at hand."""
    teacher_seconds: float = 0.0
    """Time that teachers spent on the other samples."""

    @classmethod
    def of(cls, cost: Mapping[str, float]) -> TeacherCost:
        """The teachers' part of a run's cost."""
        names = ("teacher_forwards", "teacher_cached", "teacher_seconds")
        return cls(*(cost.get(name, 0.0) for name in names))

    def __add__(self, other: TeacherCost) -> TeacherCost:
        """The cost of both."""
        return TeacherCost(
            self.teacher_forwards + other.teacher_forwards,
            self.teacher_cached + other.teacher_cached,
            self.teacher_seconds + other.teacher_seconds,
        )

    def __str__(self) -> str:
        """What teachers cost, and what keeping their answers saved, as a sentence without its end."""
        run = self.teacher_forwards - self.teacher_cached
        saved = ""
        if run and self.teacher_seconds:
            saved = f", about {self.teacher_cached * self.teacher_seconds / run:.0f} s saved"
        return (
            f"teachers were asked about {self.teacher_forwards:,.0f} samples and run on {run:,.0f} of them, "
            f"in {self.teacher_seconds:.0f} s; {self.teacher_cached:,.0f} answers were at hand{saved}"
        )


@dataclass(frozen=True)
class Failure:
    """A run that failed, or is damaged."""

    key: str
    method: str
    phase: str
    status: str
    reason: str


@dataclass(frozen=True)
class Running:
    """A run that a process is at."""

    key: str
    pair: str
    method: str
    phase: str
    number: int
    by: str
    """HOST:PID."""
    since: float
    """Seconds since it was taken up."""
    seen: float
    """Seconds since the last sign of life of its process."""
    epoch: int
    of: int
    left: float | None
    """Seconds that it will still take, by its own epochs; None before the first."""

    @classmethod
    def of_run(cls, planned: Planned, run: StoredRun, now: float) -> Running:
        """A running run as it stands at a time in seconds since 1970."""
        assert run.claim is not None
        done = run.epochs[-1].number if run.epochs else 0
        of = run.epochs[-1].of if run.epochs else run.spec.recipe.epochs
        each = statistics.fmean(epoch.seconds for epoch in run.epochs) if run.epochs else None
        return cls(
            *(run.key, planned.pair, planned.method, planned.phase, planned.number, run.claim.by),
            since=now - run.claim.time,
            seen=max(0.0, now - run.claim.seen),
            epoch=done,
            of=of,
            left=None if each is None else each * (of - done),
        )


@dataclass(frozen=True)
class SuiteStatus:
    """How the runs of a suite stand."""

    suite: str
    expected: int
    """Runs of the whole sweep, teachers not counted."""
    started: int
    methods: dict[str, dict[str, int]]
    """The number of runs by method and status."""
    failures: list[Failure]
    """What failed, and what is left out as it is damaged."""
    running: list[Running]
    left: float | None
    """Seconds that the rest will take at the mean time of the runs that ended, side by side as now; None if unknown."""
    teaching: TeacherCost


def status_of(plan: SweepPlan, store: RunStore) -> SuiteStatus:
    """Counts of runs by method and status, with the reasons of those that failed."""
    counts: dict[str, Counter[str]] = {}
    failures, running, times, teaching, now = [], [], list[float](), TeacherCost(), time.time()
    for planned in plan.runs():
        run = store.get(planned.key)
        status = run.status if run else "pending"
        status = "pruned" if status == "stopped" else status
        counts.setdefault(planned.method, Counter())[status] += 1
        if run and run.outcome:
            teaching += TeacherCost.of(run.outcome.cost)
        if run and (run.finished or run.pruned):
            times += [sum(epoch.seconds for epoch in run.epochs)] if planned.phase != "teacher" else []
        if run and run.claim:
            running.append(Running.of_run(planned, run, now))
        if run and status in ("failed", "damaged"):
            failures.append(Failure(run.key, planned.method, planned.phase, status, run.reason))
    return SuiteStatus(
        suite=plan.name,
        expected=plan.expected(),
        started=sum(counter.total() for method, counter in counts.items() if method != "teacher"),
        methods={method: dict(counter) for method, counter in counts.items()},
        failures=failures,
        running=running,
        left=statistics.fmean(times) * (plan.expected() - len(times)) / len(running) if times and running else None,
        teaching=teaching,
    )


@dataclass(frozen=True)
class TeacherStatus:
    """A teacher of the store."""

    reference: str
    """run:KEY or sha256:HASH."""
    model: str
    data: str
    """The data set that it was trained on; empty for one that was imported."""
    epochs: int | None
    metric: Metric
    score: float | None
    """The metric of its last epoch on the test part; None for one that was imported."""
    problem: str
    """Empty if its weights are what they were, or were left out of an export."""
    left_out: bool


def teachers_of(store: RunStore) -> list[TeacherStatus]:
    """Every teacher with its measured score, and whether its weights are whole."""
    return [_teacher(store, reference, model) for reference, model in store.teachers().items()]


def _teacher(store: RunStore, reference: str, model: str) -> TeacherStatus:
    kind, _, name = reference.partition(":")
    run = store.get(name) if kind == "run" else None
    outcome = run.outcome if run else None
    problem, left_out = "", False
    try:
        store.weights(reference)
    except WeightsLeftOut:
        left_out = True
    except InputError as error:
        problem = str(error)
    return TeacherStatus(
        reference=reference,
        model=model,
        data=run.spec.data.name if run else "",
        epochs=run.spec.recipe.epochs if run else None,
        metric=outcome.metric if outcome else ACCURACY,
        score=outcome.headline("last", "test") if outcome else None,
        problem=problem,
        left_out=left_out,
    )
