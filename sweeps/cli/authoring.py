"""The commands for who writes a method: a starting file, the contract checked, a row handed in and verified."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdbench.bench.errors import InputError
from kdbench.sweeps.cli.common import DEFAULT_STORE, DataDir, Device, Json, Store, existing, opened, print_report, say

app = typer.Typer()


@app.command(epilog="Example: kdbench check my_method.py")
def check(
    method: Annotated[str, typer.Argument(help="my_method.py, my_method.py:MyKD, package.module:MyKD, or an id.")],
    form: Annotated[str, typer.Option("--format", help="terminal or markdown.")] = "terminal",
    as_json: Json = False,
) -> None:
    """Checks what every method must keep to, on toy data in under a minute; says what to change."""
    from kdbench.results.pages.report import check_form
    from kdbench.sweeps.cli.checking import report_of_check

    check_form(form, ("terminal", "markdown"))
    report = report_of_check(method)
    print_report(report, form, as_json)
    if not report.values["passes"]:
        raise typer.Exit(1)


@app.command("new-method", epilog="Example: kdbench new-method my_method")
def new_method(
    name: Annotated[str, typer.Argument(help="Of the file, as my_method; the class is MyMethod.")],
    folder: Annotated[Path, typer.Option(help="Where to write it.")] = Path(),
) -> None:
    """Writes the starting file of a method, with comments, and a test of it."""
    from kdbench.sweeps.cli.starting import write_method

    typer.echo(write_method(name, folder))


@app.command(epilog="Example: kdbench submit digits --method at --out at.json")
def submit(
    suite: Annotated[str, typer.Argument(help="NAME (the protocol last run) or NAME@HASH.")],
    method: Annotated[str, typer.Option(help="A row of the suite; MyKD@ and its hash, as the leaderboard has it.")],
    out: Annotated[Path | None, typer.Option(help="The file. [default: standard output]")] = None,
    store: Store = DEFAULT_STORE,
) -> None:
    """Writes a method's row of a leaderboard as one file that verifies itself."""
    from kdbench.bench.atomic import write
    from kdbench.bench.outside import method_id
    from kdbench.results.store.plan import SweepPlan
    from kdbench.sweeps.cli.entries import submit as entry_of

    text = entry_of(SweepPlan.find(existing(store), suite), opened(store), method_id(method)).text()
    if out is None:
        typer.echo(text, nl=False)
        return
    if not out.resolve().parent.is_dir():
        raise InputError(f"there is no folder {out.resolve().parent} to write {out.name} into.")
    write(out, text.encode())
    say(f"{out} has the row of {method}; kdbench verify {out} checks it.")


@app.command(epilog="Example: kdbench verify entry.json --rerun 1")
def verify(
    entry: Annotated[Path, typer.Argument(help="A file of kdbench submit.")],
    rerun: Annotated[
        int, typer.Option(min=0, help="Seeds that are run again, cheapest first; this executes the method's file.")
    ] = 0,
    device: Device = "auto",
    data_dir: DataDir = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Checks an entry's hashes, recomputes its row, and runs cells of it again."""
    from kdbench.sweeps.cli.entries import verify as verified

    report = verified(entry, rerun, (data_dir or store / "data").expanduser().resolve(), device)
    print_report(report, as_json=as_json)
    if not report.values["passes"]:
        raise typer.Exit(1)


@app.command(epilog="Example: kdbench entries results/leaderboard --format markdown")
def entries(
    folder: Annotated[Path, typer.Argument(help="Of accepted entries.")],
    form: Annotated[str, typer.Option("--format", help="terminal, markdown or latex.")] = "terminal",
    as_json: Json = False,
) -> None:
    """Prints accepted entries, a table for each protocol."""
    from kdbench.results.pages.report import check_form
    from kdbench.sweeps.cli.entries import report_of_entries

    check_form(form, ("terminal", "markdown", "latex"))
    print_report(report_of_entries(folder), form, as_json)
