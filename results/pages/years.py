"""A suite's methods by the years of their papers, as a report."""

from __future__ import annotations

from dataclasses import asdict

from kdbench.results.analysis.statistics import LEVEL
from kdbench.results.analysis.years import DECADE, Trend, Trends
from kdbench.results.pages.comparison import p_text
from kdbench.results.pages.numbers import DIFFERS, score_text
from kdbench.results.pages.report import Block, Column, Report


def years_report(trends: Trends) -> Report:
    """A table for each pair, the earliest paper first, with what the years foretell below it."""
    points = "points of test" if trends.metric.unit == "%" else "test"
    notes = [
        f"Gains over the baseline in {points} {trends.metric.name}, {trends.shows} epoch, paired by seed; mean and "
        "95 % interval (Student's t). Only rows that are given what the baseline is given.",
        f"p Holm: paired t-test, corrected for the rows of its table (Holm 1979); {DIFFERS} below {LEVEL}.",
        "Slope and tau are means over seeds with 95 % intervals: they hold for these methods, networks and data. "
        "p deals the years out anew among the methods: it asks whether others would show the same.",
    ]
    return Report(
        name="years",
        title=trends.suite,
        blocks=[_block(trends, each) for each in trends.pairs],
        notes=notes,
        values=asdict(trends) | {"metric": trends.metric.model_dump()},
    )


def _block(trends: Trends, trend: Trend) -> Block:
    columns = [Column("year"), Column("row", left=True), Column(f"over {trend.baseline}"), Column("p Holm")]
    rows = []
    for row in trend.rows:
        marked = f" {DIFFERS}" if row.p_holm is not None and row.p_holm < LEVEL else ""
        gain = score_text(row.gain, trends.metric, signed=True)
        rows.append([str(row.year), row.method, gain, p_text(row.p_holm) + marked])
    where = f", given {trend.given}" if trend.given else ""
    return Block(f"{trends.suite}: {trend.pair}{where}", columns, rows, remarks=_remarks(trends, trend))


def _remarks(trends: Trends, trend: Trend) -> list[str]:
    if trend.slope is None or trend.p is None:
        return ["Too few methods or years to ask whether later ones are better."]
    unit = "points" if trends.metric.unit == "%" else trends.metric.name
    text = f"Slope {score_text(trend.slope, trends.metric, signed=True)} {unit} in {DECADE} years"
    if trend.tau:
        spread = "" if trend.tau.tau.half_width is None else f" ± {trend.tau.tau.half_width:.2f}"
        text += f"; Kendall's tau with the year {trend.tau.tau.mean:+.2f}{spread}"
    return [f"{text}; p {'< 0.001' if trend.p < 0.001 else f'= {trend.p:.3f}'} over {len(trend.rows)} methods."]
