"""The one form that every page has: lines of text, tables, notes, and the numbers and pictures behind them."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, JustifyMethod, OverflowMethod
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from tabulate import tabulate

from kdbench.bench.errors import unknown
from kdbench.results.pages.escape import escaped, marked, plain

FORMATS = ("terminal", "markdown", "latex", "csv")
TIE = "="
"""Marks a row that cannot be told apart from the best one."""
WIDTH = 150
"""Columns where there is no terminal to ask."""
LONGEST_WORD = 24
"""Columns that a word of a text may have before it is broken."""
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
    """Whether a terminal shows it unless it is asked for; the other forms always do."""
    needed: bool = False
    """Whether a terminal that is too narrow for all leaves out others first."""


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
        "\n".join(marked(line, mark, mark) for line in report.text),
        *(_markdown(block) if form == "markdown" else _latex(block) for block in report.blocks),
        "\n".join(marked(plain(note) if form == "markdown" else note, bullet, mark) for note in report.notes),
    ]
    return "\n\n".join(filter(None, parts))


def with_columns(report: Report, names: Sequence[str]) -> Report:
    """A report whose tables have these columns alone; tables that have none of them are left out.

    Raises:
        InputError: for a name that is no column of any table.
    """
    every = {column.name for block in report.blocks for column in block.columns}
    for name in names:
        if name not in every:
            raise unknown("column", name, every)
    blocks = []
    for block in report.blocks:
        known = [column.name for column in block.columns]
        kept = [known.index(name) for name in names if name in known]
        bold = kept.index(block.bold_column) if block.bold_column in kept else 0
        columns = [replace(block.columns[index], terminal=True) for index in kept]
        rows = [[row[index] for index in kept] for row in block.rows]
        blocks += [replace(block, columns=columns, rows=rows, bold_column=bold)] if kept else []
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
    console = Console(width=width, markup=False, highlight=False, emoji=False)
    narrow = console.is_terminal or width is not None
    if not narrow:
        console.width = WIDTH
    text = [each for line in report.text for each in (_wrapped(line, console.width) if narrow else [line])]
    if not (report.blocks or report.notes):
        return "\n".join(text)
    left_out: dict[str, None] = {}
    with console.capture() as capture:
        for line in text:
            console.print(line, soft_wrap=True)
        for block in report.blocks:
            if block.title:
                console.print(block.title, style="bold", soft_wrap=not narrow)
            grid, missing = _fitted(block, report.tight, console)
            left_out |= dict.fromkeys(missing)
            console.print(grid)
            for remark in block.remarks:
                console.print(remark)
            if block.remarks:
                console.print()
        for note in [*([_no_room(list(left_out), report)] if left_out else []), *report.notes]:
            console.print(note, style="dim")
    return capture.get().rstrip() + "\n"


def _wrapped(text: str, width: int) -> list[str]:
    """A text as lines that are no wider, broken between words; what goes on after an indented line is indented more."""
    lines = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip())]
        lines += textwrap.wrap(line, width, subsequent_indent=2 * indent, break_long_words=False) or [""]
    return lines


def _no_room(names: Sequence[str], report: Report) -> str:
    """Says which columns were left out, and how to see them."""
    shown = f"--columns NAME,NAME or --format {'csv' if report.sheet else 'markdown'} shows them."
    return f"Left out, as the terminal is narrow: {', '.join(names)}. {shown}"


def _fitted(block: Block, tight: bool, console: Console) -> tuple[Table, list[str]]:
    """A table without the columns for which a console has no room, from the right, and their names."""
    shown, left_out = [index for index, column in enumerate(block.columns) if column.terminal], list[int]()
    while True:
        grid = _grid(block, tight, shown)
        wanted = [_widths(block, index) for index in shown]
        for column, (least, _) in zip(grid.columns, wanted, strict=True):
            column.width = least
        room = console.width - Measurement.get(console, console.options.update(width=10 * WIDTH), grid).minimum
        others = [index for index in shown[1:] if not block.columns[index].needed] or shown[1:]
        if room >= 0 or not others:
            break
        left_out.append(others[-1])
        shown.remove(others[-1])
    for column, (least, most) in zip(grid.columns, wanted, strict=True):
        column.width = least + min(room, most - least) if room >= 0 else None
        room -= (column.width or least) - least
    return grid, [block.columns[index].name for index in sorted(left_out)]


def _widths(block: Block, index: int) -> tuple[int, int]:
    """The least and the most columns of a terminal that a table's column takes."""
    column = block.columns[index]
    texts = [column.name, *(row[index] for row in block.rows)]
    most, word = max(map(cell_len, texts)), max(cell_len(word) for text in texts for word in text.split() or [""])
    return (min(word, LONGEST_WORD) if column.wraps else most), most


def _grid(block: Block, tight: bool, shown: Sequence[int]) -> Table:
    """A table of a terminal, of some columns."""
    grid = Table(box=box.SIMPLE_HEAD, collapse_padding=tight, pad_edge=not tight)
    for column in (block.columns[index] for index in shown):
        overflow: OverflowMethod = "fold" if column.left and column.wraps else "ellipsis"
        justify: JustifyMethod = "left" if column.left else "right"
        grid.add_column(column.name, justify=justify, overflow=overflow, no_wrap=not column.wraps)
    for number, row in enumerate(block.rows):
        grid.add_row(*(Text(row[index]) for index in shown), style="bold" if number in block.bold else None)
    return grid


def _markdown(block: Block) -> str:
    rows = [[plain(text).replace("*", "\\*").replace("|", "\\|") for text in row] for row in block.rows]
    for index in block.bold:
        rows[index][block.bold_column] = f"**{rows[index][block.bold_column]}**"
    grid = tabulate(rows, [column.name for column in block.columns], "pipe", disable_numparse=True)
    title = f"**{plain(block.title)}**" if block.title else ""
    return "\n\n".join(filter(None, [title, grid, *map(plain, block.remarks)]))


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
    return "\n".join([grid, *(marked(remark, "% ", "% ") for remark in block.remarks)])
