"""A suite in one table for each student: the score of every row, its gain over the control, and the corrected test."""

from __future__ import annotations

from kdbench.results.analysis.board import Board
from kdbench.results.analysis.comparison import Compared
from kdbench.results.pages.comparison import p_text
from kdbench.results.pages.numbers import score_text
from kdbench.results.pages.report import Block, Column, Report

ARROW = " -> "


def brief_report(board: Board, compared: Compared) -> Report:
    """The rows of a board pair by pair, best first, with the p values of a comparison with its control.

    Args:
        board: of a suite.
        compared: the same suite's methods against its control.
    """
    tested = {(each.pair, each.method): each.p_holm for each in compared.comparisons if each.control == board.control}
    names = ["teacher", "row", board.metric.phrase, f"over {board.control}", "p Holm"]
    columns = [Column(name, left=index < 2, wraps=index == 0) for index, name in enumerate(names)]
    tables: dict[str, list[list[str]]] = {}
    for row in board.rows:
        teacher, _, student = row.pair.rpartition(ARROW)
        score = score_text(row.score, board.metric) or row.status
        gain = score_text(row.gain_control, board.metric, signed=True)
        texts = [teacher, row.method, score, gain, p_text(tested.get((row.pair, row.method)))]
        tables.setdefault(student, []).append(texts)
    points = ", in points" if board.metric.unit == "%" else ""
    notes = [
        f"Test {board.metric.name}, {board.shows} epoch, mean and 95 % interval (Student's t) over "
        f"{board.budget.seeds} seeds; gains are paired by seed{points}.",
        f"p Holm: paired t-test against {board.control}, corrected for the rows of each teacher (Holm 1979).",
    ]
    blocks = [Block(f"{board.suite}: student {student}", columns, rows) for student, rows in tables.items()]
    values = [dict(zip(names, row, strict=True)) for rows in tables.values() for row in rows]
    return Report(name="brief", title=board.suite, blocks=blocks, notes=notes, values={"rows": values})
