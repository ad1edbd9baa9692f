"""The command bodies of `kdbench tables` and `kdbench reproduce`."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.atomic import write
from bench.data.info import missing
from bench.environment import command, pick_device
from bench.errors import unknown
from bench.teachers.backends import parse_backend
from bench.training.precision import check_precision
from results.analysis.reproduction import Reproduction
from results.pages.rendering import FORMATS
from results.pages.reproduction import reproduction_page, reproduction_plot, reproduction_values
from results.store.run_store import RunStore
from sweeps.cli.progress import SweepProgress
from sweeps.protocols.cost import Cost, Speeds, cost_of
from sweeps.protocols.files import UNSOURCED, bundled, load_protocol, read_protocol, written
from sweeps.protocols.reproduce import carry_out, plan_of, reproduction_of
from sweeps.protocols.request import SCALES, Task, task_of
from sweeps.scheduling.workers import Machine

COLUMNS = ("table", "data", "pairs", "numbers", "runs", "images", "hours", "status", "about")


def reproduce_and_show(
    task: Task,
    root: Path,
    workers: int,
    device_name: str,
    precision: str,
    cache: str,
    data_dir: Path | None,
    form: str,
    plot: Path | None,
    train: bool,
) -> tuple[dict[str, Any], str]:
    """Carries out a task with a progress bar, if it is to be trained; returns the table as JSON values and as text.

    Raises:
        InputError: if anything is wrong with the task or the machine.
    """
    check_format(form)
    problem = ""
    if train:
        device = pick_device(device_name)
        check_precision(precision)
        parse_backend(cache, root, device)
        store = RunStore(root)
        count = workers or (1 if device.type == "cuda" else os.cpu_count() or 1)
        machine = Machine(folder_of(data_dir, store.root), str(device), precision, count, cache=cache)
        with SweepProgress(task.protocol.name, task.runs(), count) as progress:
            problem = carry_out(task, store, machine, progress.report)
    table = reproduction_of(task, root)
    if plot:
        write(plot, reproduction_plot(table))
    return reproduction_values(table), reproduction_page(table, form) + _ends(table, form, problem)


def check_format(form: str, formats: tuple[str, ...] = FORMATS) -> None:
    """Checks the name of a format.

    Raises:
        InputError: if it is unknown.
    """
    if form not in formats:
        raise unknown("format", form, formats)


def _ends(table: Reproduction, form: str, problem: str) -> str:
    """What a terminal says below the table."""
    if form != "terminal":
        return ""
    lines = [problem] if problem else []
    if "@" in table.title:
        lines.append(f"Runs:    {command('kdbench')} status {table.title}")
    return "\n".join(lines)


def folder_of(data_dir: Path | None, root: Path) -> Path:
    """Where data sets lie."""
    return (data_dir or root / "data").expanduser().resolve()


def tables_and_show(
    name: str | None, root: Path, data_dir: Path | None, device_name: str, form: str
) -> tuple[dict[str, Any], str]:
    """The tables that can be reproduced, or one protocol in full, as JSON values and as text.

    Raises:
        InputError: for an unknown table, device or format.
    """
    check_format(form, ("terminal", "markdown"))
    if name:
        return _protocol_and_show(name)
    device, console = pick_device(device_name), Console(stderr=True)
    speeds, rows = Speeds(root, device), list[dict[str, Any]]()
    for table in track(bundled(), "measuring networks", console=console, disable=not console.is_terminal):
        protocol = load_protocol(table)
        lacking = missing(protocol.data.name, folder_of(data_dir, root))
        tasks = {scale: task_of(protocol, scale) for scale in SCALES}
        cost = {scale: asdict(cost_of(task, speeds)) for scale, task in tasks.items()}
        rows.append(
            {
                "table": table,
                "about": protocol.about,
                "paper": protocol.paper,
                "data": protocol.data.name,
                "missing": lacking,
                "pairs": len(protocol.pairs),
                "numbers": len(tasks["full"].wanted()),
                **cost["full"],
                "short": cost["short"],
                "status": _status(tasks, root),
            }
        )
    return {"tables": rows}, _listing(rows, form)


def _status(tasks: dict[str, Task], root: Path) -> str:
    """How far a table is, at every scale at which it was begun."""
    texts = []
    for scale, task in tasks.items():
        if plan_of(task, root):
            table = reproduction_of(task, root)
            done = sum(1 for row in table.rows if row.value is not None)
            texts.append(f"{scale}: {done} of {len(table.rows)} numbers")
    return "; ".join(texts) or "not run"


def _listing(rows: list[dict[str, Any]], form: str) -> str:
    cells = []
    for row in rows:
        data = row["data"].removeprefix("folder:") + (" (missing)" if row["missing"] else "")
        cost = Cost(row["runs"], row["images"], row["hours"])
        hours = f"{_about(cost)} (short {_about(Cost(**row['short']))})"
        images = f"{cost.images / 1e6:.0f}M"
        cells.append(
            [row["table"], data, str(row["pairs"]), str(row["numbers"]), str(cost.runs), images, hours, row["status"]]
            + [row["about"]]
        )
    end = (
        "hours: about, of all runs on this machine from nothing, by a measured step of each network. "
        f"One protocol in full: {command('kdbench')} tables NAME. Missing data may be downloaded when a table is run."
    )
    if form == "markdown":
        lines = [COLUMNS, ["---"] * len(COLUMNS), *cells]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{end}"
    console = Console()
    if not console.is_terminal:
        console = Console(width=180)
    with console.capture() as capture:
        grid = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
        for column in COLUMNS:
            right = column in ("pairs", "numbers", "runs", "images", "hours")
            grid.add_column(column, justify="right" if right else "left", no_wrap=column in ("table", "hours"))
        for line in cells:
            grid.add_row(*line)
        console.print(grid)
        console.print(end, style="dim", highlight=False)
    return capture.get()


def _about(cost: Cost) -> str:
    hours = cost.hours or 0.0
    return f"{hours:.1f}" if hours < 10 else f"{hours:,.0f}"


def _protocol_and_show(name: str) -> tuple[dict[str, Any], str]:
    """Every value of a protocol with its source."""
    values, protocol = read_protocol(name)
    said = [
        {"value": path, "is": value, "source": protocol.source(path)}
        for path, value in written({key: value for key, value in values.items() if key not in UNSOURCED})
    ]
    lines = [f"{protocol.name}: {protocol.about}", ""]
    lines += [f"{each['value']} = {each['is']}    [{each['source']}]" for each in said]
    lines += ["", *(f"Departure: {text}" for text in protocol.departures)]
    lines += [f"Short scale: {protocol.short.model_dump(exclude_defaults=True)}"]
    lines += ["What is not written of a method's hyperparameters is its default here: kdbench methods NAME."]
    page = "\n".join(lines)
    return {"table": protocol.name, "values": said, "departures": list(protocol.departures)}, page
