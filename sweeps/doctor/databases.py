"""What is not of one run: plans, Optuna's and MLflow's databases, what teachers said, and kept answers."""

from __future__ import annotations

import contextlib
import functools
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from kdbench.bench.errors import InputError
from kdbench.bench.teachers.backends import as_written
from kdbench.results.store.plan import SweepPlan, read_suite
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.search import FILE, kept_search
from kdbench.results.tracking.place import DATABASE
from kdbench.sweeps.doctor.finding import Finding, aside, readable, removed, without_lines

STUDIES = "optuna.db"
TABLES = {DATABASE: {"experiments", "runs", "metrics", "latest_metrics", "params", "tags"}, STUDIES: {"trials"}}
"""What each database must have."""
CACHES = ("compute.json", "speeds.json")
"""Files of a store that are measured again where they are not there."""


def check_plans(root: Path) -> Iterator[Finding]:
    """The plans of suites and what was searched."""
    for folder in sorted((root / "suites").glob("*/*/")):
        suite, plan = folder / "suite.json", folder / "plan.jsonl"
        then = "the next sweep of the suite writes it anew"
        try:
            if suite.exists():
                read_suite(suite.read_bytes(), str(suite))
            kept_search(folder)
        except InputError as error:
            yield aside(root, folder / FILE if FILE in str(error) else suite, str(error), then)
            continue
        if not suite.exists():
            continue
        opened, data = SweepPlan(folder), plan.read_bytes() if plan.exists() else b""
        opened.started()
        if opened.damaged or (data and not data.endswith(b"\n")):
            what = "lines of a plan that cannot be read"
            yield without_lines(plan, set(opened.damaged), what, "the next sweep plans their runs anew")


def check_databases(store: RunStore) -> Iterator[Finding]:
    """Optuna's and MLflow's: whether they open, are whole, and have their tables."""
    from kdbench.sweeps.scheduling.syncing import rebuilt

    for name in (STUDIES, DATABASE):
        path = store.root / name
        if not path.exists() or not (problem := _problem(path)):
            continue
        if name == STUDIES:
            then = "the next sweep makes it anew from the runs, and repeats nothing that is finished"
            yield aside(store.root, path, f"the studies cannot be read: {problem}", then)
            continue
        what, remedy = f"MLflow's copy cannot be read: {problem}", "make it anew from the runs, in its place"
        yield Finding(path, what, remedy, functools.partial(rebuilt, store))


def _problem(path: Path) -> str:
    """What is wrong with a database; empty if it is whole."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=20)) as database:
            said = [row[0] for row in database.execute("PRAGMA integrity_check(1)")]
            there = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error as error:
        return str(error)
    if said != ["ok"]:
        return str(said[0]).splitlines()[-1]
    lacking = sorted(TABLES[path.name] - there)
    return f"it has no table {lacking[0]}" if lacking else ""


def check_caches(root: Path) -> Iterator[Finding]:
    """What teachers have said, and what was measured or answered: all of it can be made again."""
    for path in sorted((root / "cache").glob("*.safetensors")):
        if as_written(path) is None:
            yield removed(path, "what a teacher said, damaged: the teacher is asked again")
    for path in sorted([*(root / name for name in CACHES), *(root / "answers").glob("*.json")]):
        if path.exists() and not readable(path, lambda each: json.loads(each.read_bytes())):
            yield removed(path, "a kept measurement or answer that cannot be read: it is made again")
