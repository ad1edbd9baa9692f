"""What the commands share: options, how they answer, and checks of what was given."""

from __future__ import annotations

import functools
import importlib.util
import json
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdbench.bench.errors import InputError

if TYPE_CHECKING:
    from kdbench.results.pages.report import Report
    from kdbench.results.store.run_store import RunStore


def _folder(text: str) -> Path:
    """The folder that an option names."""
    if not str(text).strip():
        raise InputError("--store takes the path of a folder, but got an empty text: leave it out for runs.")
    return Path(text)


Store = Annotated[
    Path,
    typer.Option("--store", envvar="KDBENCH_STORE", parser=_folder, metavar="PATH", help="Folder of all that is kept."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of data sets; downloads go there. [default: STORE/data]")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
PRECISION_HELP = "fp32 (the plain path), bf16, auto (bf16 on CUDA, else fp32), or measured for each model."
Precision = Annotated[str, typer.Option(help=PRECISION_HELP)]
Cache = Annotated[
    str, typer.Option("--teacher-cache", help="Of teachers' answers: off, or disk:8, memory:2, device:4 (GiB).")
]
TrackingUri = Annotated[
    str,
    typer.Option(envvar="KDBENCH_TRACKING_URI", help="Of an mlflow server, as http://HOST:5000. [default: in STORE]"),
]
Lease = Annotated[
    float, typer.Option(help="Seconds without a sign of life after which a worker is ended; its run goes on elsewhere.")
]
Patience = Annotated[float, typer.Option(help="The same without an update, of a worker that lives.")]
Columns = Annotated[str | None, typer.Option("--columns", help="Of the tables, only these, with commas between them.")]
DEFAULT_STORE = Path("runs")


def say(text: str = "") -> None:
    """Prints to standard error, where everything but results goes."""
    typer.echo(text, err=True)


def answer(value: Mapping[str, Any]) -> None:
    """Prints a JSON object to standard output."""
    typer.echo(json.dumps(value, indent=1, default=str))


def print_report(report: Report, form: str = "terminal", as_json: bool = False, columns: str | None = None) -> None:
    """Prints a report to standard output, as text or as a JSON object.

    Args:
        report: what to print.
        form: of the text.
        as_json: whether its values are printed instead.
        columns: names of those that tables have alone; by default all.

    Raises:
        InputError: for a form or a column that the report does not have.
    """
    from kdbench.results.pages.report import render, with_columns

    if as_json:
        answer(report.values)
        return
    typer.echo(render(report if columns is None else with_columns(report, named(columns, "--columns")), form))


def draw_picture(report: Report, name: str, path: Path) -> None:
    """Writes a picture of a report, in the form that the file's ending says.

    Raises:
        InputError: for another ending, if there is nothing to draw, or no folder for the file.
    """
    from kdbench.bench.atomic import write

    write(picture_path(path), report.pictures[name](path.suffix.removeprefix(".").lower()))


def listed(text: str) -> list[str]:
    """The names in a text that has commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def named(text: str, option: str) -> list[str]:
    """The names that an option gives, with commas between them.

    Raises:
        InputError: if there is none.
    """
    if not (names := listed(text)):
        raise InputError(f"{option} takes names with commas between them, but got {text!r}: leave it out for all.")
    return names


def pairs_of(items: list[str] | None, option: str) -> dict[str, str]:
    """NAME=VALUE items by name.

    Raises:
        InputError: for an item without an equals sign.
    """
    pairs = {}
    for item in items or ():
        name, equals, value = item.partition("=")
        if not (name and equals):
            raise InputError(f"{option} takes NAME=VALUE, but got {item!r}.")
        pairs[name.strip()] = value.strip()
    return pairs


def picture_path(path: Path) -> Path:
    """The path of a picture, whose folder is there and whose ending is one that pictures have.

    Raises:
        InputError: if the folder is not there, or for another ending.
    """
    from kdbench.results.pages.pictures import check_picture

    check_picture(path.suffix.removeprefix(".").lower())
    if not path.resolve().parent.is_dir():
        raise InputError(f"there is no folder {path.resolve().parent} to write {path.name} into.")
    return path


def existing(store: Path) -> Path:
    """A store, or evidence, that must be there, as reading does not make one; its folder to read from.

    Raises:
        InputError: if it is not.
    """
    if not store.is_dir():
        raise InputError(f"there is no store {store}: run a sweep first, or give its folder by --store.")
    return readable(store)


def readable(store: Path) -> Path:
    """A store's own folder; of evidence that of a store that is made of it, and is gone when the command has ended."""
    from kdbench.results.store.files import evidence_folders

    return Path(_imported(store).name) if evidence_folders(store) else store


@functools.cache
def _imported(evidence: Path) -> tempfile.TemporaryDirectory[str]:
    """A store for this command alone."""
    from kdbench.results.store.restore import restore
    from kdbench.results.store.run_store import RunStore

    folder = tempfile.TemporaryDirectory(prefix="kdbench-")
    restore([evidence], RunStore(Path(folder.name), durable=False))
    return folder


def dashboard(root: Path) -> str:
    """How a browser of this machine alone is shown the studies of a store, as a line; empty if it has none.

    Args:
        root: the store's folder.
    """
    from kdbench.bench.environment import command

    if not (database := root.resolve() / "optuna.db").exists():
        return ""
    install = "" if importlib.util.find_spec("optuna_dashboard") else "   (pip install optuna-dashboard)"
    url = shlex.quote(f"sqlite:///{database}")
    return f"Studies: {command('optuna-dashboard')} {url} --host 127.0.0.1{install}"


def opened(store: Path, read_only: bool = True) -> RunStore:
    """The run store in a folder that must be there.

    Raises:
        InputError: if it is not, or cannot be written and is to be.
    """
    from kdbench.results.store.run_store import RunStore

    root = existing(store)
    return RunStore(root if read_only else store, read_only)
