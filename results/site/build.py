"""Writes the site: a folder for each suite and each paper's table, an index, and what the pages share."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from kdbench.bench.atomic import write
from kdbench.results.analysis.board import Board
from kdbench.results.analysis.leaderboard import leaderboard
from kdbench.results.analysis.reproduction import Reproduction
from kdbench.results.analysis.training import confusion, curve, seeds_of
from kdbench.results.analysis.tried import tried
from kdbench.results.pages.board import board_report
from kdbench.results.pages.numbers import printed
from kdbench.results.pages.reproduction import reproduction_report
from kdbench.results.site import charts
from kdbench.results.site.board_page import board_page
from kdbench.results.site.card import Found, judged, on_pair
from kdbench.results.site.facts import RowFacts, SuiteFacts
from kdbench.results.site.render import page
from kdbench.results.site.tables import Cell, Head, Line, Sortable, gain_cell, tags_of
from kdbench.results.store.plan import SweepPlan
from kdbench.results.store.run_store import RunStore

UNKNOWN = RowFacts(None, {}, {})
"""Of a row of which the caller says nothing."""
VEGA = "vega.js"


@dataclass(frozen=True)
class Shown:
    """A suite or a paper's table of the site."""

    plan: SweepPlan
    folder: str
    rows: Mapping[str, RowFacts]
    board: Board | None
    """None of a paper's table."""
    table: Reproduction | None
    """None of a suite."""


def build(suites: Sequence[SuiteFacts], store: RunStore, out: Path) -> list[Path]:
    """Writes the site of suites and papers' tables; returns its pages, the index first.

    Args:
        suites: what to show.
        store: where their runs are.
        out: the site's folder, made if it is new; pages of an earlier site are written anew, others stay.

    Raises:
        OSError: if the folder cannot be written.
    """
    shown = _shown(suites, store)
    pages = {"index.html": page("index.html.j2", **_index(shown), root="")}
    tables = {each.folder: each.table for each in shown if each.table}
    for each in shown:
        if each.table:
            pages[f"{each.folder}/index.html"] = _table_page(each.folder, each.table)
        elif each.board:
            pages |= _board_pages(each, each.board, tables, store)
    for name, text in pages.items():
        _write(out / name, text.encode())
    for name, content in _assets():
        _write(out / "assets" / name, content)
    return [out / name for name in pages]


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, content)


def _assets() -> Iterable[tuple[str, bytes]]:
    """What the pages share, as files: style, sorting and filtering, and the library that draws."""
    from vl_convert import javascript_bundle

    for name in ("site.css", "site.js"):
        yield name, files("kdbench.results.site").joinpath("static", name).read_bytes()
    yield VEGA, javascript_bundle("window.vegaEmbed = vegaEmbed;").encode()


def _shown(suites: Sequence[SuiteFacts], store: RunStore) -> list[Shown]:
    names = Counter(each.plan.folder.parent.name for each in suites)
    found = []
    for each in suites:
        name = each.plan.folder.parent.name
        folder = slug(each.plan.name if names[name] > 1 else name)
        board = None if each.table else leaderboard(each.plan, store)
        found.append(Shown(each.plan, folder, each.rows, board, each.table))
    return found


def slug(name: str) -> str:
    """A name as that of a file: as it is, or what is safe of it with a digest."""
    safe = re.sub(r"[^\w.+-]+", "-", name, flags=re.ASCII).strip(".-")
    same = safe == name and name != "index"
    return safe if same else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _index(shown: Sequence[Shown]) -> dict[str, Any]:
    boards = [(each, each.board) for each in shown if each.board]
    lines = []
    for each, board in boards:
        for row in board.rows:
            link = f"{each.folder}/{slug(row.method)}.html"
            score = "" if row.score is None else f"{printed(row.score.mean, board.metric)} {board.metric.name}"
            cells = [Cell(row.method, link=link), Cell(each.folder, link=f"{each.folder}/index.html"), Cell(row.pair)]
            cells += [Cell(row.given), Cell(score, row.score.mean if row.score else None)]
            cells.append(gain_cell(row.gain_control, row.p_control, board.metric))
            tags = {"board": each.folder, **tags_of(row, each.rows, each.plan.suite.data.name)}
            lines.append(Line(cells, tags))
    heads = [Head("method", "method"), Head("board", "board"), Head("pair", "pair"), Head("given", "given")]
    heads += [Head("score", "score", number=True), Head("control", "over its control", number=True)]
    lines.sort(key=lambda line: (line.cells[0].text, line.cells[1].text))
    every = Sortable(heads, lines, "Every row of every board")
    verdicts = {each.folder: _verdicts(each.table) for each in shown if each.table}
    return {"shown": shown, "table": every, "verdicts": verdicts, "title": "kdbench"}


def _verdicts(table: Reproduction) -> str:
    """How the numbers and gains of a table were judged, as "3 inconclusive, 1 different"."""
    counts = Counter(row.judgement.verdict for row in table.rows if row.wanted.published)
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())


def _table_page(folder: str, table: Reproduction) -> str:
    report = reproduction_report(table)
    drawn = [row for row in table.rows if row.value is not None and row.wanted.published]
    measures = list(dict.fromkeys(row.wanted.metric for row in drawn))
    plots = [charts.published(table, measure) for measure in measures]
    return page(
        "table.html.j2", root="../", title=folder, table=table, report=report, plots=plots, verdicts=_verdicts(table)
    )


def _board_pages(each: Shown, board: Board, tables: Mapping[str, Reproduction], store: RunStore) -> dict[str, str]:
    """The page of a board, and a card for each of its rows, by path."""
    plan, runs = each.plan, seeds_of(each.plan, store)
    found = Found(
        tried(plan, store),
        {place: curve(mine) for place, mine in runs.items()},
        {place: confusion(mine, store) for place, mine in runs.items()},
    )
    links = {row.method: f"{slug(row.method)}.html" for row in board.rows}
    reproduced = {folder: f"../{folder}/index.html" for folder in tables}
    pages = {
        f"{each.folder}/index.html": page(
            "board.html.j2",
            root="../",
            title=each.folder,
            verdicts={folder: _verdicts(table) for folder, table in tables.items()},
            **board_page(plan, board, each.rows, store, found, links),
        )
    }
    report = board_report(board)
    for name, link in links.items():
        facts = each.rows.get(name, UNKNOWN)
        pairs = [on_pair(board, row, facts, found) for row in board.rows if row.method == name]
        published = judged(tables, reproduced, facts.method.id) if facts.method else []
        pages[f"{each.folder}/{link}"] = page(
            "method.html.j2",
            root="../",
            title=f"{name} on {each.folder}",
            name=name,
            board=board,
            folder=each.folder,
            facts=facts,
            pairs=pairs,
            published=published,
            notes=report.notes,
            tables=tables,
        )
    return pages
