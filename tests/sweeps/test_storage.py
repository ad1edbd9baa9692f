"""Several sweeps on one suite through a real PostgreSQL server on loopback, also one that dies in between."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from kdbench.bench.errors import InputError
from kdbench.results.store.run_store import RunStore
from kdbench.sweeps.cli.place import Place
from kdbench.sweeps.scheduling.database import Database, checked
from tests.postgres import PASSWORD, Postgres, programs
from tests.sweeps.commands import kdbench
from tests.sweeps.test_sweep import KDBENCH, numbers

SHORT = ("--methods", "student,kd", "--trials", "2", "--seeds", "1", "--epochs", "2", "--workers", "1", "--json")
needs_server = pytest.mark.skipif(programs() is None, reason="PostgreSQL's initdb is not installed")


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.remove()


@pytest.fixture
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)


def begin(store: Path, suite: Path, address: str) -> subprocess.Popen[str]:
    command = [*KDBENCH, "sweep", str(suite), "--store", str(store), *SHORT, "--storage", address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[list[dict[str, Any]], str]:
    """The rows of a sweep's board, and what it said."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0 and PASSWORD not in out + err, err
    return numbers(json.loads(out)), err


def studies(address: str) -> dict[str, list[str]]:
    """The states of all trials by the names of the studies."""
    storage = Database(checked(address)).storage
    found = {}
    for summary in optuna.get_all_study_summaries(storage):
        trials = optuna.load_study(study_name=summary.study_name, storage=storage).get_trials()
        assert [trial.number for trial in trials] == list(range(len(trials)))
        assert len({trial.user_attrs["key"] for trial in trials}) == len(trials)
        found[summary.study_name.rsplit("/", 1)[-1]] = [trial.state.name for trial in trials]
    return found


@needs_server
@pytest.mark.slow
def test_two_sweeps_work_on_one_suite_and_a_server_that_dies_costs_nothing(
    server: Postgres, password: None, tiny: Path, tmp_path: Path
) -> None:
    store = RunStore(tmp_path / "store")
    sweeps = [begin(store.root, tiny, server.address()) for _ in range(2)]
    while len(list((store.root / "runs").glob("*/DONE.json"))) < 2:
        assert all(each.poll() is None for each in sweeps), [each.communicate() for each in sweeps if each.poll()]
        time.sleep(0.05)
    server.stop()
    done = len(list((store.root / "runs").glob("*/DONE.json")))
    deadline = time.monotonic() + 20
    while len(list((store.root / "runs").glob("*/DONE.json"))) == done and time.monotonic() < deadline:
        time.sleep(0.1)  # training goes on: what was begun ends
    time.sleep(2)
    server.start()
    boards, said = zip(*map(ended, sweeps), strict=True)
    code, out, err = kdbench("sweep", str(tiny), "--store", str(tmp_path / "alone"), *SHORT)
    assert code == 0, err
    assert boards[0] == boards[1] == numbers(json.loads(out))
    assert any("is away" in each and "is back after" in each for each in said), said
    attempts = [path.name for path in (store.root / "runs").glob("*/attempt-*")]
    assert set(attempts) == {"attempt-1"} and len(attempts) == len(store.keys()), "none was carried out twice"
    assert {name: len(states) for name, states in studies(server.address()).items()} == {"student": 2, "kd": 2}
    assert {state for states in studies(server.address()).values() for state in states} <= {"COMPLETE", "PRUNED"}


@needs_server
def test_eight_that_begin_at_once_make_the_tables_once(server: Postgres, password: None) -> None:
    from sqlalchemy import create_engine, text

    engine = create_engine(checked(server.address()), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("CREATE DATABASE empty"))
    engine.dispose()
    errors: list[Exception] = []

    def open_it() -> None:
        try:
            Database(checked(server.address("empty")))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@needs_server
def test_wrong_password_is_one_line_that_does_not_show_it(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "a-wrong-one")
    with pytest.raises(InputError, match="password authentication failed.*PGPASSWORD") as caught:
        Database(checked(server.address()))
    assert "a-wrong-one" not in str(caught.value) and "\n" not in str(caught.value)


def test_server_that_is_not_there_is_said_in_one_line() -> None:
    with pytest.raises(InputError, match="127.0.0.1:9/kd cannot be used .*start the server, see docs/cluster.md"):
        Database(checked("postgresql://kdbench@127.0.0.1:9/kd"))


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("sqlite:///optuna.db", "SQLite gives one trial to two"),
        ("mysql://host/db", "takes postgresql://"),
        ("no address", "takes postgresql://"),
        ("postgresql://me:s3cret@host/db", "set PGPASSWORD"),
        ("postgresql://me@host/db?password=s3cret", "set PGPASSWORD"),
        ("postgresql://me:s3cret@host:port/db", "takes postgresql://"),
    ],
)
def test_address_that_cannot_be_used_is_refused_and_its_password_not_shown(
    address: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        Place(tmp_path, storage=address).machine()
    assert "s3cret" not in str(caught.value)


def test_without_psycopg_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    known: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "psycopg" else known(name))
    with pytest.raises(InputError, match=r"pip install 'kdbench\[postgresql\]'"):
        checked("postgresql://me@host/db")


def test_sweeps_share_a_store_only_if_all_do(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    with (
        store.exclusive(together=True),
        RunStore(tmp_path).exclusive(together=True),
        pytest.raises(InputError, match="another sweep is using"),
        RunStore(tmp_path).exclusive(),
    ):
        pass
    with (
        store.exclusive(),
        pytest.raises(InputError, match="--storage postgresql"),
        RunStore(tmp_path).exclusive(together=True),
    ):
        pass
