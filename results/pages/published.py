"""The command body of `kdbench published`: search, cut to a limit, show, and say what was left out."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from tabulate import tabulate

from bench.errors import unknown
from results.analysis.literature import Published, conflicts, disputed, plain, recipe, search

FORMATS = ("terminal", "markdown", "csv")
COLUMNS = ("table", "data", "teacher", "student", "method", "metric", "value", "origin", "source")
MARK = "!"
"""Beside a value that another source prints otherwise."""


def published_and_show(
    wanted: dict[str, str | None], disagreeing: bool, form: str, limit: int
) -> tuple[dict[str, Any], str, str]:
    """The found rows as JSON values, as text, and notes for who reads the text.

    Args:
        wanted: conditions of `results.analysis.literature.search`.
        disagreeing: only settings for which sources print other values, each with all its rows.
        form: terminal, markdown or csv.
        limit: rows; 0 is all.

    Raises:
        InputError: for an unknown name or form.
    """
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    found = search(**wanted)
    if disagreeing:
        settings = {row.setting() for row in found}
        found = tuple(row for rows in conflicts() if rows[0].setting() in settings for row in rows)
    shown = found[: limit or None]
    values = {"found": len(found), "shown": len(shown), "rows": [plain(row) for row in shown]}
    notes = [f"{len(shown)} of {len(found)} rows."]
    if len(shown) < len(found):
        notes[0] = f"{len(shown)} of {len(found)} rows: {len(found) - len(shown)} are left out; --limit 0 shows all."
    if any(map(disputed, shown)):
        notes.append(f"{MARK} another source prints another value for this setting: --conflicts lists them together.")
    if wanted.get("table") and found and not disagreeing:
        values["protocol"] = recipe(found[0].protocol)
        notes.append(f"Protocol, {found[0].protocol}:\n{values['protocol']}")
    return values, render(shown, form), "\n".join(notes)


def render(rows: Sequence[Published], form: str, width: int | None = None) -> str:
    """Rows as text: terminal (without sources), markdown, or csv of every column."""
    if form == "csv":
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, [*Published.model_fields, "unit", "ours", "disputed"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(plain, rows))
        return buffer.getvalue().rstrip("\n")
    if form == "markdown":
        lines = [[text.replace("|", "\\|") for text in cells(row)] for row in rows]
        return tabulate(lines, COLUMNS, tablefmt="github", disable_numparse=True)
    console = Console(width=width, markup=False, highlight=False)
    if not console.is_terminal and width is None:
        console = Console(width=150, markup=False, highlight=False)
    grid = Table(box=box.SIMPLE_HEAD)
    for column in COLUMNS[:-1]:
        grid.add_column(column, justify="right" if column == "value" else "left", overflow="fold")
    for row in rows:
        grid.add_row(*cells(row)[:-1])
    with console.capture() as capture:
        console.print(grid)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n")


def cells(row: Published) -> list[str]:
    """A row as text, by COLUMNS."""
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
