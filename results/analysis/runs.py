"""The runs of a store, one by one: what each is, to which suite it belongs, and what became of it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from kdbench.bench.errors import InputError, unknown
from kdbench.bench.record import Metric
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore


@dataclass(frozen=True)
class RunFacts:
    """A run of a store."""

    key: str
    suite: str
    """NAME@HASH; empty for a run of no suite."""
    method: str
    """The row of the suite; of a run of none, the method."""
    pair: str
    """Its teachers and its student."""
    data: str
    phase: str
    """teacher, trial, seed, or run for one of no suite."""
    number: int
    """Of the trial; else the seed."""
    state: str
    score: float | None
    """The primary metric of the last epoch: on the test part, or on validation of a run that is not scored on it."""
    part: str
    """test or validation."""
    metric: Metric | None
    ended: float
    """Seconds since 1970 of its last record; 0 if it has none."""


def runs_of(
    store: RunStore, method: str | None = None, suite: str | None = None, state: str | None = None, data: str = ""
) -> list[RunFacts]:
    """The runs of a store, the latest first; of several suites that share one, the first by name has it.

    Args:
        store: the store.
        method: these alone: of this row or method.
        suite: of this suite, as NAME or NAME@HASH.
        state: of this state.
        data: on this data set.

    Raises:
        InputError: if no run of the store has what is asked for.
    """
    places = _places(store)
    keys = store.keys()
    found = sorted((_facts(store, key, places.get(key)) for key in keys), key=lambda run: -run.ended)
    asked = {"method": method, "state": state, "data set": data}
    for kind, value in asked.items():
        found = _only(found, kind, value) if value else found
    if suite:
        suites = {name for run in found if (name := run.suite)}
        if suite not in suites and suite not in (short := {name.partition("@")[0] for name in suites}):
            raise unknown("suite of a run", suite, short)
        found = [run for run in found if suite in (run.suite, run.suite.partition("@")[0])]
    return found


def _only(runs: Sequence[RunFacts], kind: str, value: str) -> list[RunFacts]:
    """The runs that have a value."""
    has = {"method": "method", "state": "state", "data set": "data"}[kind]
    if value not in (known := {str(getattr(run, has)) for run in runs}):
        raise unknown(f"{kind} of a run", value, known)
    return [run for run in runs if getattr(run, has) == value]


def _places(store: RunStore) -> dict[str, tuple[str, Planned]]:
    """By key, the suite of a run and its place there."""
    places: dict[str, tuple[str, Planned]] = {}
    for path in sorted((store.root / "suites").glob("*/*/suite.json")):
        with contextlib.suppress(InputError):  # a plan that cannot be read is named where its suite is shown
            plan = SweepPlan(path.parent)
            for planned in plan.started():
                places.setdefault(planned.key, (plan.name, planned))
    return places


def _facts(store: RunStore, key: str, place: tuple[str, Planned] | None) -> RunFacts:
    run = store.get(key)
    assert run is not None
    spec, (suite, planned) = run.spec, place or ("", None)
    teachers = " + ".join(teacher.name for teacher in spec.teachers)
    networks = f"{teachers} -> {spec.student.name}" if teachers else spec.student.name
    part = "test" if spec.test else "validation"
    score = run.outcome.headline("last", part) if run.outcome else None
    return RunFacts(
        key=key,
        suite=suite,
        method=planned.method if planned else spec.method,
        pair=planned.pair if planned and planned.phase != "teacher" else networks,
        data=spec.data.name.removeprefix("folder:"),
        phase=planned.phase if planned else "run",
        number=planned.number if planned and planned.phase == "trial" else spec.seed,
        state="pruned" if run.pruned else run.status,
        score=score,
        part=part,
        metric=run.outcome.metric if run.outcome else None,
        ended=run.ended,
    )
