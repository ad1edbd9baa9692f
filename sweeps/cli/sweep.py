"""What a terminal shows of methods and of a sweep as it goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.progress import track

from kdbench.bench.configure import configure
from kdbench.bench.environment import command
from kdbench.bench.errors import InputError, unknown
from kdbench.bench.outside import method_id
from kdbench.bench.spec import explain
from kdbench.methods import REGISTRY
from kdbench.results.analysis.status import status_of
from kdbench.results.pages.board import board_report
from kdbench.results.pages.compatibility import compatibility_report
from kdbench.results.pages.report import Report, check_form, render
from kdbench.results.store.plan import SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.sweeps.cli.common import dashboard, named
from kdbench.sweeps.cli.place import Place, where_mlflow_is
from kdbench.sweeps.cli.progress import SweepProgress
from kdbench.sweeps.scheduling.sources import provide
from kdbench.sweeps.suites.files import load_suite
from kdbench.sweeps.suites.suite import Suite, primary_of
from kdbench.sweeps.suites.sweep import expected, sweep


def report_of_compatibility(methods: str | None, teachers: str | None, students: str | None, form: str) -> Report:
    """Tries methods on pairs of families.

    Raises:
        InputError: for an unknown method, family or format.
    """
    from kdbench.bench.compatibility import FAMILIES, compatibility

    check_form(form, ("terminal", "markdown"))
    chosen = {
        kind: known if given is None else named(given, f"--{kind}s")
        for kind, given, known in (
            ("method", methods, sorted(REGISTRY)),
            ("teacher", teachers, list(FAMILIES)),
            ("student", students, list(FAMILIES)),
        )
    }
    chosen["method"] = [method_id(name) for name in chosen["method"]]
    for name in chosen["method"]:
        configure(name, {})
    for name in (*chosen["teacher"], *chosen["student"]):
        if name not in FAMILIES:
            raise unknown("family", name, FAMILIES)
    total = len(chosen["method"]) * len(chosen["teacher"]) * len(chosen["student"])
    console = Console(stderr=True)
    tried = compatibility(chosen["method"], chosen["teacher"], chosen["student"])
    return compatibility_report(list(track(tried, "trying", total, console=console, disable=not console.is_terminal)))


@dataclass(frozen=True)
class Shown:
    """What a command says at the end of a sweep."""

    board: dict[str, Any]
    """The leaderboard as JSON values."""
    text: str
    failures: list[str]
    """What became of runs that failed."""
    problem: str
    """Why MLflow is not up to date; empty if it is."""

    @property
    def whole(self) -> bool:
        """Whether nothing is left to do."""
        done = self.board["done"] == self.board["expected"] and not self.board["damaged"]
        return done and not self.failures and not self.problem


def sweep_and_show(name: str, changes: dict[str, Any], place: Place) -> Shown:
    """Carries out a suite, and shows how far it is.

    Args:
        name: of a bundled suite, or the path of a TOML file.
        changes: methods, trials, seeds and epochs other than the suite's, and whether it is cold.
        place: where and how; without a precision, as the suite says.

    Raises:
        InputError: if anything is wrong with the suite or the machine.
        Unfinished: if a teacher could not be trained on this machine.
    """
    provide(changes.get("methods") or "", place.store)
    suite = changed(load_suite(name, bool(changes.get("cold"))), changes)
    machine = replace(place, precision=place.precision or suite.precision).machine()
    store = RunStore(place.store)
    with SweepProgress(suite.name, expected(suite), machine.workers, primary_of(suite.data)) as progress:
        board, problem, failures = sweep(suite, store, machine, progress.report, progress.say)
    report, cost = board_report(board), status_of(SweepPlan.find(store.root, board.suite), store).teaching
    ends, kdbench = [problem] if problem else [], command("kdbench")
    ends += [
        f"Teachers: {str(cost).removeprefix('teachers ')} ({place.cache})",
        f"Results: {store.root} (runs/KEY holds every record; nothing finished is ever repeated)",
        f"MLflow:  {where_mlflow_is(store.root, machine.tracking)}",
        *filter(None, [dashboard(store.root)]),
        f"Next:    {kdbench} leaderboard {suite.name} --format markdown | {kdbench} methods kd | {kdbench} run --help",
    ]
    return Shown(dict(report.values), render(report) + "\n" + "\n".join(ends), failures, problem)


def changed(suite: Suite, changes: dict[str, Any]) -> Suite:
    """A suite with what the command line changes: methods, trials, seeds, epochs.

    Raises:
        InputError: if the result breaks a rule.
    """
    values = suite.model_dump()
    if changes.get("methods") is not None:
        chosen = [method_id(name) for name in named(changes["methods"], "--methods")]
        values["methods"] = chosen
        values["pairs"] = _chosen(values["pairs"], chosen)
    if changes.get("seeds"):
        values["seeds"] = changes["seeds"]
    if changes.get("trials"):
        values["tuning"]["trials"] = changes["trials"]
    if changes.get("epochs"):
        values["recipe"]["epochs"] = changes["epochs"]
    try:
        return Suite.model_validate(values)
    except ValidationError as error:
        raise InputError(f"suite {suite.name}: {explain(error)}") from None


def _chosen(pairs: Sequence[dict[str, Any]], methods: list[str]) -> list[dict[str, Any]]:
    """The pairs on which some of these methods are compared, with these alone.

    A pair that lists no methods of its own has all of them; one that does has those of its list, and those that no pair
    would have otherwise.
    """
    nowhere = [name for name in methods if all(pair["methods"] and name not in pair["methods"] for pair in pairs)]
    own = [[*(name for name in pair["methods"] if name in methods), *nowhere] for pair in pairs]
    return [
        pair | {"methods": rows if pair["methods"] else ()}
        for pair, rows in zip(pairs, own, strict=True)
        if rows or not pair["methods"]
    ]
