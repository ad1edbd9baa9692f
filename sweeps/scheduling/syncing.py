"""MLflow brought up to date with a store, or its database made anew, apart from any sweep."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from kdbench.bench.atomic import replacing
from kdbench.bench.errors import InputError
from kdbench.results.analysis.leaderboard import leaderboard
from kdbench.results.analysis.reproduction import reproduction_of_plan
from kdbench.results.store.plan import SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.tracking.ledger import FOLDER
from kdbench.results.tracking.place import ARTIFACTS, DATABASE
from kdbench.sweeps.scheduling.projector import Projector

SINGLE = "runs"
"""The experiment of runs that belong to no suite."""


def synced(store: RunStore, suite: str | None, uri: str = "", database: Path | None = None) -> tuple[int, str]:
    """Writes what MLflow lacks of a suite, or of all suites and single runs.

    Args:
        store: what is projected.
        suite: NAME (the protocol last run) or NAME@HASH; None is all.
        uri: of a tracking server; by default the database in the store.
        database: in place of STORE/mlflow.db.

    Returns:
        How many runs there are, and what was not written in the end, and why; empty if all was.

    Raises:
        InputError: if there is no such suite.
    """
    plans = [SweepPlan.find(store.root, suite)] if suite else list(_plans(store.root))
    count, known = 0, set[str]()
    for plan in plans:
        runs = plan.runs()
        count, known = count + len(runs), known | {each.key for each in plan.started()}
        with Projector(store, plan.name, uri, database) as projector:
            for planned in runs:
                projector.add(planned)
            projector.finish(leaderboard(plan, store), reproduction_of_plan(plan, store))
        if projector.problem:
            return count, projector.problem
    if suite:
        return count, ""
    rest = sorted(set(store.keys()) - known)
    singles = [run for key in rest if (run := store.get(key)) and run.finished]
    with Projector(store, SINGLE, uri, database) as projector:
        for run in singles:
            projector.single(run)
    return count + len(singles), projector.problem


def _plans(root: Path) -> Iterator[SweepPlan]:
    """Every plan of a store that can be read."""
    for path in sorted((root / "suites").glob("*/*/suite.json")):
        with contextlib.suppress(InputError):
            yield SweepPlan(path.parent)


def rebuilt(store: RunStore) -> int:
    """Makes MLflow's database anew under another name; it takes the place of the old one when it is whole.

    Explanations of runs are in no other place than MLflow's, and are gone until kdbench explain makes them again.

    Args:
        store: what is projected; no sweep may be using it.

    Returns:
        How many runs there are.

    Raises:
        InputError: if something could not be written; then the old database has stayed.
    """
    with replacing(store.root / DATABASE) as temporary:
        temporary.unlink(missing_ok=True)
        count, problem = synced(store, None, database=temporary)
        if problem:
            raise InputError(f"{store.root / DATABASE} stays as it was. {problem}")
    _forget(store.root)
    return count


def _forget(root: Path) -> None:
    """Removes artifacts and ledgers of runs and experiments that MLflow's database does not have."""
    with contextlib.closing(sqlite3.connect(root / DATABASE)) as database:
        runs = {name for (name,) in database.execute("SELECT run_uuid FROM runs")}
        ledgers = {name for (name,) in database.execute("SELECT value FROM experiment_tags")}
    for folder in (root / ARTIFACTS).glob("*/*"):
        if folder.name not in runs:
            shutil.rmtree(folder, ignore_errors=True)
    for ledger in (root / FOLDER).glob("*.jsonl"):
        if ledger.stem not in ledgers:
            ledger.unlink()
