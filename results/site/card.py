"""A card for each row of a board: where it comes from, what it scored and cost, and how its setting was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.bench.record import Metric
from kdbench.results.analysis.board import Board, Row
from kdbench.results.analysis.reproduction import Reproduction
from kdbench.results.analysis.statistics import Interval
from kdbench.results.analysis.training import Confusion
from kdbench.results.analysis.tried import Trial
from kdbench.results.pages.numbers import NOT_MEASURED, latency_text, printed, score_text
from kdbench.results.site import charts, tuning_charts
from kdbench.results.site.charts import Spec
from kdbench.results.site.facts import RowFacts, TuningFacts
from kdbench.results.site.matrices import Shares, shares_of
from kdbench.results.site.tables import gain_cell

NO_TUNING = TuningFacts()


@dataclass(frozen=True)
class Found:
    """What the store has of a board's rows, by pair and row."""

    trials: Mapping[tuple[str, str], list[Trial]]
    curves: Mapping[tuple[str, str], Mapping[int, Interval]]
    confusions: Mapping[tuple[str, str], Confusion | None]


@dataclass(frozen=True)
class Hyperparameter:
    """A line of the card's table."""

    name: str
    default: str
    searched: str
    chosen: str


@dataclass(frozen=True)
class OnPair:
    """A row on one pair."""

    row: Row
    facts: list[tuple[str, str]]
    """What it scored and cost, in words."""
    hyperparameters: list[Hyperparameter]
    tried: str
    """How many trials there were, in words."""
    over: list[Spec]
    parallel: Spec | None
    importance: list[tuple[str, Spec | None]]
    """What is said of each study's, and its chart if there are trials enough."""
    curve: Spec | None
    confusion: list[Shares]


@dataclass(frozen=True)
class Judged:
    """A published number of the method beside ours."""

    table: str
    link: str
    row: str
    published: str
    ours: str
    verdict: str


def on_pair(board: Board, row: Row, facts: RowFacts, found: Found) -> OnPair:
    """All that is shown of a row on a pair."""
    place = (row.pair, row.method)
    trials, tuning = found.trials.get(place, []), facts.tuning.get(row.pair, NO_TUNING)
    searched = tuning_charts.searched_in([trial for trial in trials if trial.score is not None], tuning.searched)
    scored = [trial for trial in trials if trial.score is not None]
    confusion = found.confusions.get(place)
    return OnPair(
        row=row,
        facts=_facts(board, row),
        hyperparameters=_hyperparameters(row, facts, tuning),
        tried=_tried(trials, board.metric),
        over=[tuning_charts.over(trials, each, board.metric) for each in searched],
        parallel=tuning_charts.parallel(trials, searched, board.metric)
        if len(searched) > 1 and len(scored) > 2
        else None,
        importance=[
            (_said(each), tuning_charts.importance(each.shares) if each.shares else None) for each in tuning.importance
        ],
        curve=_curve(board, row, found),
        confusion=shares_of(confusion) if confusion else [],
    )


def _facts(board: Board, row: Row) -> list[tuple[str, str]]:
    metric = board.metric
    values = [
        (f"test {metric.phrase}", score_text(row.score, metric) or f"{row.status} {row.reason}".strip()),
        (f"gain over {board.control}", gain_cell(row.gain_control, row.p_control, metric).text),
        (f"gain over {board.baseline}", gain_cell(row.gain_baseline, row.p_baseline, metric).text),
        ("agrees with its teacher", "" if row.agreement is None else f"{100 * row.agreement:.1f} %"),
        ("parameters", "" if row.parameters is None else f"{row.parameters:,}"),
        ("teacher is larger", "" if row.compression is None else f"{row.compression:.1f} times"),
        ("one sample takes", _latency(row)),
        ("tuning trials", str(row.trials)),
        ("samples", "" if row.samples is None else f"{row.samples:,}"),
        ("epochs of a run", str(row.epochs)),
        ("updates of a run", "" if row.updates is None else f"{row.updates:,}"),
        ("teacher forwards", f"{row.teacher_forwards:,}"),
        ("training time", f"{row.seconds:,.1f} s over all trials and seeds"),
    ]
    return [(name, text) for name, text in values if text]


def _latency(row: Row) -> str:
    if row.score is None:
        return ""
    return NOT_MEASURED if row.latency_ms is None else f"{latency_text(row.latency_ms, row.latency_spread_ms)} ms"


def _hyperparameters(row: Row, facts: RowFacts, tuning: TuningFacts) -> list[Hyperparameter]:
    """Those of the method, then what is searched of the recipe and of compositions."""
    searched = {each.name: str(each) for each in tuning.searched}
    defaults = {each.name: each.default for each in facts.method.hyperparameters} if facts.method else {}
    lines = []
    for name in dict.fromkeys([*defaults, *searched, *facts.fixed, *row.setting]):
        if name == "method":
            continue
        value = row.setting.get(name, facts.fixed.get(name, defaults.get(name)))
        fixed = "fixed by the suite" if name in facts.fixed else "fixed" if tuning.searched else ""
        lines.append(Hyperparameter(name, _text(defaults.get(name)), searched.get(name, fixed), _text(value)))
    return lines


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _tried(trials: Sequence[Trial], metric: Metric) -> str:
    """How many trials each study had, and what the best was worth."""
    texts = []
    for suite in dict.fromkeys(trial.suite for trial in trials):
        mine = [trial for trial in trials if trial.suite == suite]
        complete = [trial.score for trial in mine if trial.status == "complete" and trial.score is not None]
        counts = {name: sum(trial.status == name for trial in mine) for name in ("complete", "pruned", "no result")}
        said = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        best = (
            f", the best {printed(metric.sign * max(metric.sign * each for each in complete), metric)}"
            if complete
            else ""
        )
        texts.append(f"{suite}: {len(mine)} trials ({said}){best}.")
    return " ".join(texts)


def _said(importance: Any) -> str:
    """What is said of a study's importance."""
    if importance.shares:
        return f"{importance.suite}: fANOVA over {importance.complete} complete trials."
    why = f"it takes {importance.needed} complete trials"
    why = why if importance.complete < importance.needed else "all of them scored alike, or nothing was searched"
    return f"{importance.suite}: {importance.complete} complete trials; importance is not shown, as {why}."


def _curve(board: Board, row: Row, found: Found) -> Spec | None:
    """Its curve, and those of the control and the baseline on the pair."""
    names = list(dict.fromkeys((row.method, board.control, board.baseline)))
    lines = {name: found.curves[row.pair, name] for name in names if found.curves.get((row.pair, name))}
    longest = max((max(line) for line in lines.values()), default=0)
    stride = max(1, longest // 30)
    return charts.curves(lines, board.metric, bands=True, stride=stride) if row.method in lines else None


def judged(tables: Mapping[str, Reproduction], links: Mapping[str, str], method: str) -> list[Judged]:
    """The published numbers of a method, or of sums with it, that were run here."""
    found = []
    for name, table in tables.items():
        for row in table.rows:
            theirs = row.wanted.published
            if theirs and method in theirs.method.split("+") and row.value is not None:
                ours = f"{row.value:.4g}" + (
                    "" if not row.interval or row.interval.half_width is None else f" ± {row.interval.half_width:.2g}"
                )
                what = f"{row.wanted.label}, {row.wanted.metric.replace('_', ' ')}"
                found.append(Judged(name, links[name], what, f"{theirs.value:g}", ours, str(row.judgement)))
    return found
