"""Chooses the best trial of a study from records, on validation alone."""

from __future__ import annotations

from collections.abc import Iterable

from results.store.plan import Planned
from results.store.run_store import StoredRun


def objective(run: StoredRun, shows: str) -> float:
    """Validation accuracy of the last or best epoch; a run that diverged or is unsupported is worth nothing."""
    value = run.outcome.headline(shows, "validation") if run.outcome else None
    return 0.0 if value is None else value


def best_trial(trials: Iterable[tuple[Planned, StoredRun]], shows: str) -> Planned | None:
    """The finished trial with the highest validation accuracy, the earliest of equals; None if none is finished."""
    finished = [(planned, run) for planned, run in trials if run.finished]
    if not finished:
        return None
    return max(finished, key=lambda trial: (objective(trial[1], shows), -trial[0].number))[0]
