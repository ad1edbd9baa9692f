"""MLflow's database in the store: where it says that artifacts lie, and curves by SQL, far faster than by MLflow."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from kdbench.bench.errors import InputError

DATABASE = "mlflow.db"
"""The file of a store."""
ARTIFACTS = "mlflow-artifacts"
"""The folder of a store that holds them."""
COLUMNS = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"))
"""The columns of MLflow's database that name a place by its whole path."""
WAIT = 20.0
"""Seconds that a statement waits for another process that writes, as MLflow's own."""

Point = tuple[str, float, int, int]
"""Of a curve: name, value, time in milliseconds since 1970, step."""

ADD = """INSERT OR IGNORE INTO metrics (run_uuid, key, value, timestamp, step, is_nan) VALUES (?, ?, ?, ?, ?, 0)"""
LATEST = """
INSERT INTO latest_metrics (run_uuid, key, value, timestamp, step, is_nan) VALUES (?, ?, ?, ?, ?, 0)
ON CONFLICT (key, run_uuid) DO UPDATE SET value = excluded.value, timestamp = excluded.timestamp, step = excluded.step
WHERE (excluded.step, excluded.timestamp, excluded.value) >= (step, timestamp, value)
"""
"""What MLflow's `log_batch` does with metrics: a point is there once, and the one of the highest step is shown."""


def artifacts_of(root: Path, experiment: str) -> str:
    """The place of an experiment's artifacts in the store at `root`, as MLflow names it."""
    return (root / ARTIFACTS / experiment).as_uri()


def follow(database: Path, root: Path) -> None:
    """Makes the database of a store that was moved or copied name the store's own folder, not the one that it left.

    What cannot be read is left to MLflow, which says so.
    """
    here = f"{root.as_uri()}/{ARTIFACTS}/"
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database, timeout=5)) as file, file:
        for table, column in COLUMNS:
            for (place,) in file.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall():
                before, found, rest = (place or "").rpartition(f"/{ARTIFACTS}/")
                if found and f"{before}{found}" != here:
                    file.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (f"{here}{rest}", place))


def add_points(database: Path, run_id: str, points: Iterable[Point]) -> None:
    """Adds points of curves to a run of a database on this machine, in one transaction.

    Raises:
        sqlite3.Error: if the database cannot be written.
    """
    rows = [(run_id, *point) for point in points]
    with contextlib.closing(sqlite3.connect(database, timeout=WAIT)) as file, file:
        file.executemany(ADD, rows)
        file.executemany(LATEST, rows)


def check_uri(uri: str) -> str:
    """The address of a tracking server; empty for the database in the store.

    Raises:
        InputError: if it is none, or holds a password, which would be seen by all who list processes.
    """
    address, at, _ = uri.partition("://")[2].rpartition("@")
    if at:
        raise InputError(
            "--tracking-uri takes no user and password: give them by MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD."
        )
    if uri and not uri.startswith(("http://", "https://")):
        raise InputError(f"--tracking-uri takes http://HOST:PORT of an mlflow server, but got {uri!r}.")
    return uri
