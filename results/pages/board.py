"""Boards as text: terminal, markdown, LaTeX, CSV, and plain values for JSON and MLflow."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pandas as pd

from results.analysis.leaderboard import Board, Row
from results.analysis.statistics import Interval
from results.pages.rendering import TIE, Block, Column, check_form, render_blocks


def render(board: Board, form: str, width: int | None = None) -> str:
    """A board as text.

    Args:
        board: what to print.
        form: terminal, markdown, latex or csv.
        width: columns of the terminal.

    Raises:
        InputError: for an unknown form.
    """
    check_form(form)
    if form == "csv":
        return frame(board).to_csv(index=False)
    return render_blocks(
        (_block(board, pair, rows) for pair, rows in _by_pair(board).items()), notes(board), form, width
    )


def frame(board: Board) -> pd.DataFrame:
    """Plain numbers, a row for each method and pair; accuracies as shares."""
    records = []
    for row in board.rows:
        record = asdict(row)
        for name in ("accuracy", "gain_student", "gain_kd"):
            value: Interval | None = getattr(row, name)
            record[name] = value.mean if value else math.nan
            record[f"{name}_half_width"] = value.half_width if value and value.half_width is not None else math.nan
        record["setting"] = ", ".join(f"{key}={_number(value)}" for key, value in row.setting.items())
        records.append(record)
    return pd.DataFrame(records)


def display(board: Board) -> pd.DataFrame:
    """The board as text cells, a row for each method and pair."""
    return pd.DataFrame([[row.pair, *cells(row)] for row in board.rows], columns=["pair", *COLUMNS])


def plain(board: Board) -> dict[str, Any]:
    """The board as JSON values."""
    return asdict(board)


def notes(board: Board) -> list[str]:
    """What a reader must know to judge the table."""
    budget = board.budget
    trials = budget["trials"]
    tuned = f"{trials} tuning trials on validation data alone" if trials > 1 else "its default setting, not tuned"
    teachers = {name: f"{100 * value:.1f} %" for name, value in board.teachers.items()}
    lines = [
        f"Test accuracy in %, {board.shows} epoch, mean and 95 % interval (Student's t) over {budget['seeds']} seeds; "
        "gains are paired by seed, in points.",
        f"{TIE} tied with the best row: the 95 % interval of the paired difference includes zero.",
        f"Every method: {tuned}, {budget['epochs']} epochs a run.",
    ]
    shares = board.labels
    if min(shares.values()) < 1:
        lines.append(
            f"Students are given {100 * shares['student']:.3g} % of the training labels, "
            f"teachers were given {100 * shares['teacher']:.3g} %."
        )
    lines.append("images: of the training set, unlabelled and synthetic ones among them.")
    if teachers:
        lines.append("Teachers: " + ", ".join(f"{name} {value}" for name, value in teachers.items()) + ".")
    if board.hardware:
        lines.append(f"Runs on {board.hardware}.")
    if board.done < board.expected:
        lines.append(f"Unfinished: {board.done} of {board.expected} runs.")
    return lines


COLUMNS = (
    "method",
    "accuracy",
    "over student",
    "over kd",
    "agree",
    "params",
    "ratio",
    "ms",
    "trials",
    "images",
    "epochs",
    "teacher fwd",
    "seconds",
)
LEFT = COLUMNS[:2]


def cells(row: Row) -> list[str]:
    """A row as text, by COLUMNS."""
    accuracy = _percent(row.accuracy, sign=False) if row.accuracy else f"{row.status}"
    return [
        row.method,
        accuracy + (f" {TIE}" if row.tied else ""),
        _percent(row.gain_student),
        _percent(row.gain_kd),
        "" if row.agreement is None else f"{100 * row.agreement:.1f}",
        "" if row.parameters is None else _count(row.parameters),
        "" if row.compression is None else f"{row.compression:.1f}x",
        "" if row.latency_ms is None else f"{row.latency_ms:.2f}",
        str(row.trials),
        "" if row.images is None else str(row.images),
        str(row.epochs),
        _count(row.teacher_forwards),
        f"{row.seconds:.1f}",
    ]


def _block(board: Board, pair: str, rows: list[Row]) -> Block:
    """A pair; the best and what ties with it in bold."""
    columns = [Column(name, left=name in LEFT, wraps=not (name in LEFT or name.startswith("over"))) for name in COLUMNS]
    bold = frozenset(index for index, row in enumerate(rows) if row.accuracy and (index == 0 or row.tied))
    reasons = [f"{row.method}: {row.status}: {row.reason}" for row in rows if row.reason]
    return Block(f"{board.suite}: {pair}", columns, [cells(row) for row in rows], bold, remarks=reasons)


def _by_pair(board: Board) -> dict[str, list[Row]]:
    pairs: dict[str, list[Row]] = {}
    for row in board.rows:
        pairs.setdefault(row.pair, []).append(row)
    return pairs


def _percent(value: Interval | None, sign: bool = True) -> str:
    if value is None:
        return ""
    mean = f"{100 * value.mean:{'+' if sign else ''}.1f}"
    return mean if value.half_width is None else f"{mean} ± {100 * value.half_width:.1f}"


def _count(value: int) -> str:
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{suffix}"
    return str(value)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
