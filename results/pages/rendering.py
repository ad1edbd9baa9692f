"""Titled tables and the notes below them as text: terminal, markdown, LaTeX (booktabs)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.errors import unknown

FORMATS = ("terminal", "markdown", "latex", "csv")
TIE = "="
WIDTH = 150
"""Columns where there is no terminal to ask."""
LATEX = {char: f"\\{char}" for char in "_%&#$"} | {
    "^": r"\^{}",
    "±": r"$\pm$",
    "<": "$<$",
    "→": r"$\rightarrow$",
}


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    left: bool = False
    """Whether its cells are aligned on the left."""
    wraps: bool = False
    """Whether its cells may take several lines of a terminal."""


@dataclass(frozen=True)
class Block:
    """A table with its title and what is said below it."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    bold: frozenset[int] = field(default_factory=frozenset)
    """Rows in bold type; markdown and LaTeX have but one of their cells so."""
    cell: int = 1
    """Which."""
    remarks: Sequence[str] = ()


def check_form(form: str) -> None:
    """Checks the name of a form.

    Raises:
        InputError: if it is not one of FORMATS.
    """
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)


def render_blocks(
    blocks: Iterable[Block],
    notes: Sequence[str],
    form: str,
    width: int | None = None,
    tight: bool = False,
    bullets: bool = False,
) -> str:
    """Tables with notes below them as text.

    Args:
        blocks: the tables.
        notes: said once, below all of them.
        form: terminal, markdown or latex.
        width: columns of the terminal.
        tight: whether a terminal's columns are close to each other.
        bullets: whether markdown lists the notes.
    """
    if form == "terminal":
        return _terminal(blocks, notes, width, tight)
    texts = [_markdown(block) if form == "markdown" else _latex(block) for block in blocks]
    mark = "% " if form == "latex" else "- " if bullets else ""
    return "\n\n".join([*texts, "\n".join(f"{mark}{note}" for note in notes)])


def _terminal(blocks: Iterable[Block], notes: Sequence[str], width: int | None, tight: bool) -> str:
    console = Console(width=width, markup=False, highlight=False, emoji=False)
    if not console.is_terminal and width is None:
        console.width = WIDTH
    with console.capture() as capture:
        for block in blocks:
            console.print(block.title, style="bold", soft_wrap=True)
            grid = Table(box=box.SIMPLE_HEAD, collapse_padding=tight, pad_edge=not tight)
            for column in block.columns:
                grid.add_column(column.name, justify="left" if column.left else "right", no_wrap=not column.wraps)
            for index, row in enumerate(block.rows):
                grid.add_row(*map(Text, row), style="bold" if index in block.bold else None)
            console.print(grid)
            for remark in block.remarks:
                console.print(remark)
        for note in notes:
            console.print(note, style="dim")
    return capture.get()


def _markdown(block: Block) -> str:
    rows = [[text.replace("*", "\\*") for text in row] for row in block.rows]
    for index in block.bold:
        rows[index][block.cell] = f"**{rows[index][block.cell]}**"
    names = [column.name for column in block.columns]
    grid = pd.DataFrame(rows, columns=names).to_markdown(index=False, disable_numparse=True)
    return "\n\n".join([f"**{block.title}**", grid, *block.remarks])


def _latex(block: Block) -> str:
    rows = [[escaped(text) for text in row] for row in block.rows]
    for index in block.bold:
        rows[index][block.cell] = rf"\textbf{{{rows[index][block.cell]}}}"
    grid = pd.DataFrame(rows, columns=[column.name for column in block.columns]).to_latex(
        index=False,
        escape=False,
        column_format="".join("l" if column.left else "r" for column in block.columns),
        caption=escaped(block.title),
    )
    return "\n".join([grid, *(f"% {remark}" for remark in block.remarks)])


def escaped(text: str) -> str:
    """A text as LaTeX prints it."""
    return "".join(LATEX.get(char, char) for char in text.replace("->", "→"))
