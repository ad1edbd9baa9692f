"""The charts of a board, of data frames: Vega-Lite as JSON values, drawn by the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from kdbench.bench.record import Metric
from kdbench.results.analysis.board import Board, Row
from kdbench.results.analysis.reproduction import Reproduction
from kdbench.results.analysis.statistics import Interval, Ranking
from kdbench.results.pages.published_plot import MEASURES

Spec = dict[str, Any]
"""A chart as Vega-Lite has it, without colours of text and axes: the page's style sheet says them."""
COLOURS = ["#3a7bd5", "#c8642b", "#2c9a6c", "#a65cc2", "#8a8f98"]
"""That are told apart on a light and on a dark ground; a shape or a dash tells the same."""


def spec(chart: Any, description: str, height: int = 280) -> Spec:
    """A chart as JSON values, as wide as its place, numbers in five digits.

    Args:
        chart: of Altair.
        description: what a reader who does not see it is told.
        height: of the plot, in pixels.
    """
    whole = chart.properties(width="container", height=height, description=description)
    values: Spec = whole.to_dict(validate=False)
    return {name: _short(value) for name, value in values.items() if name not in ("$schema", "config")}


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _short(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_short(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def against(board: Board, pair: str, field: str, title: str) -> Spec:
    """The score over a cost of each row of a pair, on a logarithmic axis; those that nothing cheaper beats are named.

    Args:
        board: the rows.
        pair: whose.
        field: of a row, the cost.
        title: of the axis.
    """
    rows = [row for row in board.rows if row.pair == pair and row.score and getattr(row, field)]
    front = {row.method for row in rows if not _beaten(row, rows, field, board.metric.sign)}
    points = [
        {**_ends(row.score, board.metric), "cost": getattr(row, field), "row": row.method}
        | {"given": row.given or "all the same", "name": row.method if row.method in front else ""}
        for row in rows
    ]
    return _scores_over(points, board, title, f"{board.metric.phrase} over {title} of {len(rows)} rows on {pair}")


def against_size(board: Board, pair: str) -> Spec:
    """The score over the number of parameters of each row of a pair, and of its first teacher."""
    rows = [row for row in board.rows if row.pair == pair and row.score and row.parameters]
    points = [
        {**_ends(row.score, board.metric), "cost": row.parameters, "row": row.method}
        | {"given": row.given or "all the same", "name": ""}
        for row in rows
    ]
    known = next((row for row in rows if row.compression and row.parameters), None)
    first = pair.split(" -> ")[0].split(" + ")[0]
    if known and known.parameters and known.compression and (teacher := board.teachers.get(first)):
        size = round(known.parameters * known.compression)
        points.append({**_ends(teacher, board.metric), "cost": size, "row": first, "given": "a teacher", "name": first})
    told = f"{board.metric.phrase} over parameters of {len(points)} networks of {pair}"
    return _scores_over(points, board, "parameters", told)


def _beaten(row: Row, rows: Sequence[Row], field: str, sign: int) -> bool:
    """Whether another row is at least as good at no more cost, and better in one of the two."""
    assert row.score
    mine = (-sign * row.score.mean, getattr(row, field))
    theirs = [(-sign * other.score.mean, getattr(other, field)) for other in rows if other.score]
    return any(each != mine and each[0] <= mine[0] and each[1] <= mine[1] for each in theirs)


def _ends(score: Interval | None, metric: Metric) -> Spec:
    assert score
    mean, half = metric.factor * score.mean, metric.factor * (score.half_width or 0.0)
    return {"score": mean, "low": mean - half, "high": mean + half}


def _scores_over(points: Sequence[Spec], board: Board, title: str, told: str) -> Spec:
    groups = [*dict.fromkeys(row.given or "all the same" for row in board.rows), "a teacher"]
    groups = [group for group in groups if any(point["given"] == group for point in points)]
    costs = [point["cost"] for point in points]
    room = max(max(costs) / min(costs), 1.5)
    scale = alt.Scale(type="log", nice=False, domain=[min(costs) / room**0.05, max(costs) * room**0.5])
    x = alt.X("cost:Q", title=title, scale=scale, axis=alt.Axis(tickCount=4, labelSeparation=6))
    base = alt.Chart(pd.DataFrame(points)).encode(x=x)
    axis = alt.Y("score:Q", title=board.metric.phrase, scale=alt.Scale(zero=False))
    legend = alt.Legend(orient="bottom", symbolOpacity=1)
    colours = alt.Scale(domain=groups, range=COLOURS[: len(groups)])
    colour = alt.Color("given:N", title="given", scale=colours, legend=legend)
    shape = alt.Shape("given:N", title="given", scale=alt.Scale(domain=groups), legend=legend)
    shown = [alt.Tooltip(f"{name}:N" if name in ("row", "given") else f"{name}:Q") for name in ("row", "given")]
    shown += [alt.Tooltip("score:Q", format=".4~g"), alt.Tooltip("cost:Q", title=title, format=",.4~g")]
    rules = base.mark_rule(opacity=0.35, aria=False).encode(
        y=alt.Y("low:Q", title=board.metric.phrase, scale=alt.Scale(zero=False)), y2="high:Q", color=colour
    )
    dots = base.mark_point(filled=True, size=70).encode(y=axis, color=colour, shape=shape, tooltip=shown)
    names = base.mark_text(align="left", dx=7, dy=-6, fontSize=11, aria=False).encode(y=axis, text="name:N")
    return spec(rules + dots + names, told)


def ranks(ranking: Ranking, noun: str = "method") -> Spec:
    """Mean ranks, each with half of the critical difference at both sides: bars that overlap are not told apart."""
    half = ranking.critical_difference / 2
    frame = pd.DataFrame(
        {"row": name, "rank": rank, "low": rank - half, "high": rank + half} for name, rank in ranking.ranks.items()
    )
    names = alt.Y("row:N", sort=list(ranking.ranks), title=None)
    base = alt.Chart(frame).encode(y=names)
    axis = alt.Axis(orient="top", tickCount=8)
    shown = [alt.Tooltip("row:N", title=noun), alt.Tooltip("rank:Q", format=".2f")]
    bars = base.mark_rule(strokeWidth=5, opacity=0.35, color=COLOURS[0], aria=False).encode(
        x=alt.X("low:Q", title="mean rank, 1 is best", axis=axis), x2="high:Q"
    )
    dots = base.mark_point(filled=True, size=60, color=COLOURS[0]).encode(x="rank:Q", tooltip=shown)
    told = f"mean ranks of {len(ranking.ranks)} {noun}s over {ranking.blocks} blocks, best first"
    return spec(bars + dots, told, 18 * len(ranking.ranks) + 10)


def curves(found: Mapping[str, Mapping[int, Interval]], metric: Metric, bands: bool, stride: int = 1) -> Spec:
    """Validation scores over epochs.

    Args:
        found: by line, after each epoch.
        metric: of the scores.
        bands: whether intervals are drawn; without them the lines are many, and one is picked by its name.
        stride: epochs between points; the last is always there.
    """
    points = [
        {"line": name, "epoch": epoch, **_ends(each, metric)} | ({} if bands else {"low": None, "high": None})
        for name, line in found.items()
        for epoch, each in line.items()
        if epoch % stride == 0 or epoch in (1, max(line))
    ]
    frame = pd.DataFrame(points)
    y = alt.Y("score:Q", title=f"validation {metric.phrase}", scale=alt.Scale(zero=False))
    base = alt.Chart(frame if bands else frame.drop(columns=["low", "high"])).encode(
        x=alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickCount=8, tickMinStep=1))
    )
    told = f"validation {metric.phrase} over epochs of {', '.join(found)}"
    if not bands:
        pick = alt.selection_point(
            name="picked",
            fields=["line"],
            bind=alt.binding_select(options=list(found), name="row shown: "),
            value=next(iter(found)),
        )
        lines = base.mark_line(strokeWidth=1.2, aria=False).encode(
            y=y, detail="line:N", color=alt.value(COLOURS[4]), opacity=alt.value(0.45)
        )
        chosen = base.mark_line(strokeWidth=3, color=COLOURS[1]).encode(
            y=y, detail="line:N", tooltip=["line:N", "epoch:Q", "score:Q"]
        )
        return spec(lines.add_params(pick) + chosen.transform_filter(pick), told)
    order = list(found)
    scale = alt.Scale(domain=order, range=[COLOURS[1], COLOURS[0], COLOURS[2]][: len(order)])
    legend = alt.Legend(orient="bottom", symbolOpacity=1)
    colour = alt.Color("line:N", title=None, scale=scale, legend=legend)
    band = base.mark_area(opacity=0.15, aria=False).encode(
        y=alt.Y("low:Q", title=f"validation {metric.phrase}", scale=alt.Scale(zero=False)), y2="high:Q", color=colour
    )
    lines = base.mark_line(strokeWidth=2).encode(
        y=y, color=colour, strokeDash=alt.StrokeDash("line:N", title=None, scale=alt.Scale(domain=order), legend=legend)
    )
    return spec(band + lines, told, 240)


def published(table: Reproduction, measure: str) -> Spec:
    """A paper's numbers of one measure against ours, with both spreads; the line is where they are equal."""
    points: list[Spec] = []
    for row in table.rows:
        theirs = row.wanted.published
        if theirs and row.value is not None and row.wanted.metric == measure:
            half = (row.interval.half_width if row.interval else None) or 0.0
            point = {"row": row.wanted.label, "published": theirs.value, "ours": row.value}
            points.append(point | {"low": row.value - half, "high": row.value + half, "verdict": row.judgement.verdict})
    ends = [value for each in points for value in (each["published"], each["low"], each["high"])]
    line = alt.Chart(pd.DataFrame({"published": [min(ends), max(ends)], "ours": [min(ends), max(ends)]}))
    name = MEASURES.get(measure, measure)
    zero = alt.Scale(zero=False)
    base = alt.Chart(pd.DataFrame(points)).encode(
        x=alt.X("published:Q", title=f"published, {name}", scale=zero, axis=alt.Axis(tickCount=6))
    )
    legend = alt.Legend(orient="bottom", symbolOpacity=1)
    verdicts = list(dict.fromkeys(each["verdict"] for each in points))
    colours = alt.Scale(domain=verdicts, range=COLOURS[: len(verdicts)])
    colour = alt.Color("verdict:N", title="verdict", scale=colours, legend=legend)
    shape = alt.Shape("verdict:N", title="verdict", scale=alt.Scale(domain=verdicts), legend=legend)
    rules = base.mark_rule(aria=False).encode(
        y=alt.Y("low:Q", scale=zero, title=f"ours, {name}"), y2="high:Q", color=colour
    )
    shown = ["row:N", "published:Q", "ours:Q", "verdict:N"]
    y = alt.Y("ours:Q", scale=zero, title=f"ours, {name}")
    dots = base.mark_point(filled=True, size=80).encode(y=y, color=colour, shape=shape, tooltip=shown)
    equal = line.mark_line(strokeWidth=1, strokeDash=[4, 4], color=COLOURS[4], aria=False).encode(
        x=alt.X("published:Q", scale=zero), y=alt.Y("ours:Q", scale=zero)
    )
    return spec(equal + rules + dots, f"{name} of {table.table}: published against ours, {len(points)} numbers")
