"""The commands that read: what there is, what was found, and a copy of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdbench.bench.errors import InputError
from kdbench.sweeps.cli.common import (
    DEFAULT_STORE,
    Columns,
    DataDir,
    Device,
    Json,
    Store,
    answer,
    dashboard,
    draw_picture,
    existing,
    listed,
    opened,
    print_report,
    say,
)
from kdbench.sweeps.cli.place import Place
from kdbench.sweeps.cli.report import years_of

app = typer.Typer()


@app.command(epilog="Example: kdbench methods kd")
def methods(
    name: Annotated[str | None, typer.Argument(help="Show one method in full; my_method.py too.")] = None,
    columns: Columns = None,
    form: Annotated[str, typer.Option("--format", help="terminal, or markdown: all methods in full.")] = "terminal",
    as_json: Json = False,
) -> None:
    """Lists the methods, or one with its hyperparameters."""
    from kdbench.results.pages.methods import method_report, methods_document, methods_report
    from kdbench.sweeps.cli.registry import all_facts, facts_of

    if form not in ("terminal", "markdown"):
        raise InputError(f"methods are shown as terminal or markdown, but got --format {form}.")
    found = [facts_of(name)] if name else all_facts()
    if form == "markdown" and not as_json:
        print_report(methods_document(found, introduced=name is None), form)
    else:
        report = method_report(found[0], name) if name else methods_report(found)
        print_report(report, as_json=as_json, columns=columns)


@app.command(epilog="Example: kdbench show 3f2a --plot confusion.png")
def show(
    run: Annotated[str, typer.Argument(help="A run's key, or the first characters of it.")],
    plot: Annotated[Path | None, typer.Option(help="Writes the confusion matrix there, as a png file.")] = None,
    anytime: Annotated[Path | None, typer.Option(help="Writes accuracy over cost of every exit there.")] = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Shows a run: its scores, cost, and whether it meets practitioners' targets."""
    from kdbench.results.pages.run_summary import run_summary_report

    runs = opened(store)
    report = run_summary_report(runs.find(run))
    if plot:
        draw_picture(report, "confusion", plot)
    if anytime:
        draw_picture(report, "anytime", anytime)
    print_report(report, as_json=as_json)
    if not as_json and (line := dashboard(runs.root)):
        typer.echo(line)


@app.command(epilog="Example: kdbench runs --suite digits --method kd --state done")
def runs(
    method: Annotated[str | None, typer.Option(help="Only of this row or method.")] = None,
    suite: Annotated[str | None, typer.Option(help="Only of this suite: NAME or NAME@HASH.")] = None,
    state: Annotated[str | None, typer.Option(help="done, diverged, failed, pruned, running, interrupted, ...")] = None,
    data: Annotated[str, typer.Option(help="Only on this data set.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="Runs; 0 is all.")] = 40,
    columns: Columns = None,
    form: Annotated[str, typer.Option("--format", help="terminal, markdown, latex or csv.")] = "terminal",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Lists the runs of a store, the latest first: what each is, how it stands, and its score."""
    from kdbench.results.analysis.runs import runs_of
    from kdbench.results.pages.runs import runs_report

    print_report(runs_report(runs_of(opened(store), method, suite, state, data), limit), form, as_json, columns)


@app.command(epilog="Example: kdbench leaderboard digits --format markdown")
def leaderboard(
    suite: Annotated[str, typer.Argument(help="NAME (the protocol last run) or NAME@HASH.")],
    columns: Columns = None,
    form: Annotated[str, typer.Option("--format", help="terminal, markdown, latex or csv.")] = "terminal",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Prints the leaderboard of a suite as it stands, also while it runs; of a search for a student, its front."""
    from kdbench.results.analysis.front import front_of
    from kdbench.results.analysis.leaderboard import leaderboard as board_of
    from kdbench.results.pages.board import board_report
    from kdbench.results.pages.front import front_report
    from kdbench.results.store.plan import SweepPlan
    from kdbench.results.store.search import kept_search

    plan, runs = SweepPlan.find(existing(store), suite), opened(store)
    search = kept_search(plan.folder)
    report = front_report(front_of(plan, runs, search)) if search else board_report(board_of(plan, runs))
    print_report(report, form, as_json, columns)


@app.command(epilog="Example: kdbench compare digits --against kd --plot ranks.png")
def compare(
    suite: Annotated[str, typer.Argument(help="NAME (the protocol last run) or NAME@HASH.")],
    against: Annotated[str | None, typer.Option(help="Controls. [default: student,kd; or the first pair]")] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Compare the pairs by each method instead.")] = False,
    brief: Annotated[
        bool, typer.Option("--brief", help="One table: every row's score, gain over the control and corrected p.")
    ] = False,
    years: Annotated[
        bool, typer.Option("--by-year", help="Gains over the baseline against the years of the papers.")
    ] = False,
    columns: Columns = None,
    form: Annotated[str, typer.Option("--format", help="terminal, markdown, latex; csv (no ranks).")] = "terminal",
    plot: Annotated[
        Path | None, typer.Option(help="Writes the critical-difference diagram there, as a png, svg or pdf file.")
    ] = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Tests each method against the controls by paired seeds, and ranks all over pairs; also while a sweep runs."""
    from kdbench.results.analysis.comparison import compare as compare_methods
    from kdbench.results.analysis.comparison import compare_pairs
    from kdbench.results.analysis.leaderboard import leaderboard as leaderboard_of
    from kdbench.results.pages.brief import brief_report
    from kdbench.results.pages.comparison import comparison_report
    from kdbench.results.store.plan import SweepPlan

    if (brief or years) and (pairs or against or brief == years):
        raise InputError("--brief and --by-year are whole tables: leave out --pairs, --against and the other one.")
    plan, runs = SweepPlan.find(existing(store), suite), opened(store)
    if years:
        print_report(years_of(plan, runs), form, as_json, columns)
        return
    compared = (compare_pairs if pairs else compare_methods)(plan, runs, listed(against or ""))
    report = comparison_report(compared)
    if plot:
        draw_picture(report, "ranks", plot)
    if brief:
        report = brief_report(leaderboard_of(plan, runs), compared)
    print_report(report, form, as_json, columns)


@app.command(epilog="Example: kdbench published --method at --data cifar10")
def published(
    method: Annotated[str | None, typer.Option(help="As at (also in sums), or a sum as kd+at.")] = None,
    data: Annotated[str | None, typer.Option(help="As cifar10, imagenet, mnist, sst-2.")] = None,
    paper: Annotated[str | None, typer.Option(help="As crd2020.")] = None,
    table: Annotated[str | None, typer.Option(help="As crd2020_cifar100_same; also shows its protocol.")] = None,
    teacher: Annotated[str | None, typer.Option(help="As WRN-40-2.")] = None,
    student: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    text: Annotated[str | None, typer.Option(help="Anything that a row says.")] = None,
    conflicts: Annotated[bool, typer.Option("--conflicts", help="Only where sources print other values.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="Rows; 0 is all.")] = 40,
    columns: Columns = None,
    form: Annotated[str, typer.Option("--format", help="terminal, markdown or csv.")] = "terminal",
    as_json: Json = False,
) -> None:
    """Searches the papers' numbers, with their sources."""
    from kdbench.results.analysis.literature import conflicting, search
    from kdbench.results.pages.published import published_report
    from kdbench.results.pages.report import check_form

    check_form(form, ("terminal", "markdown", "csv"))
    found = search(method, data, paper, table, teacher, student, text)
    found = conflicting(found) if conflicts else found
    report = published_report(found, limit, found[0].protocol if table and found and not conflicts else "")
    print_report(report, form, as_json, columns)
    if form == "csv" and not as_json:
        say("\n".join(report.notes))


@app.command(epilog="Example: kdbench tables hinton2015_mnist")
def tables(
    name: Annotated[
        str | None, typer.Argument(help="Show one protocol in full, with the source of each value.")
    ] = None,
    columns: Columns = None,
    form: Annotated[str, typer.Option("--format", help="terminal or markdown.")] = "terminal",
    device: Device = "auto",
    data_dir: DataDir = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Lists the papers' tables that can be reproduced: what they cost, if their data are here, how far they are."""
    from kdbench.results.pages.report import check_form

    check_form(form, ("terminal", "markdown"))
    if name:
        from kdbench.sweeps.cli.tables import report_of_protocol

        report = report_of_protocol(name)
    else:
        from kdbench.sweeps.cli.finished import report_of_tables

        report = report_of_tables(Place(store, device, data_dir=data_dir))
    print_report(report, form, as_json, columns)


@app.command(epilog="Example: kdbench status digits")
def status(
    suite: Annotated[str, typer.Argument(help="NAME (the protocol last run) or NAME@HASH.")],
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Counts the runs of a suite by how they stand; of those under way, says by whom, since when and how far."""
    from kdbench.results.analysis.status import status_of
    from kdbench.results.pages.status import status_report
    from kdbench.results.store.plan import SweepPlan

    runs = opened(store)
    print_report(status_report(status_of(SweepPlan.find(existing(store), suite), runs)), as_json=as_json)
    if not as_json and (line := dashboard(runs.root)):
        typer.echo(f"  {line}")


@app.command(epilog="Example: kdbench teachers")
def teachers(store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """Lists every teacher in the store, and verifies its weights against their SHA-256."""
    from kdbench.results.analysis.status import teachers_of
    from kdbench.results.pages.status import teachers_report

    found = teachers_of(opened(store))
    print_report(teachers_report(found), as_json=as_json)
    if any(teacher.problem for teacher in found):
        raise typer.Exit(1)


@app.command(epilog="Example: kdbench export digits results/evidence")
def export(
    suite: Annotated[str, typer.Argument(help="NAME (the protocol last run) or NAME@HASH; also a paper's table.")],
    folder: Annotated[Path, typer.Argument(help="Of all evidence; the suite's is in it, under its name.")],
    weights_under: Annotated[
        float, typer.Option(min=0, help="MB; the weights of a teacher are copied if they take less.")
    ] = 10.0,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Writes what stands behind a suite's or a paper's table into a folder for git, to import it elsewhere."""
    from kdbench.results.store.export import export as export_of
    from kdbench.results.store.plan import SweepPlan

    exported = export_of(SweepPlan.find(existing(store), suite), opened(store), folder, weights_under)
    answer(exported.values()) if as_json else typer.echo(exported.page())


@app.command("import", epilog="Example: kdbench import results/evidence/digits --store runs")
def import_(
    folders: Annotated[list[Path], typer.Argument(help="Of evidence: one suite's, or one with several suites' in it.")],
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Makes a store of what kdbench export wrote, or adds it to one; sweeps go on from it and repeat nothing."""
    from kdbench.results.store.restore import restore
    from kdbench.results.store.run_store import RunStore

    restored = restore(folders, RunStore(store))
    page = "\n".join(each.page() for each in restored)
    answer({"imported": [each.values() for each in restored]}) if as_json else typer.echo(page)
