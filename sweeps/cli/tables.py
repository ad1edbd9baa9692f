"""The command bodies of `kdbench tables` and `kdbench reproduce`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from kdbench.bench.data.info import missing
from kdbench.bench.environment import command, pick_device
from kdbench.results.analysis.reproduction import Reproduction
from kdbench.results.pages.report import Report, check_form, render
from kdbench.results.pages.reproduction import reproduction_report
from kdbench.results.pages.tables import ProtocolFacts, SourcedValue, TableCost, TableFacts, protocol_report
from kdbench.results.store.run_store import RunStore
from kdbench.sweeps.cli.common import draw_picture, readable
from kdbench.sweeps.cli.place import Place
from kdbench.sweeps.cli.progress import SweepProgress
from kdbench.sweeps.protocols.cost import Speeds, cost_of
from kdbench.sweeps.protocols.files import UNSOURCED, bundled, load_protocol, read_protocol, written
from kdbench.sweeps.protocols.reproduce import carry_out, plan_of, reproduction_of
from kdbench.sweeps.protocols.request import SCALES, TableRequest, table_request
from kdbench.sweeps.suites.suite import primary_of


def reproduce_and_show(
    request: TableRequest, place: Place, form: str = "terminal", plot: Path | None = None, train: bool = True
) -> tuple[dict[str, Any], str, list[str]]:
    """Carries out a request with a progress bar; returns the table as JSON values and as text, and which runs failed.

    Args:
        request: what of a protocol.
        place: where and how.
        form: of the text: terminal, markdown, latex or csv.
        plot: where a picture is written, if at all.
        train: whether to run what is missing, or to print what there is.

    Raises:
        InputError: if anything is wrong with the request or the machine.
    """
    check_form(form)
    problem, failures = "", list[str]()
    if train:
        machine = place.machine()
        metric = primary_of(request.protocol.data)
        with SweepProgress(request.protocol.name, request.expected(), machine.workers, metric) as progress:
            problem, failures = carry_out(request, RunStore(place.store), machine, progress.report, progress.say)
    table = reproduction_of(request, place.store if train else readable(place.store))
    report = reproduction_report(table)
    if plot:
        draw_picture(report, "reproduction", plot)
    return dict(report.values), render(report, form) + _ends(table, form, problem), failures


def _ends(table: Reproduction, form: str, problem: str) -> str:
    """What a terminal says below the table."""
    if form != "terminal":
        return ""
    lines = [problem] if problem else []
    if "@" in table.title:
        lines.append(f"Runs:    {command('kdbench')} status {table.title}")
    return "\n".join(lines)


def facts_of_tables(place: Place) -> list[TableFacts]:
    """The tables that can be reproduced: what they cost on this machine, and how far they are.

    Raises:
        InputError: for an unknown device.
    """
    speeds, console = Speeds(place.store, pick_device(place.device)), Console(stderr=True)
    names = track(bundled(), "measuring networks", console=console, disable=not console.is_terminal)
    return [_facts(name, place, speeds) for name in names]


def _facts(name: str, place: Place, speeds: Speeds) -> TableFacts:
    protocol = load_protocol(name)
    requests = {scale: table_request(protocol, scale) for scale in SCALES}
    return TableFacts(
        table=name,
        about=protocol.about,
        paper=protocol.paper,
        data=protocol.data.name,
        missing=missing(protocol.data.name, place.data),
        pairs=len(protocol.pairs),
        numbers=len(requests["full"].wanted()),
        full=TableCost(**asdict(cost_of(requests["full"], speeds))),
        short=TableCost(**asdict(cost_of(requests["short"], speeds))),
        status=_status(requests, place.store),
    )


def _status(requests: dict[str, TableRequest], root: Path) -> str:
    """How many of a table's numbers there are, at every scale at which it was begun."""
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
