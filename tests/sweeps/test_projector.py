"""MLflow that is made, written and read again in a second: by a process that is killed, and after errors."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from kdbench.results.analysis.leaderboard import leaderboard
from kdbench.results.store.plan import SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.tracking.tracker import Tracker
from kdbench.sweeps.scheduling import projector as projector_module
from kdbench.sweeps.scheduling.projector import Projector
from tests.results.conftest import SUITE

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "store")


@pytest.fixture
def plan(store: RunStore) -> SweepPlan:
    return SweepPlan.create(store.root, "toy", "abcd1234", SUITE)


def test_database_whose_maker_was_killed_is_made_by_the_next(store: RunStore) -> None:
    """Killed as soon as the first tables are on disk, in whatever file: nothing of it is taken for a database."""
    code = "import sys; from kdbench.results.store.run_store import RunStore; "
    code += "from kdbench.results.tracking.tracker import Tracker; "
    code += "from pathlib import Path; Tracker(RunStore(Path(sys.argv[1])), 'toy')"
    process = subprocess.Popen([sys.executable, "-c", code, str(store.root)], cwd=ROOT)
    while not any(path.stat().st_size > 0 for path in store.root.glob("*mlflow.db*")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (store.root / "mlflow.db").exists()
    tracker = Tracker(store, "toy")
    assert tracker.at.client.get_experiment_by_name("toy") is not None
    assert sqlite3.connect(store.root / "mlflow.db").execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.fixture
def database(store: RunStore, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One that is made, as making one takes seconds."""
    made = tmp_path_factory.getbasetemp() / "mlflow.db"
    if not made.exists():
        Tracker(RunStore(tmp_path_factory.mktemp("mlflow")), "empty")
        shutil.copy(next(tmp_path_factory.getbasetemp().glob("mlflow*/mlflow.db")), made)
    shutil.copy(made, store.root)


@pytest.mark.usefixtures("database")
def test_error_of_mlflow_is_tried_again_until_all_is_written(
    store: RunStore, plan: SweepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AGAIN", "SOON"):
        monkeypatch.setattr(projector_module, name, 0.01)
    broken, create = [8], MlflowClient.create_run

    def unsteady(client: MlflowClient, *arguments: object, **options: object) -> object:
        broken[0] -= 1
        if broken[0] >= 0:
            raise OSError("database is locked")
        return create(client, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(MlflowClient, "create_run", unsteady)
    with Projector(store, plan.name) as projector:
        projector.finish(leaderboard(plan, store))
    assert broken[0] < 0 and projector.problem == ""
    client = MlflowClient(f"sqlite:///{store.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(plan.name)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "leaderboard"


@pytest.mark.usefixtures("database")
def test_what_cannot_be_written_is_counted_at_the_end_and_keeps_no_one_waiting(
    store: RunStore, plan: SweepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("AGAIN", 0.01), ("SOON", 0.01), ("GRACE", 0.5)):
        monkeypatch.setattr(projector_module, name, value)
    (store.root / "mlflow.db").write_bytes(b"no database")
    started = time.monotonic()
    with Projector(store, plan.name) as projector:
        projector.finish(leaderboard(plan, store))
        projector.finish(leaderboard(plan, store))
    assert "2 of 2 runs and pages are not yet there (" in projector.problem and "kdbench sync" in projector.problem
    assert time.monotonic() - started < 150
