"""What need not be computed again: the list of papers' tables, and the end of a sweep of which all is there."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from kdbench.bench.environment import command
from kdbench.bench.errors import InputError
from kdbench.results.pages.report import Report
from kdbench.results.pages.tables import TableCost, TableFacts, tables_report
from kdbench.results.store.run_store import RunStore
from kdbench.results.tracking.place import DATABASE, check_uri
from kdbench.sweeps.cli.common import say
from kdbench.sweeps.cli.place import Place
from kdbench.sweeps.cli.remembered import Remembered, state_of_data, state_of_runs, stated

SUITES = Path(__file__).parents[1] / "suites"


def report_of_tables(place: Place) -> Report:
    """The tables that can be reproduced: what they cost on this machine, and how far they are.

    Raises:
        InputError: for an unknown device.
    """
    root = place.store.expanduser().resolve()
    kept = Remembered(root, "tables", [place.device, str(place.data)])
    state = [*state_of_runs(root), *state_of_data(place.data)]
    facts = kept.answer([*state, stated(root / "speeds.json")])
    if facts is None:
        from kdbench.sweeps.cli.tables import facts_of_tables

        facts = [asdict(each) for each in facts_of_tables(place)]
        kept.keep([*state, stated(root / "speeds.json")], facts)
    costs = [{scale: TableCost(**each[scale]) for scale in ("full", "short")} for each in facts]
    tables = [TableFacts(**each | cost) for each, cost in zip(facts, costs, strict=True)]
    return tables_report(tables, command("kdbench"))


def swept(name: str, changes: dict[str, Any], place: Place) -> tuple[dict[str, Any], str, list[str]]:
    """Carries out a suite; of one that is finished, gives what was said when it last was.

    So it is of suites that come with kdbench: one that names a user's files is gone through each time.

    Returns:
        The leaderboard as JSON values and as text, and what became of runs that failed.

    Raises:
        InputError: if anything is wrong with the suite or the machine.
        Unfinished: if a teacher could not be trained on this machine.
    """
    root = place.store.expanduser().resolve()
    own = (SUITES / f"{name}.toml").is_file() and changes.get("methods") is None
    kept = Remembered(root, f"sweep-{name}", [changes, asdict(place), _shown()]) if own else None
    if kept and (known := kept.answer(_state(root, place))):
        say(f"{name}: all runs were there before; nothing was repeated.")
        suite, _, digest = known["board"]["suite"].partition("@")
        os.utime(root / "suites" / suite / digest / "suite.json")  # it is the protocol that was last run
        return known["board"], known["text"], []
    from kdbench.sweeps.cli.sweep import sweep_and_show

    shown = sweep_and_show(name, changes, place)
    if kept and shown.whole:
        kept.keep(_state(root, place), {"board": shown.board, "text": shown.text})
    return shown.board, shown.text, shown.failures


def brought_up_to_date(store: RunStore, suite: str | None, uri: str, rebuild: bool) -> tuple[dict[str, Any], str]:
    """Brings MLflow up to date; where no file has changed since this was done last, there is nothing to do.

    Returns:
        How many runs are where, as JSON values, and what was not written, and why.

    Raises:
        InputError: if there is no such suite, the address is none, or the database of a server is to be rebuilt.
    """
    check_uri(uri)
    if rebuild and (suite or uri):
        raise InputError("--rebuild makes the database in the store anew, of all suites: leave SUITE and the URI out.")
    root, kept = store.root, Remembered(store.root, f"sync-{suite or 'all'}".replace("/", "-"), [])
    runs, database = list(state_of_runs(root)), root / DATABASE
    known = None if uri or rebuild else kept.answer([*runs, stated(database)])
    if known and database.exists():
        return known, ""
    from kdbench.sweeps.scheduling.syncing import rebuilt, synced

    problem = ""
    if rebuild:
        with store.exclusive():
            count = rebuilt(store)
    else:
        count, problem = synced(store, suite, uri)
    values = {"suite": suite, "runs": count, "tracking_uri": uri or f"sqlite:///{database}"}
    if not problem and not uri:
        kept.keep([*runs, stated(database)], values)
    return values, problem


def _shown() -> list[Any]:
    """What decides how a text is shown: the terminal, and how commands are called here."""
    console = Console()
    return [console.width, console.is_terminal, console.color_system, command("kdbench"), command("mlflow")]


def _state(root: Path, place: Place) -> list[str]:
    copy = f"MLflow {(root / 'mlflow.db').exists()}"
    return [*state_of_runs(root), *state_of_data(place.data), copy]
