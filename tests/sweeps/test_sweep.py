"""A real sweep in real processes: whole, killed and taken up again, with a worker that dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from mlflow import MlflowClient

from kdbench.results.analysis.status import status_of
from kdbench.results.pages.report import render
from kdbench.results.pages.status import status_report
from kdbench.results.store.plan import SweepPlan
from kdbench.results.store.run_store import RunStore
from tests.conftest import Figure
from tests.sweeps.commands import kdbench

LISTEN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # also below nohup, which ignores it
KDBENCH = [sys.executable, "-c", f"{LISTEN}; from kdbench.sweeps.cli import main; main()"]


def arguments(store: Path, suite: Path) -> list[str]:
    return ["sweep", str(suite), "--store", str(store), "--workers", "2", "--precision", "fp32", "--json"]


def begin(store: Path, suite: Path, *extra: str) -> subprocess.Popen[str]:
    """A sweep in processes of its own, which a test may kill."""
    command = [*KDBENCH, *arguments(store, suite), *extra]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def swept(store: Path, suite: Path, *extra: str) -> dict[str, Any]:
    """The board of a sweep that is left alone."""
    code, out, err = kdbench(*arguments(store, suite), *extra)
    assert code == 0, err
    board: dict[str, Any] = json.loads(out)
    return board


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    board: dict[str, Any] = json.loads(out)
    return board


def numbers(board: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows without what a clock measured."""
    measured = ("latency_ms", "latency_spread_ms", "seconds")
    return [{name: value for name, value in row.items() if name not in measured} for row in board["rows"]]


def finished(store: Path) -> dict[str, float]:
    return {path.parent.name: path.stat().st_mtime for path in (store / "runs").glob("*/DONE.json")}


def begin_until(store: Path, suite: Path, runs: int) -> subprocess.Popen[str]:
    """A sweep of which so many runs are finished."""
    process = begin(store, suite)
    while len(finished(store)) < runs:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


def workers_of(pid: int) -> list[int]:
    """Worker processes of a driver: the children of the server that it started for them."""

    def children(parent: int) -> list[int]:
        return list(map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()))

    servers = [child for child in children(pid) if b"forkserver" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return [worker for server in servers for worker in children(server)]


def gone_within(seconds: float, workers: list[int]) -> None:
    deadline = time.monotonic() + seconds
    while left := [pid for pid in workers if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, [Path(f"/proc/{pid}/cmdline").read_text() for pid in left]
        time.sleep(0.1)
    assert workers


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> tuple[Path, Path, dict[str, Any]]:
    """A store with an uninterrupted sweep, its suite, and its board; made once for all test processes, to be read."""
    from tests.sweeps.conftest import TINY

    root = tmp_path_factory.getbasetemp()
    folder = (root if worker_id == "master" else root.parent) / "whole"
    store, suite, board = folder / "store", folder / "tiny.toml", folder / "board.json"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        if not board.exists():
            suite.write_text(TINY)
            board.write_text(json.dumps(swept(store, suite)))
    return store, suite, json.loads(board.read_text())


def test_sweep_gives_every_method_its_budget_and_a_row(whole: tuple[Path, Path, dict[str, Any]]) -> None:
    _, _, board = whole
    assert {row["method"] for row in board["rows"]} == {"student", "kd", "sp"}
    assert all(row["status"] == "done" and row["seeds"] == 2 and row["trials"] == 3 for row in board["rows"])
    assert board["done"] == board["expected"] == 15
    given = {row["method"]: row["given"] for row in board["rows"]}
    assert given == {"student": "labels alone", "kd": "labels and a teacher", "sp": "labels and a teacher"}
    means = [row["accuracy"]["mean"] for row in board["rows"] if row["method"] != "student"]
    assert means == sorted(means, reverse=True)


def test_tuning_runs_never_score_the_test_part(whole: tuple[Path, Path, dict[str, Any]]) -> None:
    store, _, _ = whole
    (plan,) = (store / "suites" / "tiny").glob("*/plan.jsonl")
    phases = {entry["key"]: entry["phase"] for entry in map(json.loads, plan.read_text().splitlines())}
    for key, phase in phases.items():
        (records,) = (store / "runs" / key).glob("attempt-*/records.jsonl")
        last = json.loads(records.read_text().splitlines()[-1])
        if last["event"] == "outcome":
            assert ("test" in last["outcome"]["scores"]["last"]) == (phase != "trial")


def test_sweep_again_repeats_nothing_and_gives_the_same_table(
    whole: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    reference, suite, board = whole
    store = shutil.copytree(reference, tmp_path / "store")
    before = finished(store)
    assert numbers(swept(store, suite)) == numbers(board)
    assert finished(store) == before


def test_mlflow_holds_every_run_of_the_sweep(whole: tuple[Path, Path, dict[str, Any]]) -> None:
    store, _, _ = whole
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name LIKE 'tiny@%'")
    phases = [run.data.tags.get("phase") for run in client.search_runs([experiment.experiment_id], max_results=100)]
    expected = {"teacher": 3, "method": 3, "trial": 9, "seed": 6, None: 1}
    assert {phase: phases.count(phase) for phase in expected} == expected


def test_status_counts_every_run(whole: tuple[Path, Path, dict[str, Any]]) -> None:
    store, _, _ = whole
    status = status_of(SweepPlan.find(store, "tiny"), RunStore(store))
    assert status.started == status.expected == 15 and status.failures == []
    assert status.methods["teacher"] == {"done": 3}
    assert all(sum(counts.values()) == 5 for name, counts in status.methods.items() if name != "teacher")
    text = render(status_report(status))
    assert "tiny@" in text and "15 of 15" in text


def test_exported_sweep_gives_the_same_pages_and_reading_it_leaves_nothing(
    whole: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    store, _, _ = whole
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("runs/\n")
    copy = tmp_path / "tables"
    assert kdbench("export", "tiny", str(copy), "--store", str(store))[0] == 0
    listing = ["git", "-C", str(tmp_path), "ls-files", "--others", "--exclude-standard"]
    seen = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.splitlines()
    kept = sorted(str(path.relative_to(tmp_path)) for path in copy.rglob("*") if path.is_file())
    assert sorted(seen) == [".gitignore", *kept] and len(kept) == 3 + 3  # a teacher for tuning and one for each seed
    assert len((copy / "tiny" / "outcomes.jsonl").read_text().splitlines()) == 18
    tree = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    teacher, *_ = (entry.key for entry in SweepPlan.find(store, "tiny").started() if entry.phase == "teacher")
    commands = [["leaderboard", "tiny", "--json"], ["compare", "tiny"], ["status", "tiny"], ["teachers"]]
    for command in (*commands, ["show", teacher, "--json"]):
        pages = [kdbench(*command, "--store", str(root)) for root in (store, copy)]
        shown = [[line for line in out.splitlines() if not line.startswith("  Studies:")] for _, out, _ in pages]
        assert shown[0] == shown[1] and shown[0] and pages[0][::2] == pages[1][::2] == (0, "")
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == tree


@pytest.mark.slow
def test_sweep_goes_on_from_imported_evidence_as_if_it_had_never_been_away(
    whole: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Exported when killed in the midst of tuning, taken up on another machine and with more seeds."""
    reference, suite, _ = whole
    store, other, same = tmp_path / "store", tmp_path / "other", tmp_path / "same"
    process = begin_until(store, suite, 7)
    process.kill()
    process.wait()
    assert kdbench("export", "tiny", str(tmp_path / "evidence"), "--store", str(store))[0] == 0
    assert kdbench("import", str(tmp_path / "evidence"), "--store", str(other))[0] == 0
    before = finished(other)
    assert 7 <= len(before) < 18 and not (other / "optuna.db").exists()
    shutil.copytree(reference, same)
    boards = [swept(root, suite, "--seeds", "3") for root in (other, same)]
    assert numbers(boards[0]) == numbers(boards[1]) and boards[0]["done"] == 18
    assert before.items() <= finished(other).items() and finished(other).keys() == finished(same).keys()


@pytest.mark.fault("11")
def test_killed_sweep_goes_on_and_ends_with_the_same_table(
    whole: tuple[Path, Path, dict[str, Any]], tmp_path: Path, figure: Figure
) -> None:
    reference, suite, board = whole
    store = tmp_path / "store"
    process = begin_until(store, suite, 5)
    workers = workers_of(process.pid)
    os.kill(workers[0], signal.SIGSTOP)
    process.kill()  # the driver alone: its workers end by themselves, also the one that is stopped
    process.communicate()
    gone_within(60, workers)
    before, begun = finished(store), time.monotonic()
    assert numbers(swept(store, suite)) == numbers(board)
    after = finished(store)
    assert {key: after[key] for key in before} == before and after.keys() == finished(reference).keys()
    took, all_of_them = time.monotonic() - begun, len(after)
    figure(
        f"0 of {len(before)} finished runs lost or repeated, of {all_of_them}; the same table; {took:.0f} s to the end"
    )


@pytest.mark.slow
def test_run_whose_worker_is_killed_goes_on_in_another(
    whole: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, suite, board = whole
    store = tmp_path / "store"
    process = begin_until(store, suite, 2)
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    assert numbers(finish(process)) == numbers(board)


@pytest.mark.slow
@pytest.mark.fault("12")
def test_interrupt_ends_soon_without_orphans_and_says_how_to_go_on(
    whole: tuple[Path, Path, dict[str, Any]], tmp_path: Path, figure: Figure
) -> None:
    _, suite, _ = whole
    store = tmp_path / "store"
    process = begin(store, suite, "--epochs", "5000")
    while not any(b'"epoch"' in path.read_bytes() for path in store.glob("runs/*/attempt-*/records.jsonl")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    workers = workers_of(process.pid)
    second = begin(store, suite, "--epochs", "5000")
    _, err = second.communicate(timeout=60)
    assert second.returncode == 2 and "another sweep is using" in err
    begun = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)  # seconds on an idle machine
    took = time.monotonic() - begun
    assert process.returncode == 130
    assert err.splitlines()[-1] == "kdbench: interrupted. What is finished is kept; the same command goes on."
    assert "Traceback" not in err and err.splitlines()[0] == "tiny: 18 runs, 2 workers"
    gone_within(5, workers)
    figure(f"SIGINT to a sweep: exit code 130 after {took:.1f} s, 0 orphans")


@pytest.mark.fault("12")
@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_run_that_is_ended_without_a_terminal_says_so_in_a_line_and_is_no_failure(
    tmp_path: Path, number: signal.Signals, code: int, figure: Figure
) -> None:
    command = [*KDBENCH, "run", "--method", "student", "--student", "cifar_resnet8_quarter", "--data", "digits"]
    command += ["--epochs", "5000", "--train-fraction", "0.1", "--device", "cpu", "--no-mlflow", "--store", "s"]
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **streams, text=True, cwd=tmp_path)
    while not any(b'"epoch"' in path.read_bytes() for path in tmp_path.glob("s/runs/*/attempt-*/records.jsonl")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    begun = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    figure(f"{number.name} to a run: exit code {process.returncode} after {time.monotonic() - begun:.1f} s")
    assert (process.returncode, out) == (code, "") and "Traceback" not in err
    assert err.splitlines()[-1] == "kdbench: interrupted. What is finished is kept; the same command goes on."
    assert b'"failed"' not in next(tmp_path.glob("s/runs/*/attempt-*/records.jsonl")).read_bytes()


def test_sweep_whose_teacher_cannot_be_trained_here_says_so_with_an_exit_code_of_its_own_and_goes_on_later(
    whole: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    reference, suite, _ = whole
    teacher, *_ = (each.key for each in SweepPlan.find(reference, "tiny").started() if each.phase == "teacher")
    store = tmp_path / "store"
    blocked = store / "runs" / teacher
    blocked.parent.mkdir(parents=True)
    blocked.touch()  # a file where the run's folder should be
    code, out, err = kdbench(*arguments(store, suite))
    assert (code, out) == (3, "")
    assert "1 runs came to no result; the same command tries them again:" in err and "FileExistsError" in err
    blocked.unlink()
    shutil.copytree(reference / "runs", store / "runs", dirs_exist_ok=True)
    assert swept(store, suite)["done"] == 15
