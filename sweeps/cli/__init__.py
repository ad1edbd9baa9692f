"""The command `kdbench`: its commands in order, and how it ends."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from kdbench.bench.errors import InputError, Unfinished, full_disk
from kdbench.sweeps.cli import authoring, deploying, mending, reading, report, running
from kdbench.sweeps.cli.common import say

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _say_version(wanted: bool) -> None:
    """Prints the version and ends."""
    if wanted:
        from importlib.metadata import version

        typer.echo(f"kdbench {version('kdbench')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _alone(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Knowledge distillation, compared honestly: run methods, sweep suites, read leaderboards."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


ORDER = (
    "methods",
    "compatibility",
    "new_method",
    "check",
    "run",
    "runs",
    "show",
    "explain",
    "sweep",
    "leaderboard",
    "compare",
    "report",
    "published",
    "tables",
    "reproduce",
    "status",
    "submit",
    "verify",
    "entries",
    "teachers",
    "export_student",
    "export",
    "import_",
    "sync",
    "doctor",
)
"""The order of the commands in the help."""
PARTS = (reading, report, running, authoring, deploying, mending)
app.registered_commands = sorted(
    [command for part in PARTS for command in part.app.registered_commands],
    key=lambda command: ORDER.index(getattr(command.callback, "__name__", "")),
)


def guarded(command: Callable[[], Any]) -> int:
    """Runs a command; bad input is one line and exit code 2, failed runs or a full disk 3, an interrupt 130 or 143."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        command()
    except InputError as error:
        say(f"kdbench: {error}")
        return 2
    except Unfinished as error:
        say(f"kdbench: {error}")
        return 3
    except (KeyboardInterrupt, Terminated) as end:
        line = "\n" if sys.stderr.isatty() else ""  # below ^C
        say(f"{line}kdbench: interrupted. What is finished is kept; the same command goes on.")
        return 143 if isinstance(end, Terminated) else 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if not (full := full_disk(error)):
            raise
        say(f"kdbench: {full}. What is finished is kept; with room on the disk again, the same command goes on.")
        return 3
    return 0


class Terminated(BaseException):
    """SIGTERM: ends a command as Ctrl-C does; no run takes it for an error of its own."""


def _terminate(number: int, frame: object) -> None:
    raise Terminated


def main() -> None:
    """Entry point of the command `kdbench`."""
    sys.exit(guarded(_typer))


def _typer() -> None:
    try:
        code = app(standalone_mode=False, prog_name="kdbench")
    except typer.TyperException as error:
        raise InputError(" ".join(error.format_message().split()) + " See: kdbench --help") from None
    if code == 130:
        raise KeyboardInterrupt
    if code:
        sys.exit(code)
