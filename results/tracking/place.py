"""Where MLflow's database says that artifacts lie: in the store, wherever that is now."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

ARTIFACTS = "mlflow-artifacts"
"""The folder of a store that holds them."""
COLUMNS = (("experiments", "artifact_location"), ("runs", "artifact_uri"))
"""The columns of MLflow's database that name a place by its whole path."""


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
