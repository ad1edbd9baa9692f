"""The command that checks a store and mends it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdbench.sweeps.cli.common import DEFAULT_STORE, Json, answer, opened

app = typer.Typer()


@app.command(epilog="Example: kdbench doctor runs --mend")
def doctor(
    store: Annotated[Path, typer.Argument(envvar="KDBENCH_STORE", help="The store's folder.")] = DEFAULT_STORE,
    mend: Annotated[
        bool, typer.Option("--mend", help="Do what is said of each finding; a valid finished run stays as it is.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Checks every file of a store; says what each finding means and what --mend does. Exit code 1 if any is left."""
    from kdbench.sweeps.doctor.visit import visit

    kept = opened(store, read_only=not mend)
    found = visit(kept, mend)
    left = [each for each in found if each.open]
    if as_json:
        answer({"store": str(kept.root), "findings": [each.values() for each in found], "left": len(left)})
    else:
        runs = f"{len(kept.keys())} runs"
        said = f"{len(found)} findings, {len(left)} left" if found else "whole"
        typer.echo("\n".join([*(each.line() for each in found), f"{kept.root}: {runs}; {said}."]))
    if left:
        raise typer.Exit(1)
