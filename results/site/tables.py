"""Tables of the site as plain values: columns that sort, rows that are filtered, cells of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdbench.bench.record import Metric
from kdbench.results.analysis.board import Board, Row
from kdbench.results.analysis.statistics import LEVEL, Interval
from kdbench.results.pages.numbers import DIFFERS, count_text, latency_text, score_text
from kdbench.results.pages.report import TIE
from kdbench.results.site.facts import RowFacts

FILTERS = {
    "board": "board",
    "data": "data",
    "pair": "pair",
    "given": "given",
    "kind": "kind of knowledge",
    "year": "year",
}
"""By what rows are filtered, with the words of the page."""


@dataclass(frozen=True)
class Head:
    """A column."""

    key: str
    """Names it in the address of the page."""
    title: str
    number: bool = False
    """Whether it is sorted by number, the largest first."""
    about: str = ""
    """What it means, if the title does not say."""


@dataclass(frozen=True)
class Cell:
    """A text, and the number that it is sorted by if that is another."""

    text: str
    value: float | None = None
    link: str = ""
    bold: bool = False


@dataclass(frozen=True)
class Line:
    """A row: its cells, and what it is filtered by."""

    cells: Sequence[Cell]
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sortable:
    """A table that is sorted and filtered."""

    heads: Sequence[Head]
    lines: Sequence[Line]
    caption: str

    def choices(self) -> dict[str, list[str]]:
        """What can be chosen of each filter that tells rows apart."""
        found = {
            name: list(dict.fromkeys(line.tags[name] for line in self.lines if name in line.tags)) for name in FILTERS
        }
        for name in ("kind", "year"):
            found[name] = sorted(found[name])
        return {name: values for name, values in found.items() if len(values) > 1}


def board_table(board: Board, facts: Mapping[str, RowFacts], data: str, links: Mapping[str, str]) -> Sortable:
    """A board's rows, pair by pair and group by group, best first.

    Args:
        board: of a suite.
        facts: by row.
        data: the name of its data.
        links: the page of each row.
    """
    control, baseline = f"over {board.control}", f"over {board.baseline}"
    heads = [
        Head("method", "method"),
        Head("pair", "pair"),
        Head("given", "given"),
        Head("kind", "kind", about="kind of knowledge that is transferred"),
        Head("year", "year", number=True, about="of the paper"),
        Head("score", board.metric.phrase, number=True, about="test part, mean ± 95 % interval over seeds"),
        Head("control", control, number=True, about=f"gain {control}, paired by seed"),
        Head("baseline", baseline, number=True, about=f"gain {baseline} of the group, paired by seed"),
        Head("agree", "agree %", number=True, about="test decisions that student and teacher make alike"),
        Head("params", "params", number=True, about="parameters of the student"),
        Head("ratio", "ratio", number=True, about="how many times more parameters the teacher has"),
        Head("ms", "ms", number=True, about="time for one sample as deployed, on a quiet core"),
        Head("samples", "samples", number=True, about="samples that a run trains on"),
        Head("updates", "updates", number=True, about="of all networks that one run takes"),
        Head("forwards", "teacher fwd", number=True, about="samples that teachers were run on"),
        Head("seconds", "seconds", number=True, about="training time of all trials and seeds"),
    ]
    leads: dict[tuple[str, str], str] = {}
    for row in board.rows:
        leads.setdefault((row.pair, row.given), row.method)
    lines = []
    for row in board.rows:
        best = bool(row.score) and (row.tied or leads[row.pair, row.given] == row.method)
        lines.append(Line(_cells(board, row, facts.get(row.method), links, best), tags_of(row, facts, data)))
    return Sortable(heads, lines, f"{board.suite}: every row, best of its group first")


def tags_of(row: Row, facts: Mapping[str, RowFacts], data: str) -> dict[str, str]:
    """What a row is filtered by."""
    method = facts[row.method].method if row.method in facts else None
    own = {"kind": method.knowledge, "year": str(method.paper.year)} if method else {}
    return {"data": data, "pair": row.pair, "given": row.given or "all the same", **own}


def _cells(board: Board, row: Row, facts: RowFacts | None, links: Mapping[str, str], best: bool) -> list[Cell]:
    method, metric = facts.method if facts else None, board.metric
    why = f"{row.status}: {row.reason}" if row.reason else row.status
    score = score_text(row.score, metric) + (f" {TIE}" if row.tied else "")
    return [
        Cell(row.method, link=links[row.method]),
        Cell(row.pair),
        Cell(row.given or "all the same"),
        Cell(method.knowledge if method else ""),
        Cell(str(method.paper.year), method.paper.year) if method else Cell(""),
        Cell(score, row.score.mean, bold=best) if row.score else Cell(why),
        gain_cell(row.gain_control, row.p_control, metric),
        gain_cell(row.gain_baseline, row.p_baseline, metric),
        _number(row.agreement, lambda value: f"{100 * value:.1f}"),
        _number(row.parameters, count_text),
        _number(row.compression, lambda value: f"{value:.1f}x"),
        Cell(latency_text(row.latency_ms, row.latency_spread_ms) if row.score else "", row.latency_ms),
        _number(row.samples, str),
        _number(row.updates, count_text),
        _number(row.teacher_forwards, count_text),
        _number(row.seconds, lambda value: f"{value:.1f}"),
    ]


def _number(value: Any, text: Any) -> Cell:
    return Cell("") if value is None else Cell(text(value), value)


def gain_cell(gain: Interval | None, p_value: float | None, metric: Metric) -> Cell:
    """A gain, marked where the corrected test finds it."""
    found = p_value is not None and p_value < LEVEL
    text = score_text(gain, metric, signed=True) + (f" {DIFFERS}" if found else "")
    return Cell(text, gain.mean) if gain else Cell("")
