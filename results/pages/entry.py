"""Accepted entries as a report: a table for each protocol, pair and what methods are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from kdbench.bench.record import Metric
from kdbench.results.analysis.entry import EntryRow
from kdbench.results.analysis.statistics import LEVEL
from kdbench.results.pages.numbers import DIFFERS, count_text, score_text
from kdbench.results.pages.report import Block, Column, Report


@dataclass(frozen=True)
class ProtocolRows:
    """The entries of one protocol."""

    suite: str
    """NAME@HASH."""
    metric: Metric
    control: str
    shows: str
    rows: list[EntryRow]


def entries_report(protocols: Sequence[ProtocolRows]) -> Report:
    """A table for each protocol, pair and what methods are given, so that all rows of a table can be compared."""
    blocks = []
    for each in protocols:
        for pair, given in dict.fromkeys((row.pair, row.given) for row in each.rows):
            rows = [row for row in each.rows if (row.pair, row.given) == (pair, given)]
            blocks.append(_block(each, f"{each.suite}: {pair}" + (f", given {given}" if given else ""), rows))
    notes = [
        "Mean and 95 % interval (Student's t) over seeds; gains are paired by seed, in points of a metric in %.",
        f"{DIFFERS} a gain or loss after correction for the entries of the table (paired t-tests, Holm 1979); p is "
        "that over tuned KD.",
        "seconds: training of all trials and seeds. teacher fwd: samples that teachers were run on for them. extra "
        "params: that are deployed beyond the control's. train params: that training takes beyond those deployed "
        "(teachers, peers, modules of the method). peak MB: most bytes of tensors within an update. Both are empty "
        "where records are older.",
        "agree and KL: with the teacher's decisions and probabilities. ECE: expected calibration error. val - test: "
        "how far the validation score is above the test score.",
    ]
    if any(row.rank is not None for each in protocols for row in each.rows):
        notes.append("rank: mean over the pairs that entries, control and baseline share; 1 is the best.")
    values = {"protocols": [{"suite": each.suite, "rows": [asdict(row) for row in each.rows]} for each in protocols]}
    return Report(name="entries", title="entries", blocks=blocks, notes=notes, values=values)


def _block(protocol: ProtocolRows, title: str, rows: list[EntryRow]) -> Block:
    cost = ["seconds", "teacher fwd", "extra params", "train params", "peak MB"]
    fidelity = ["agree", "KL", "ECE", "val - test"]
    baseline = rows[0].baseline
    gains = [f"over {protocol.control}", f"over {baseline}", "p"]
    ranks = ["rank"] if any(row.rank is not None for row in rows) else []
    names = ["method", protocol.metric.name, *gains, *ranks, *cost, *fidelity, "seeds"]
    columns = [Column(name, left=index < 2, wraps=index >= 5) for index, name in enumerate(names)]
    return Block(title, columns, [_cells(protocol.metric, row, bool(ranks)) for row in rows])


def _cells(metric: Metric, row: EntryRow, ranked: bool) -> list[str]:
    def gain(value: object, p_value: float | None) -> str:
        return f"{value} {DIFFERS}" if value and p_value is not None and p_value < LEVEL else str(value)

    return [
        row.method,
        score_text(row.score, metric),
        gain(score_text(row.gain_control, metric, signed=True), row.p_control),
        gain(score_text(row.gain_baseline, metric, signed=True), row.p_baseline),
        _number(row.p_baseline, "{:.3f}"),
        *([_number(row.rank, "{:.1f}")] if ranked else []),
        f"{row.seconds:.1f}",
        count_text(row.teacher_forwards),
        "" if row.extra_parameters is None else count_text(row.extra_parameters),
        "" if row.training_parameters is None else count_text(row.training_parameters),
        "" if row.peak_memory is None else f"{row.peak_memory / 1e6:.3g}",
        _number(row.agreement and 100 * row.agreement, "{:.1f}"),
        _number(row.teacher_kl, "{:.3f}"),
        _number(row.calibration_error, "{:.3f}"),
        score_text(row.gap, metric, signed=True),
        str(row.seeds),
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
