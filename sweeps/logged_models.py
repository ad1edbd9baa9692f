"""Students of tracked runs as models that MLflow serves: of each method and pair the best seed on validation."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from kdbench.bench.errors import InputError
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.tracking.tracker import Tracker
from kdbench.sweeps.students import ExportRequest, export_student

FORMAT = "mlflow"


def log_models(
    plan: SweepPlan, store: RunStore, data_dir: Path, say: Callable[[str], None], uri: str = ""
) -> list[str]:
    """Logs the students that are not logged yet, each compared with ours before; takes some seconds for each.

    Args:
        plan: whose students.
        store: where its runs are.
        data_dir: where its data lie.
        say: told what is logged, and why another cannot be.
        uri: of a tracking server; by default MLflow's database is in the store.

    Returns:
        The addresses of all that are logged, as models:/ID.
    """
    tracker, found = Tracker(store, plan.name, uri), list[str]()
    for planned in best_seeds(plan, store):
        tracker.run(planned)
        known = tracker.model(planned)
        try:
            found.append(known or _logged(tracker, plan, store, planned, data_dir, say))
        except InputError as why:
            say(f"{planned.method} on {planned.pair} is not logged: {why}")
    return found


def best_seeds(plan: SweepPlan, store: RunStore) -> list[Planned]:
    """Of each method and pair the seed with the best score on validation, the first of equal ones."""
    best: dict[tuple[str, str], tuple[float, Planned]] = {}
    for planned in plan.runs():
        run = store.get(planned.key) if planned.phase == "seed" else None
        value = run.outcome.headline(plan.suite.show, "validation") if run and run.outcome else None
        if value is None:
            continue
        signed, place = plan.suite.metric.sign * value, (planned.pair, planned.method)
        if place not in best or signed > best[place][0]:
            best[place] = (signed, planned)
    return [planned for _, planned in best.values()]


def _logged(
    tracker: Tracker, plan: SweepPlan, store: RunStore, planned: Planned, data_dir: Path, say: Callable[[str], None]
) -> str:
    with tempfile.TemporaryDirectory(prefix="kdbench-") as place:
        folder = Path(place) / "student"
        request = ExportRequest(planned.key, FORMAT, folder, plan.suite.show)
        values, _ = export_student(request, store, data_dir, lambda text: None)
        address = tracker.log_model(planned, folder, {f"test_{plan.suite.metric.name}": values["test"]})
    say(f"{planned.method} on {planned.pair}, seed {planned.number}: {address}")
    return address
