"""Chooses the best trial of a study from records, on validation alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kdbench.bench.record import Metric
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.stored_run import StoredRun


def objective(run: StoredRun, shows: str, metric: Metric) -> float:
    """The primary metric on validation, of the last or the best epoch, or what a run without one is worth.

    A run that diverged or is unsupported has none: it is worth the end of a share's range, and of a metric without a
    range infinitely little.

    Args:
        run: a run that has ended.
        shows: last or best.
        metric: the primary metric.
    """
    value = run.outcome.headline(shows, "validation") if run.outcome else None
    if value is not None:
        return value
    if metric.unit == "%":
        return 0.0 if metric.higher_is_better else 1.0
    return metric.worst


def best_trial(trials: Iterable[tuple[Planned, StoredRun]], shows: str, metric: Metric) -> Planned | None:
    """The finished trial of the best objective, the earliest of equals; None if no trial is finished."""
    finished = [(planned, run) for planned, run in trials if run.finished]
    if not finished:
        return None
    return max(finished, key=lambda trial: (metric.sign * objective(trial[1], shows, metric), -trial[0].number))[0]


def best_settings(plan: SweepPlan, store: RunStore) -> dict[str, Any]:
    """What a plan's tuning has found: the number of its trials, and the best setting by pair and method."""
    suite, settings = plan.suite, dict[str, dict[str, Any]]()
    trials = [(each, run) for each in plan.runs() if each.phase == "trial" and (run := store.get(each.key))]
    for pair in plan.pairs():
        for method in plan.methods(pair):
            mine = [trial for trial in trials if (trial[0].pair, trial[0].method) == (pair, method)]
            if best := best_trial(mine, suite.show, suite.metric):
                settings.setdefault(pair, {})[method] = best.setting
    return {"trials": suite.tuning.trials, "settings": settings}
