"""A picture of a reproduced table: the published numbers against ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdbench.bench.errors import InputError
from kdbench.results.analysis.reproduced import Reproduced
from kdbench.results.analysis.reproduction import Reproduction
from kdbench.results.pages.pictures import figure_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEASURES = {
    "accuracy_top1": "accuracy %",
    "accuracy_top5": "top-5 accuracy %",
    "error_top1": "error %",
    "error_top5": "top-5 error %",
    "test_errors": "errors",
    "test_errors_digit3": "errors on 3s",
}


def plot(table: Reproduction, form: str) -> bytes:
    """Published against ours, a panel for each measure, as a file.

    Raises:
        InputError: for an unknown form, or if there is no number to compare yet.
    """
    from matplotlib.figure import Figure

    drawn = [row for row in table.rows if row.value is not None and row.wanted.published]
    if not drawn:
        raise InputError(f"there is nothing to plot: no published number of {table.table} has been run yet.")
    measures = list(dict.fromkeys(row.wanted.metric for row in drawn))
    figure = Figure(figsize=(6.5 * len(measures), 5.5), layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        rows = [row for row in drawn if row.wanted.metric == measure]
        for pair in dict.fromkeys(row.wanted.pair for row in rows):
            _points(axes, pair, [row for row in rows if row.wanted.pair == pair])
        ends = [*axes.get_xlim(), *axes.get_ylim()]
        axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color="grey", linewidth=0.8, zorder=0)
        axes.set(xlabel=f"published, {MEASURES[measure]}", ylabel=f"ours, {MEASURES[measure]}")
        axes.legend(fontsize=7)
    short = "" if table.scale == "full" else f", {table.scale}: not comparable"
    figure.suptitle(f"{table.table} on {table.data}{short}", fontsize=10)
    return figure_file(figure, form, dpi=120)


def _points(axes: Axes, pair: str, rows: list[Reproduced]) -> None:
    """The numbers of a pair, with both spreads."""
    found = [(row, row.wanted.published) for row in rows]
    x = [published.value for _, published in found if published]
    y = [row.value or 0.0 for row in rows]
    half = [(row.interval.half_width if row.interval else None) or 0.0 for row in rows]
    spread = [published.spread or 0.0 for _, published in found if published]
    axes.errorbar(x, y, xerr=spread, yerr=half, fmt="o", markersize=4, capsize=2, linewidth=1, label=pair)
    for row, left, height in zip(rows, x, y, strict=True):
        axes.annotate(row.wanted.label, (left, height), (4, 4), textcoords="offset points", fontsize=7)
