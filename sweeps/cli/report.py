"""The command `kdbench report`: what the static site is told of methods and tuning, and where it is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdbench.bench.errors import InputError
from kdbench.sweeps.cli.common import DEFAULT_STORE, Json, Store, answer, opened

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from kdbench.results.analysis.reproduction import Reproduction
    from kdbench.results.analysis.tried import Trial
    from kdbench.results.pages.methods import MethodFacts
    from kdbench.results.pages.report import Report
    from kdbench.results.site.facts import RowFacts, Searched, SuiteFacts, TuningFacts
    from kdbench.results.store.plan import SweepPlan
    from kdbench.results.store.run_store import RunStore
    from kdbench.sweeps.suites.suite import Suite

app = typer.Typer()


@app.command(epilog="Example: kdbench report digits --out site")
def report(
    suites: Annotated[
        list[str] | None,
        typer.Argument(help="NAME (the protocol last run) or NAME@HASH; also papers' tables. [default: all]"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the site, made if it is new.")] = Path("site"),
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Writes a static site: boards that sort and filter, charts, and a card for each method; it opens from disk."""
    values = site_of(suites or [], store, out)
    said = f"{values['pages']} pages of {', '.join(values['suites'])}. Open {values['index']}"
    answer(values) if as_json else typer.echo(said)


def site_of(suites: Sequence[str], store: Path, out: Path) -> dict[str, Any]:
    """Writes the site of suites and papers' tables, by default all of a store.

    Returns:
        Its index, its number of pages, and the names of its suites.

    Raises:
        InputError: if there is no such suite or store, or the folder cannot be written.
    """
    from kdbench.results.site.build import build
    from kdbench.results.store.plan import SweepPlan

    runs = opened(store)
    names = suites or sorted({path.parent.parent.name for path in (runs.root / "suites").glob("*/*/suite.json")})
    if not names:
        raise InputError(f"there is no suite in the store {store}: run a sweep first, or give its folder by --store.")
    plans = {plan.name: plan for plan in (SweepPlan.find(runs.root, name) for name in names)}
    try:
        pages = build([facts_of_suite(plan, runs) for plan in plans.values()], runs, out)
    except OSError as error:
        raise InputError(f"the folder {out} cannot be written: {error}. Give another by --out.") from None
    return {"index": str(pages[0]), "pages": len(pages), "suites": list(plans)}


def facts_of_suite(plan: SweepPlan, store: RunStore) -> SuiteFacts:
    """A suite with what methods say of themselves and what tuning searches; a paper's table is read as it is.

    Raises:
        InputError: if the file of a method from outside that the store keeps was edited.
    """
    from kdbench.results.analysis.tried import tried
    from kdbench.results.site.facts import RowFacts, SuiteFacts

    if plan.suite.reproduction is not None:
        return SuiteFacts(plan, table=_table(plan, store))
    methods, settings = methods_of_rows(plan, store), _settings(plan)
    trials, suite = tried(plan, store), suite_of(plan)
    found: dict[str, RowFacts] = {}
    for row, method in methods.items():
        own = settings.get(row, {})
        pairs = [pair for pair in plan.pairs() if row in plan.methods(pair)]
        tuning = {pair: _tuning(plan, suite, pair, row, trials.get((pair, row), [])) for pair in pairs}
        found[row] = RowFacts(method, own, tuning)
    return SuiteFacts(plan, found)


def methods_of_rows(plan: SweepPlan, store: RunStore) -> dict[str, MethodFacts | None]:
    """By row of a suite, what its method says of itself; None for one that is not there any more.

    Raises:
        InputError: if the file of a method from outside that the store keeps was edited.
    """
    from kdbench.sweeps.scheduling.sources import provide

    settings = _settings(plan)
    rows = list(dict.fromkeys(row for pair in plan.pairs() for row in plan.methods(pair)))
    provide(" ".join([*rows, *(str(each.get("method", "")) for each in settings.values())]), store.root)
    return {row: _method(str(settings.get(row, {}).get("method", row))) for row in rows}


def years_of(plan: SweepPlan, store: RunStore) -> Report:
    """A suite's rows by the years of their methods' papers; a sum has none, and a row of another recipe no equal terms.

    Raises:
        InputError: if its baseline has not run, or the file of a method from outside was edited.
    """
    from kdbench.bench.configure import composed
    from kdbench.results.analysis.years import by_year
    from kdbench.results.pages.years import years_report

    methods, settings = methods_of_rows(plan, store), _settings(plan)
    years = {row: each.paper.year for row, each in methods.items() if each}
    for row in list(years):
        own = settings.get(row, {})
        name = str(own.get("method", row))
        if composed(name, {})[0] != name or any(key.startswith("recipe.") for key in own):
            del years[row]
    return years_report(by_year(plan, store, years))


def _settings(plan: SweepPlan) -> dict[str, dict[str, Any]]:
    """Of rows that are a method with other values, by row."""
    settings: dict[str, dict[str, Any]] = (plan.suite.model_extra or {}).get("settings", {})
    return settings


def _table(plan: SweepPlan, store: RunStore) -> Reproduction | None:
    """A paper's table, as its protocol asks for it now; one whose protocol is not bundled as the plan keeps it."""
    from kdbench.results.analysis.reproduction import reproduction_of_plan
    from kdbench.sweeps.protocols.files import bundled, load_protocol
    from kdbench.sweeps.protocols.reproduce import reproduction_of
    from kdbench.sweeps.protocols.request import table_request

    name = plan.folder.parent.name
    if name in bundled():
        return reproduction_of(table_request(load_protocol(name), plan.suite.scale or "full"), store.root)
    return reproduction_of_plan(plan, store)


def suite_of(plan: SweepPlan) -> Suite | None:
    """The suite that a plan keeps, with the ranges that its tuning searches; None if this kdbench cannot read it."""
    from pydantic import ValidationError

    from kdbench.sweeps.suites.suite import Suite

    known = {name: value for name, value in plan.suite.values().items() if name in Suite.model_fields}
    try:
        return Suite.model_validate({"name": plan.folder.parent.name, **known})
    except (InputError, ValidationError):
        return None


def _method(name: str) -> MethodFacts | None:
    """What a method says of itself; None if it is not there any more."""
    from kdbench.sweeps.cli.registry import facts_of

    try:
        return facts_of(name)
    except InputError:
        return None


def _tuning(plan: SweepPlan, suite: Suite | None, pair: str, row: str, trials: list[Trial]) -> TuningFacts:
    from kdbench.results.site.facts import Importance, TuningFacts
    from kdbench.sweeps.importance import FEWEST, importance_of

    space = suite.space(row, plan.suite.calibrated.get(pair, {}).get(row, {})) if suite else {}
    importance = []
    for name in dict.fromkeys(trial.suite for trial in trials):
        mine = [trial for trial in trials if trial.suite == name]
        complete = sum(trial.status == "complete" for trial in mine)
        importance.append(Importance(name, complete, FEWEST, importance_of(mine, space)))
    return TuningFacts([_searched(name, each) for name, each in space.items()], importance)


def _searched(name: str, space: BaseDistribution) -> Searched:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    from kdbench.results.site.facts import Searched

    if isinstance(space, CategoricalDistribution):
        return Searched(name, choices=tuple(space.choices))
    assert isinstance(space, FloatDistribution | IntDistribution)
    return Searched(name, space.low, space.high, space.log)
