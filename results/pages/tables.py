"""The papers' tables that can be reproduced as reports: all of them, and one protocol in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kdbench.results.pages.report import Block, Column, Report

RIGHT = ("pairs", "numbers", "runs", "images", "hours")
NEEDED = ("table", "data", "hours", "status")
COLUMNS = ("table", "data", *RIGHT, "status", "about")


@dataclass(frozen=True)
class TableCost:
    """What a table costs."""

    runs: int
    images: float
    """The number of images that networks are trained on, over all runs and epochs."""
    hours: float | None
    """An estimate for this machine; None if nothing was measured."""

    @property
    def about(self) -> str:
        """The hours as text."""
        hours = self.hours or 0.0
        return f"{hours:.1f}" if hours < 10 else f"{hours:,.0f}"


@dataclass(frozen=True)
class TableFacts:
    """A table that can be reproduced."""

    table: str
    about: str
    paper: str
    data: str
    missing: list[str]
    """Files of the data that are not here yet."""
    pairs: int
    numbers: int
    full: TableCost
    short: TableCost
    status: str
    """How far it is, as "full: 3 of 7 numbers"."""

    def values(self) -> dict[str, Any]:
        """All of it as JSON values; the cost of the full scale is the table's."""
        own = asdict(self)
        full: dict[str, Any] = own.pop("full")
        return own | full


@dataclass(frozen=True)
class SourcedValue:
    """A value of a protocol, and where the paper says it."""

    value: str
    """Its path, as recipe.lr."""
    content: Any
    source: str


@dataclass(frozen=True)
class ProtocolFacts:
    """A protocol in full."""

    table: str
    about: str
    values: list[SourcedValue]
    departures: list[str]
    short: dict[str, Any] = field(default_factory=dict)
    """The fields that differ at short scale."""


def tables_report(tables: Sequence[TableFacts], kdbench: str) -> Report:
    """A line for each table.

    Args:
        tables: in the order of the report.
        kdbench: how the command is called here.
    """
    columns = [
        Column(name, left=name not in RIGHT, wraps=name not in ("table", "hours"), needed=name in NEEDED)
        for name in COLUMNS
    ]
    end = (
        "hours: about, of all runs on this machine from nothing, by a measured step of each network. "
        f"One protocol in full: {kdbench} tables NAME. Missing data may be downloaded when a table is run."
    )
    return Report(
        name="tables",
        title="tables",
        blocks=[Block("", columns, [_cells(table) for table in tables])],
        notes=[end],
        values={"tables": [table.values() for table in tables]},
        tight=True,
    )


def _cells(table: TableFacts) -> list[str]:
    """A table as texts, by COLUMNS."""
    return [
        table.table,
        table.data.removeprefix("folder:") + (" (missing)" if table.missing else ""),
        str(table.pairs),
        str(table.numbers),
        str(table.full.runs),
        f"{table.full.images / 1e6:.0f}M",
        f"{table.full.about} (short {table.short.about})",
        table.status,
        table.about,
    ]


def protocol_report(protocol: ProtocolFacts) -> Report:
    """Every value of a protocol with its source, and its departures from the paper."""
    said = [{"value": each.value, "is": each.content, "source": each.source} for each in protocol.values]
    text = [
        f"{protocol.table}: {protocol.about}",
        "",
        *(f"{each.value} = {each.content}    [{each.source}]" for each in protocol.values),
        "",
        *(f"Departure: {text}" for text in protocol.departures),
        f"Short scale: {protocol.short}",
        "What is not written of a method's hyperparameters is its default here: kdbench methods NAME.",
    ]
    values = {"table": protocol.table, "values": said, "departures": protocol.departures}
    return Report(name="protocol", title=protocol.table, text=text, values=values)
