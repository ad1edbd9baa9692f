"""MLflow away: its server is killed, hangs, or loses replies; its database is made by eight, killed, removed."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from kdbench.bench.record import plain
from kdbench.results.analysis.leaderboard import leaderboard
from kdbench.results.store.plan import SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.tracking.experiment import Experiment
from kdbench.sweeps.scheduling import projector as projector_module
from kdbench.sweeps.scheduling.projector import Projector
from tests.conftest import Figure
from tests.faults.opening import opening_processes, opens
from tests.faults.servers import Proxy, Server, mlflow_server
from tests.results.conftest import Fill, fill, finish, mlflow_db, plan, store
from tests.sweeps.commands import kdbench
from tests.sweeps.conftest import tiny

__all__ = ["fill", "finish", "mlflow_db", "plan", "store", "tiny"]


@pytest.fixture
def filled(plan: SweepPlan, fill: Fill) -> SweepPlan:
    fill("student", [0.80, 0.82, 0.84])
    fill("kd", [0.85, 0.86, 0.87])
    fill("sp", [0.84, 0.88, 0.85])
    return plan


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def clean(server: Server, plan: SweepPlan) -> Server:
    """The server, without what another test wrote there."""
    client = MlflowClient(server.uri)
    if found := client.get_experiment_by_name(plan.name):
        client.rename_experiment(found.experiment_id, f"before-{found.experiment_id}")
        client.delete_experiment(found.experiment_id)
    return server


def runs_at(uri: str, plan: SweepPlan) -> list[Run]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(plan.name)
    return list(client.search_runs([found.experiment_id], max_results=1000)) if found else []


def check_projection(uri: str, plan: SweepPlan, store: RunStore) -> int:
    """Every run once, with every epoch's loss once; gives the number of points compared."""
    found, client, points = runs_at(uri, plan), MlflowClient(uri), 0
    named = Counter(run.data.tags["kdbench.key"] for run in found if "kdbench.key" in run.data.tags)
    assert named == Counter(planned.key for planned in plan.runs())
    names = Counter(run.info.run_name for run in found if "kdbench.key" not in run.data.tags)
    assert set(names.values()) == {1} and len(names) == 3 + 1  # a parent for each method, and the board
    for run in found:
        if key := run.data.tags.get("kdbench.key"):
            kept = store.get(key)
            assert kept is not None and run.info.status == "FINISHED"
            curve = client.get_metric_history(run.info.run_id, "loss/student/ce")
            told = [(epoch.number, plain(epoch)["losses"]["student/ce"]) for epoch in kept.epochs]
            assert [(point.step, point.value) for point in curve] == told
            points += len(curve)
    return points


@pytest.mark.slow
@pytest.mark.fault("17")
def test_lost_replies_make_no_ghost_runs(
    clean: Server, filled: SweepPlan, store: RunStore, figure: Figure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projector_module, "GRACE", 600.0)  # a page takes a dozen requests, each of which fails once
    proxy = Proxy(clean.port)
    code, _, err = kdbench("sync", "toy", "--store", str(store.root), "--tracking-uri", proxy.uri)
    assert code == 0, err
    points = check_projection(clean.uri, filled, store)
    dropped = " and ".join(f"{count} of {name}" for name, count in proxy.dropped.items())
    assert proxy.dropped["runs/create"] >= 16 and proxy.dropped["runs/log-batch"] >= 12
    figure(f"replies dropped: {dropped}; 0 ghost runs, {points} of {points} points, each once")


class Trainer:
    """Ends runs one after another as a sweep does, and measures how long it is held up."""

    def __init__(self, projector: Projector) -> None:
        self.projector, self.longest = projector, 0.0

    def run(self, plan: SweepPlan, seconds: float) -> None:
        for planned in plan.runs():
            begun = time.perf_counter()
            self.projector.add(planned)
            self.longest = max(self.longest, time.perf_counter() - begun)
            time.sleep(seconds)


@pytest.mark.slow
@pytest.mark.fault("16")
@pytest.mark.parametrize("way", ["killed", "hung", "refusing"])
def test_training_never_waits_and_sync_brings_all_when_the_server_is_back(
    way: str,
    clean: Server,
    filled: SweepPlan,
    store: RunStore,
    figure: Figure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(projector_module, "GRACE", 2.0)
    number = {"killed": signal.SIGKILL, "refusing": signal.SIGKILL, "hung": signal.SIGSTOP}[way]
    if way == "refusing":  # from the beginning; the others in the middle
        clean.signal(number)
    begun = time.monotonic()
    with Projector(store, filled.name, clean.uri) as projector:
        trainer = Trainer(projector)
        trainer.run(filled, 0.5)
        if way != "refusing":
            clean.signal(number)
        trainer.run(filled, 0.1)
        projector.finish(leaderboard(filled, store))
        ended = time.monotonic()
    held = time.monotonic() - ended
    assert trainer.longest < 0.1 and held < 40, (trainer.longest, held)
    assert "runs and pages are not yet there" in projector.problem
    assert f"kdbench sync --tracking-uri {clean.uri}" in projector.problem
    if way == "hung":
        clean.signal(signal.SIGCONT)
    else:
        clean.start()
    for _ in range(2):
        code, _, err = kdbench("sync", "--store", str(store.root), "--tracking-uri", clean.uri)
        assert code == 0, err
        points = check_projection(clean.uri, filled, store)
    figure(
        f"{way}: training held up {1000 * trainer.longest:.1f} ms at most, {held:.0f} s at its end; after sync "
        f"0 of {points} points missing, 0 runs twice ({time.monotonic() - begun:.0f} s)"
    )


@pytest.mark.slow
@pytest.mark.fault("16")
def test_sweep_with_a_hung_server_ends_with_its_table_and_says_what_is_not_there(
    clean: Server, tiny: Path, tmp_path: Path, figure: Figure
) -> None:
    options = ("--methods", "student", "--trials", "1", "--seeds", "1", "--workers", "1", "--json")
    clean.signal(signal.SIGSTOP)
    try:
        code, out, err = kdbench(
            *("sweep", str(tiny), "--store", str(tmp_path / "s"), *options, "--tracking-uri", clean.uri)
        )
    finally:
        clean.signal(signal.SIGCONT)
    assert code == 0 and json.loads(out)["done"] == 2
    code, out, err = kdbench("sync", "--store", str(tmp_path / "s"), "--tracking-uri", clean.uri, "--json")
    assert code == 0 and json.loads(out)["runs"] == 4, err  # with two teachers
    figure("a real sweep: its table as ever; 4 of 4 runs there after sync")


@pytest.mark.fault("18")
def test_database_that_is_made_anew_takes_the_place_of_the_old_only_when_it_is_whole(
    filled: SweepPlan, store: RunStore, mlflow_db: Path, figure: Figure, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(mlflow_db, store.root)
    database = store.root / "mlflow.db"
    for _ in range(2):
        assert kdbench("sync", "--store", str(store.root))[0] == 0
        check_projection(f"sqlite:///{database}", filled, store)
    before = database.read_bytes()
    for name, value in (("GRACE", 0.1), ("AGAIN", 0.01), ("SOON", 0.01)):
        monkeypatch.setattr(projector_module, name, value)
    ended, left = Experiment.end, [5]

    def unsteady(self: Experiment, *arguments: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError("No space left on device")
        ended(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Experiment, "end", unsteady)
    code, _, err = kdbench("sync", "--rebuild", "--store", str(store.root))
    assert code == 2 and "stays as it was" in err and "No space left on device" in err
    assert database.read_bytes() == before and not list(store.root.glob(".mlflow*"))
    monkeypatch.undo()
    begun = time.perf_counter()
    code, _, err = kdbench("sync", "--rebuild", "--store", str(store.root))
    took = time.perf_counter() - begun
    assert code == 0, err
    points = check_projection(f"sqlite:///{database}", filled, store)
    with sqlite3.connect(database) as opened:
        runs = {run for (run,) in opened.execute("SELECT run_uuid FROM runs")}
    folders = {path.name for path in (store.root / "mlflow-artifacts").glob("*/*")}
    assert len(folders) == 12 + 1 and folders <= runs  # of each run and the board; parents have numbers alone
    assert database.read_bytes() != before and len(list((store.root / "projected").iterdir())) == 1
    figure(f"one that failed left the old; made anew with {points} of {points} points in {took:.1f} s, pages and all")


@pytest.mark.slow
@pytest.mark.fault("10")
def test_eight_that_make_the_databases_at_once_all_have_them(tmp_path: Path, figure: Figure) -> None:
    context, failed, repeats = opening_processes(), 0, 20
    for repeat in range(repeats):
        root, begin = tmp_path / str(repeat), context.Barrier(8)
        made = [context.Process(target=opens, args=(root, begin)) for _ in range(8)]
        for process in made:
            process.start()
        for process in made:
            process.join()
        failed += sum(process.exitcode != 0 for process in made)
        for name in ("mlflow.db", "optuna.db"):
            with sqlite3.connect(root / name) as database:
                assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        shutil.rmtree(root)
    assert failed == 0
    figure(f"{failed} of {8 * repeats} processes failed")
