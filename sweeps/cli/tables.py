"""The command bodies of `kdbench tables` and `kdbench reproduce`."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from bench.data.info import missing
from bench.environment import command, pick_device
from bench.teachers.backends import parse_backend
from bench.training.precision import check_precision
from results.analysis.reproduction import Reproduction
from results.pages.report import Report, check_form, render
from results.pages.reproduction import reproduction_report
from results.pages.tables import ProtocolFacts, SourcedValue, TableCost, TableFacts, protocol_report, tables_report
from results.store.run_store import RunStore
from sweeps.cli.common import draw_picture, readable
from sweeps.cli.progress import SweepProgress
from sweeps.protocols.cost import Speeds, cost_of
from sweeps.protocols.files import UNSOURCED, bundled, load_protocol, read_protocol, written
from sweeps.protocols.reproduce import carry_out, plan_of, reproduction_of
from sweeps.protocols.request import SCALES, TableRequest, table_request
from sweeps.scheduling.workers import Machine


def reproduce_and_show(
    request: TableRequest,
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
    """Carries out a request with a progress bar, if it is to be trained; returns the table as JSON values and as text.

    Raises:
        InputError: if anything is wrong with the request or the machine.
    """
    check_form(form)
    problem = ""
    if train:
        device = pick_device(device_name)
        check_precision(precision)
        parse_backend(cache, root, device)
        store = RunStore(root)
        count = workers or (1 if device.type == "cuda" else os.cpu_count() or 1)
        machine = Machine(folder_of(data_dir, store.root), str(device), precision, count, cache=cache)
        with SweepProgress(request.protocol.name, request.runs(), count) as progress:
            problem = carry_out(request, store, machine, progress.report)
    table = reproduction_of(request, root if train else readable(root))
    report = reproduction_report(table)
    if plot:
        draw_picture(report, "reproduction", plot)
    return dict(report.values), render(report, form) + _ends(table, form, problem)


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


def report_of_tables(root: Path, data_dir: Path | None, device_name: str) -> Report:
    """The tables that can be reproduced: what they cost on this machine, and how far they are.

    Raises:
        InputError: for an unknown device.
    """
    device, console = pick_device(device_name), Console(stderr=True)
    speeds, folder = Speeds(root, device), folder_of(data_dir, root)
    names = track(bundled(), "measuring networks", console=console, disable=not console.is_terminal)
    return tables_report([_facts(name, root, folder, speeds) for name in names], command("kdbench"))


def _facts(name: str, root: Path, data_dir: Path, speeds: Speeds) -> TableFacts:
    protocol = load_protocol(name)
    requests = {scale: table_request(protocol, scale) for scale in SCALES}
    return TableFacts(
        table=name,
        about=protocol.about,
        paper=protocol.paper,
        data=protocol.data.name,
        missing=missing(protocol.data.name, data_dir),
        pairs=len(protocol.pairs),
        numbers=len(requests["full"].wanted()),
        full=TableCost(**asdict(cost_of(requests["full"], speeds))),
        short=TableCost(**asdict(cost_of(requests["short"], speeds))),
        status=_status(requests, root),
    )


def _status(requests: dict[str, TableRequest], root: Path) -> str:
    """How far a table is, at every scale at which it was begun."""
    texts = []
    for scale, request in requests.items():
        if plan_of(request, root):
            table = reproduction_of(request, root)
            done = sum(1 for row in table.rows if row.value is not None)
            texts.append(f"{scale}: {done} of {len(table.rows)} numbers")
    return "; ".join(texts) or "not run"


def report_of_protocol(name: str) -> Report:
    """One protocol in full, with the source of each value.

    Raises:
        InputError: for an unknown table.
    """
    values, protocol = read_protocol(name)
    said = written({key: value for key, value in values.items() if key not in UNSOURCED})
    return protocol_report(
        ProtocolFacts(
            table=protocol.name,
            about=protocol.about,
            values=[SourcedValue(path, value, protocol.source(path)) for path, value in said],
            departures=list(protocol.departures),
            short=protocol.short.model_dump(exclude_defaults=True),
        )
    )
