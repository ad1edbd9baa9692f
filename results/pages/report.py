"""The one form that every page has: lines of text, tables, notes, and the numbers and pictures behind them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich import box
from rich.console import Console, JustifyMethod, OverflowMethod
from rich.table import Table
from rich.text import Text
from tabulate import tabulate

from kdbench.bench.errors import unknown

FORMATS = ("terminal", "markdown", "latex", "csv")
TIE = "="
"""Marks a row that cannot be told apart from the best one."""
WIDTH = 150
"""Columns where there is no terminal to ask."""
LATEX = {char: f"\\{char}" for char in "_%&#$"} | {
    "^": r"\^{}",
    "±": r"$\pm$",
    "<": "$<$",
    "→": r"$\rightarrow$",
}

Picture = Callable[[str], bytes]
"""Makes a file of a form (png, svg or pdf); raises InputError if there is nothing to draw, or for another form."""


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    left: bool = False
    """Whether its texts are aligned on the left."""
    wraps: bool = False
    """Whether its texts may take several lines of a terminal."""
    terminal: bool = True
    """Whether a terminal has room for it; the other forms always show it."""


@dataclass(frozen=True)
class Block:
    """A table with its title and what is said below it."""

    title: str
    """Shown above the table, unless it is empty."""
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    bold: frozenset[int] = frozenset()
    """Rows in bold type."""
    bold_column: int = 1
    """The column of a bold row that is bold in markdown and LaTeX, where only one is."""
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Sheet:
    """Plain numbers for CSV, a line for each row; None and NaN are empty cells."""

    columns: Sequence[str]
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Number:
    """A named number, as MLflow plots it over steps."""

    name: str
    value: float
    step: int = 0


@dataclass(frozen=True)
class Report:
    """A page, independent of the form in which it is shown."""

    name: str
    """The name of its files, as "leaderboard"."""
    title: str
    """The name of what is reported, as a suite's."""
    text: Sequence[str] = ()
    """Lines above the tables, shown as they are."""
    blocks: Sequence[Block] = ()
    notes: Sequence[str] = ()
    """Lines below the tables: what a reader must know to judge them."""
    sheet: Sheet | None = None
    """Plain numbers; None if the report cannot be shown as CSV."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """All of it as JSON values."""
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    """Pictures by name, as "ranks"."""
    metrics: Sequence[Number] = ()
    """Numbers that MLflow plots."""
    tight: bool = False
    """Whether a terminal's columns are close to each other."""
    bullets: bool = False
    """Whether markdown lists the notes."""


def check_form(form: str, known: Sequence[str] = FORMATS) -> None:
    """Checks the name of a form, before anything is computed for it.

    Raises:
        InputError: if it is none of the known ones.
    """
    if form not in known:
        raise unknown("format", form, known)


def forms_of(report: Report) -> tuple[str, ...]:
    """The forms that a report has: terminal and markdown always, LaTeX of tables, CSV of numbers."""
    latex, csv_ = ("latex",) if report.blocks or report.notes else (), ("csv",) if report.sheet else ()
    return ("terminal", "markdown", *latex, *csv_)


def render(report: Report, form: str = "terminal", width: int | None = None) -> str:
    """A report as text.

    Args:
        report: what to show.
        form: one of `forms_of`.
        width: columns of the terminal; by default the terminal's own, or WIDTH where there is none.

    Raises:
        InputError: for an unknown form.
    """
    check_form(form, forms_of(report))
    if form == "csv" and report.sheet:
        return _csv(report.sheet)
    if form == "terminal":
        return _terminal(report, width)
    mark = "% " if form == "latex" else ""
    bullet = "- " if form == "markdown" and report.bullets else mark
    parts = [
        "\n".join(f"{mark}{line}" for line in report.text),
        *(_markdown(block) if form == "markdown" else _latex(block) for block in report.blocks),
        "\n".join(f"{bullet}{note}".replace("\n", f"\n{mark}") for note in report.notes),
    ]
    return "\n\n".join(filter(None, parts))


def with_columns(report: Report, names: Sequence[str]) -> Report:
    """A report whose tables have these columns alone.

    Raises:
        InputError: for a name that is no column of a table.
    """
    blocks = []
    for block in report.blocks:
        known = [column.name for column in block.columns]
        for name in names:
            if name not in known:
                raise unknown("column", name, known)
        kept = [known.index(name) for name in names]
        bold = kept.index(block.bold_column) if block.bold_column in kept else 0
        columns, rows = [block.columns[index] for index in kept], [[row[index] for index in kept] for row in block.rows]
        blocks.append(replace(block, columns=columns, rows=rows, bold_column=bold))
    return replace(report, blocks=blocks)


def rows_of(report: Report) -> dict[str, list[Any]]:
    """The rows of all tables that have the first one's columns, as texts, with the title of each row's table."""
    names = [column.name for column in report.blocks[0].columns]
    alike = [block for block in report.blocks if [column.name for column in block.columns] == names]
    return {"columns": ["table", *names], "data": [[block.title, *row] for block in alike for row in block.rows]}


def _csv(sheet: Sheet) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, sheet.columns, lineterminator="\n")
    writer.writeheader()
    for row in sheet.rows:  # NaN alone is not equal to itself
        writer.writerow({name: "" if value != value else value for name, value in row.items()})
    return text.getvalue().rstrip("\n")


def _terminal(report: Report, width: int | None) -> str:
    if not (report.blocks or report.notes):
        return "\n".join(report.text)
    console = Console(width=width, markup=False, highlight=False, emoji=False)
    if not console.is_terminal and width is None:
        console.width = WIDTH
    with console.capture() as capture:
        for line in report.text:
            console.print(line, soft_wrap=True)
        for block in report.blocks:
            if block.title:
                console.print(block.title, style="bold", soft_wrap=True)
            console.print(_grid(block, report.tight))
            for remark in block.remarks:
                console.print(remark)
            if block.remarks:
                console.print()
        for note in report.notes:
            console.print(note, style="dim")
    return capture.get().rstrip() + "\n"


def _grid(block: Block, tight: bool) -> Table:
    """A table of a terminal, without the columns for which it has no room."""
    shown = [index for index, column in enumerate(block.columns) if column.terminal]
    grid = Table(box=box.SIMPLE_HEAD, collapse_padding=tight, pad_edge=not tight)
    for column in (block.columns[index] for index in shown):
        overflow: OverflowMethod = "fold" if column.left and column.wraps else "ellipsis"
        justify: JustifyMethod = "left" if column.left else "right"
        grid.add_column(column.name, justify=justify, overflow=overflow, no_wrap=not column.wraps)
    for number, row in enumerate(block.rows):
        grid.add_row(*(Text(row[index]) for index in shown), style="bold" if number in block.bold else None)
    return grid


def _markdown(block: Block) -> str:
    rows = [[text.replace("*", "\\*").replace("|", "\\|") for text in row] for row in block.rows]
    for index in block.bold:
        rows[index][block.bold_column] = f"**{rows[index][block.bold_column]}**"
    grid = tabulate(rows, [column.name for column in block.columns], "pipe", disable_numparse=True)
    return "\n\n".join(filter(None, [f"**{block.title}**" if block.title else "", grid, *block.remarks]))


def _latex(block: Block) -> str:
    import pandas as pd

    rows = [[escaped(text) for text in row] for row in block.rows]
    for index in block.bold:
        rows[index][block.bold_column] = rf"\textbf{{{rows[index][block.bold_column]}}}"
    grid = pd.DataFrame(rows, columns=[column.name for column in block.columns]).to_latex(
        index=False,
        escape=False,
        column_format="".join("l" if column.left else "r" for column in block.columns),
        caption=escaped(block.title) or None,
    )
    return "\n".join([grid, *(f"% {remark}" for remark in block.remarks)])


def escaped(text: str) -> str:
    """A text as LaTeX prints it."""
    return "".join(LATEX.get(char, char) for char in text.replace("->", "→"))
