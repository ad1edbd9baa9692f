"""The leaderboard of a suite as a report."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from kdbench.results.analysis.board import Board, Row
from kdbench.results.analysis.statistics import LEVEL, Interval
from kdbench.results.pages.numbers import DIFFERS, UNMEASURED, count_text, latency_text, score_text, setting_text
from kdbench.results.pages.report import TIE, Block, Column, Report, Sheet

LATENCY = (
    "ms: of one sample, repeated after warming up, median ± half the distance of the quartiles; "
    f"{UNMEASURED} not measured, as the core was not quiet."
)


def board_report(board: Board) -> Report:
    """A table for each pair, best first; the best row and those that tie with it in bold."""
    rows = [_named(board, row) for row in board.rows]
    return Report(
        name="leaderboard",
        title=board.suite,
        blocks=[_block(board, *place) for place in dict.fromkeys((row.pair, row.given) for row in board.rows)],
        notes=_notes(board),
        sheet=_sheet(board),
        values=asdict(board) | {"metric": board.metric.model_dump(), "rows": rows},
    )


def columns_of(board: Board) -> list[str]:
    """The headings of a board's tables."""
    scores = [board.metric.name, f"over {board.control}", f"over {board.baseline}"]
    size = ["agree", "params", "ratio", "ms"]
    return ["method", *scores, *size, "trials", "samples", "epochs", "updates", "teacher fwd", "seconds"]


def _block(board: Board, pair: str, given: str) -> Block:
    rows = [row for row in board.rows if (row.pair, row.given) == (pair, given)]
    names = columns_of(board)
    columns = [Column(name, left=index < 2, wraps=index >= 4, needed=index < 3) for index, name in enumerate(names)]
    bold = frozenset(index for index, row in enumerate(rows) if row.score and (index == 0 or row.tied))
    reasons = [f"{row.method}: {row.status}: {row.reason}" for row in rows if row.reason]
    reasons += [f"{row.method}: {board.reasons[row.method]}" for row in rows if row.method in board.reasons]
    reasons += _chance(board, [row for row in rows if row.method not in board.reasons])
    title = f"{board.suite}: {pair}" + (f", given {given}" if given else "")
    return Block(title, columns, [_cells(board, row) for row in rows], bold, remarks=reasons)


def _chance(board: Board, rows: list[Row]) -> list[str]:
    """Says of the rows whose mean is below the control's by what may be chance, that it may."""
    losses = []
    for row in rows:
        gain, p_value = row.gain_control, row.p_control
        if gain and gain.mean < 0 and p_value is not None and p_value >= LEVEL:
            loss = score_text(Interval(-gain.mean, gain.half_width, gain.count), board.metric)
            losses.append(f"{row.method} by {loss} (p {p_value:.2f})")
    return [f"Below {board.control}, but not significantly, after correction: {', '.join(losses)}."] if losses else []


def _cells(board: Board, row: Row) -> list[str]:
    """A row as texts, by `columns_of`."""
    return [
        row.method,
        (score_text(row.score, board.metric) or row.status) + (f" {TIE}" if row.tied else ""),
        _gain(row.gain_control, row.p_control, board),
        _gain(row.gain_baseline, row.p_baseline, board),
        "" if row.agreement is None else f"{100 * row.agreement:.1f}",
        "" if row.parameters is None else count_text(row.parameters),
        "" if row.compression is None else f"{row.compression:.1f}x",
        latency_text(row.latency_ms, row.latency_spread_ms) if row.score else "",
        str(row.trials),
        "" if row.samples is None else str(row.samples),
        str(row.epochs),
        "" if row.updates is None else count_text(row.updates),
        count_text(row.teacher_forwards),
        f"{row.seconds:.1f}",
    ]


def _gain(value: Interval | None, p_value: float | None, board: Board) -> str:
    """A gain with its interval, marked if the corrected test finds it."""
    found = p_value is not None and p_value < LEVEL
    return score_text(value, board.metric, signed=True) + (f" {DIFFERS}" if found else "")


def _notes(board: Board) -> list[str]:
    budget, labels, metric = board.budget, board.labels, board.metric
    tuned = "its default setting, not tuned"
    if budget.trials > 1:
        tuned = f"{budget.trials} tuning trials on validation data alone"
    if budget.warm_from:
        tuned += f", one of them the best of {budget.warm_trials} that {budget.warm_from} made so before"
    lines = [
        f"Test {metric.phrase}, {board.shows} epoch, mean and 95 % interval (Student's t) over {budget.seeds} seeds; "
        f"gains are paired by seed{', in points' if metric.unit == '%' else ''}"
        f"{'.' if metric.higher_is_better else '; lower is better, and a gain is by how much it is lower.'}",
        f"{TIE} tied with the best: no other row beats it by comparisons with the best (Hsu 1984), paired by seed. "
        f"{DIFFERS} a gain or loss after correction for all rows of the table (paired t-tests, Holm 1979).",
        f"Every method: {tuned}, {budget.epochs} epochs a run.",
    ]
    if min(labels.student, labels.teacher) < 1:
        lines.append(
            f"Students are given {100 * labels.student:.3g} % of the training labels, "
            f"teachers were given {100 * labels.teacher:.3g} %."
        )
    if board.unlabelled_ratio:
        lines.append(
            f"Every batch has {board.batch_size} labelled images; of methods that are given others too, "
            f"{board.unlabelled_ratio:g} of those for each."
        )
    if any(row.given for row in board.rows):
        lines.append("Each seed has its own split, labels and teachers; the test part is one.")
    lines.append("samples: of the training set, unlabelled and synthetic ones among them.")
    if any(row.updates is not None for row in board.rows):
        lines.append("updates: of all networks that a run takes, its teachers' and peers' among them.")
    if any(row.score and (row.latency_spread_ms is not None or row.latency_ms is None) for row in board.rows):
        lines.append(LATENCY)
    if board.teachers:
        unit = f" {metric.unit}" if metric.unit else ""
        teachers = [f"{name} {score_text(value, metric)}{unit}" for name, value in board.teachers.items()]
        lines.append(f"Teachers: {', '.join(teachers)}.")
    if board.hardware:
        lines.append(f"Runs on {board.hardware}.")
    lines += [f"Left out, and made anew by the next sweep: {each}" for each in board.damaged]
    if board.done < board.expected:
        lines.append(f"Unfinished: {board.done} of {board.expected} runs.")
    return lines


def _names(board: Board) -> dict[str, str]:
    """The names under which a row's score and gains are written."""
    return {
        "score": board.metric.name,
        "gain_control": f"gain_{board.control}",
        "gain_baseline": f"gain_{board.baseline}",
    }


def _p_names(board: Board) -> dict[str, str]:
    """The names under which the p values of a row's gains are written."""
    return {"p_control": f"p_holm_{board.control}", "p_baseline": f"p_holm_{board.baseline}"}


def _named(board: Board, row: Row) -> dict[str, Any]:
    """A row as JSON values."""
    names = _names(board) | _p_names(board)
    return {names.get(field, field): value for field, value in asdict(row).items()}


def _sheet(board: Board) -> Sheet:
    """Plain numbers, a line for each method and pair; the half-widths of intervals are the last columns."""
    names = _names(board)
    columns = [(names | _p_names(board)).get(each.name, each.name) for each in fields(Row)]
    rows = []
    for row in board.rows:
        numbers = _named(board, row) | {"setting": setting_text(row.setting)}
        for field, name in names.items():
            value: Interval | None = getattr(row, field)
            numbers |= {name: value and value.mean, f"{name}_half_width": value and value.half_width}
        rows.append(numbers)
    return Sheet([*columns, *(f"{name}_half_width" for name in names.values())], rows)
