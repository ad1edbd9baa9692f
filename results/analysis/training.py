"""How runs of a suite's seeds went: their validation scores over epochs, and what they take for what at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kdbench.results.analysis.statistics import Interval, interval
from kdbench.results.store.plan import SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.stored_run import StoredRun

Place = tuple[str, str]
"""A pair and a row, by name."""
Matrix = list[list[int]]
"""(K, K) counts of decisions; rows are classes."""


@dataclass(frozen=True)
class Confusion:
    """What a row's students and their teachers decide on the test part, added up over seeds."""

    student: Matrix
    teacher: Matrix
    """Of the first teacher of each run; empty if the store has none that was trained here."""
    seeds: int
    teachers: int
    """The number of teachers that are added up."""


def seeds_of(plan: SweepPlan, store: RunStore) -> dict[Place, list[StoredRun]]:
    """The finished runs of each row's seeds on each pair."""
    found: dict[Place, list[StoredRun]] = {}
    for planned in plan.runs():
        run = store.get(planned.key) if planned.phase == "seed" else None
        if run and run.status == "done":
            found.setdefault((planned.pair, planned.method), []).append(run)
    return found


def curve(runs: Sequence[StoredRun]) -> dict[int, Interval]:
    """The validation score after each epoch that all runs have, mean and 95 % interval over them."""
    scores = [{epoch.number: epoch.validation for epoch in run.epochs} for run in runs]
    shared = sorted(set.intersection(*map(set, scores))) if scores else []
    return {number: interval([each[number] for each in scores]) for number in shared}


def confusion(runs: Sequence[StoredRun], store: RunStore) -> Confusion | None:
    """Both matrices of a row's runs; None if no run has one, as where nothing is classified."""
    students = [run.outcome.confusion for run in runs if run.outcome and run.outcome.confusion]
    if not students:
        return None
    teachers = [run.outcome.confusion for run in _teachers(runs, store) if run.outcome and run.outcome.confusion]
    return Confusion(_sum(students), _sum(teachers), len(students), len(teachers))


def _teachers(runs: Sequence[StoredRun], store: RunStore) -> Iterator[StoredRun]:
    """The runs that trained the first teacher of each run, each once."""
    for reference in dict.fromkeys(run.spec.teachers[0].weights for run in runs if run.spec.teachers):
        kind, _, key = reference.partition(":")
        if kind == "run" and (found := store.get(key)):
            yield found


def _sum(matrices: Sequence[Matrix]) -> Matrix:
    """Matrices of equal size added up; empty without any."""
    total: Matrix = np.sum([np.asarray(each) for each in matrices], axis=0).tolist() if matrices else []
    return total
