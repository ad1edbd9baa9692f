"""The literature's numbers as a report: found, cut to a limit, with what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdbench.results.analysis.literature import Published, disputed, plain, recipe
from kdbench.results.pages.report import Block, Column, Report, Sheet

NEEDED = ("data", "student", "method", "value")
COLUMNS = tuple(
    Column(name, left=name != "value", wraps=name != "value", terminal=name != "source", needed=name in NEEDED)
    for name in ("table", "data", "teacher", "student", "method", "metric", "value", "origin", "source")
)
MARK = "!"
"""Marks a value that another source prints otherwise."""


def published_report(found: Sequence[Published], limit: int = 0, protocol: str = "") -> Report:
    """Rows of the literature, with their sources.

    Args:
        found: the rows.
        limit: the largest number of rows that are shown; 0 is all.
        protocol: the heading in recipes.md of a protocol to show below them.
    """
    shown = found[: limit or None]
    rows = [plain(row) for row in shown]
    values: dict[str, Any] = {"found": len(found), "shown": len(shown), "rows": rows}
    notes = [f"{len(shown)} of {len(found)} rows."]
    if len(shown) < len(found):
        notes[0] = f"{len(shown)} of {len(found)} rows: {len(found) - len(shown)} are left out; --limit 0 shows all."
    if any(map(disputed, shown)):
        notes.append(f"{MARK} another source prints another value for this setting: --conflicts lists them together.")
    if protocol:
        values["protocol"] = recipe(protocol)
        notes.append(f"Protocol, {protocol}:\n{values['protocol']}")
    return Report(
        name="published",
        title="published results",
        blocks=[Block("", COLUMNS, [_cells(row) for row in shown])],
        notes=notes,
        sheet=Sheet([*Published.model_fields, "unit", "ours", "disputed"], rows),
        values=values,
    )


def _cells(row: Published) -> list[str]:
    """A row as texts, by COLUMNS."""
    value = f"{row.value:g}" + ("" if row.spread is None else f" ± {row.spread:g}")
    return [
        row.table,
        ", ".join(filter(None, (row.dataset, row.part))),
        row.teacher,
        row.student,
        row.method + (f" ({row.variant})" if row.variant else ""),
        row.metric,
        " ".join(filter(None, (value, row.unit, MARK if disputed(row) else ""))),
        row.origin,
        ", ".join(filter(None, (row.source, row.place, row.note))),
    ]
