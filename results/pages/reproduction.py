"""Reproduced tables as text: terminal, markdown, LaTeX, CSV; as plain values; as a plot of published against ours."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pandas as pd

from bench.errors import InputError
from results.analysis.reproduction import Reproduced, Reproduction
from results.pages.rendering import TIE, Block, Column, check_form, render_blocks

COLUMNS = ("row", "measure", "published", "origin", "ours", "seeds", "difference", "verdict")
LEFT = ("row", "measure", "origin", "verdict")
MEASURES = {
    "accuracy_top1": "accuracy %",
    "accuracy_top5": "top-5 accuracy %",
    "error_top1": "error %",
    "error_top5": "top-5 error %",
    "test_errors": "errors",
    "test_errors_digit3": "errors on 3s",
}


def reproduction_page(table: Reproduction, form: str = "terminal", width: int | None = None) -> str:
    """A table as text.

    Args:
        table: what to print.
        form: terminal, markdown, latex or csv.
        width: columns of the terminal.

    Raises:
        InputError: for an unknown form.
    """
    check_form(form)
    if form == "csv":
        return reproduction_frame(table).to_csv(index=False)
    return render_blocks(_blocks(table), notes(table), form, width, tight=True, bullets=True)


def reproduction_values(table: Reproduction) -> dict[str, Any]:
    """All of it as JSON values."""
    rows = []
    for row in table.rows:
        want = row.wanted
        published = want.published.model_dump(mode="json") if want.published else None
        own = {name: value for name, value in vars(want).items() if name != "published"}
        rest = {name: value for name, value in asdict(row).items() if name != "wanted"}
        rows.append({**own, "unit": want.unit, "published": published, **rest})
    return {**{name: value for name, value in vars(table).items() if name != "rows"}, "rows": rows}


def reproduction_display(table: Reproduction) -> pd.DataFrame:
    """The table as text cells, a line for each number."""
    sources = sources_of(table)
    lines = [[row.wanted.pair, *cells(row, sources)] for row in table.rows]
    return pd.DataFrame(lines, columns=["pair", *COLUMNS])


def reproduction_frame(table: Reproduction) -> pd.DataFrame:
    """Plain numbers, a line for each number of the paper's table."""
    records = []
    for row in table.rows:
        want, published, ours = row.wanted, row.wanted.published, row.interval
        records.append(
            {
                "table": table.table,
                "scale": table.scale,
                "pair": want.pair,
                "row": want.label,
                "part": want.part,
                "metric": want.metric,
                "published": published.value if published else math.nan,
                "published_spread": published.spread if published else math.nan,
                "published_seeds": published.seeds if published else math.nan,
                "origin": published.origin if published else "",
                "source": published.source if published else "",
                "place": published.place if published else "",
                "ours": math.nan if row.value is None else row.value,
                "mean": ours.mean if ours else math.nan,
                "half_width": math.nan if ours is None or ours.half_width is None else ours.half_width,
                "seeds": len(row.seeds),
                "difference": math.nan if row.difference is None else row.difference,
                "verdict": row.verdict,
                "reason": row.reason,
            }
        )
    return pd.DataFrame(records)


def cells(row: Reproduced, sources: list[str]) -> list[str]:
    """A number as text, by COLUMNS."""
    want, published = row.wanted, row.wanted.published
    digits = 0 if want.unit == "errors" else 2
    theirs = ""
    if published:
        spread = f" ± {published.spread:g}" if published.spread is not None else ""
        theirs = f"{published.value:g}{spread} [{sources.index(source(row)) + 1}]"
    ours = ""
    if row.value is not None and row.interval:
        half = row.interval.half_width
        ours = f"{row.value:.{1 if digits == 0 and not row.value.is_integer() else digits}f}"
        ours += "" if half is None else f" ± {half:.{digits or 1}f}"
    return [
        want.label,
        MEASURES.get(want.metric, want.metric),
        theirs,
        published.origin if published else "",
        ours + (f" {TIE}" if row.tied else ""),
        str(len(row.seeds) or ""),
        "" if row.difference is None else f"{row.difference:+.{digits}f}",
        row.judged,
    ]


def source(row: Reproduced) -> str:
    """Where the published number is from, as a footnote."""
    published = row.wanted.published
    if published is None:
        return ""
    kind = {"ci95": "95 % interval", "std": "standard deviation", "undefined": "spread of unknown kind"}
    spread = f"; ± is a {kind[published.spread_kind]}" if published.spread_kind else ""
    place = f", {published.place}" if published.place else ""
    return f"{published.origin}, of {published.paper} ({published.year}): {published.source}{place}{spread}"


def sources_of(table: Reproduction) -> list[str]:
    """Every source, once, in the order of the rows."""
    return list(dict.fromkeys(text for row in table.rows if (text := source(row))))


def notes(table: Reproduction) -> list[str]:
    """What a reader must know to judge the table."""
    done = sum(1 for row in table.rows if row.value is not None)
    lines = [f"[{number}] {text}" for number, text in enumerate(sources_of(table), start=1)]
    lines += [
        f"Ours: test part of {table.data}, {table.epoch} epoch, {table.statistic} of the seeds, ± 95 % interval of the "
        "mean (Student's t). Difference: ours less the published.",
        "within: the published value lies in our interval, or the two intervals overlap; below is worse than "
        "published, above better. Hyperparameters are the protocol's; no run chose any.",
    ]
    if any(row.best for row in table.rows):
        lines.append(f"Bold: our best of a pair; {TIE} the paired difference to it has an interval with zero in it.")
    if done < len(table.rows):
        lines.append(f"Unfinished: {done} of {len(table.rows)} numbers.")
    lines += [f"Departure: {text}" for text in table.departures]
    return [*lines, *table.notes]


def reproduction_plot(table: Reproduction) -> bytes:
    """Published against ours, a panel for each measure, as a png file.

    Raises:
        InputError: if there is no number to compare yet.
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
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def _points(axes: Any, pair: str, rows: list[Reproduced]) -> None:
    found = [(row, row.wanted.published) for row in rows]
    x = [published.value for _, published in found if published]
    y = [row.value for row in rows]
    half = [(row.interval.half_width if row.interval else None) or 0.0 for row in rows]
    spread = [published.spread or 0.0 for _, published in found if published]
    axes.errorbar(x, y, xerr=spread, yerr=half, fmt="o", markersize=4, capsize=2, linewidth=1, label=pair)
    for row, left, height in zip(rows, x, y, strict=True):
        axes.annotate(row.wanted.label, (left, height), (4, 4), textcoords="offset points", fontsize=7)


def _title(table: Reproduction, pair: str) -> str:
    marks = [mark for mark in ("" if table.scale == "full" else f"{table.scale} scale", table.data) if mark]
    return f"{table.table} ({', '.join(marks)}): {pair}"


def _blocks(table: Reproduction) -> Iterator[Block]:
    """A table for each pair; our best in bold."""
    sources = sources_of(table)
    columns = [Column(name, left=name in LEFT, wraps=name == "verdict") for name in COLUMNS]
    for pair in dict.fromkeys(row.wanted.pair for row in table.rows):
        rows = [row for row in table.rows if row.wanted.pair == pair]
        bold = frozenset(index for index, row in enumerate(rows) if row.best)
        yield Block(_title(table, pair), columns, [cells(row, sources) for row in rows], bold, COLUMNS.index("ours"))
