"""The commands for who writes a method: a starting file, and the contract checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sweeps.cli.common import Json, print_report

app = typer.Typer()


@app.command(epilog="Example: kdbench check my_method.py")
def check(
    method: Annotated[str, typer.Argument(help="my_method.py, my_method.py:MyKD, package.module:MyKD, or an id.")],
    form: Annotated[str, typer.Option("--format", help="terminal or markdown.")] = "terminal",
    as_json: Json = False,
) -> None:
    """Checks what every method must keep to, on toy data in under a minute; says what to change."""
    from results.pages.report import check_form
    from sweeps.cli.checking import report_of_check

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
    from sweeps.cli.starting import write_method

    typer.echo(write_method(name, folder))
