"""A reproduced table as a report: the published numbers beside ours, and a plot of one against the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

from bench.errors import InputError
from results.analysis.reproduction import Reproduced, Reproduction
from results.analysis.verdict import Verdict
from results.pages.pictures import figure_file
from results.pages.report import TIE, Block, Column, Number, Report, Sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
SPREADS = {"ci95": "95 % interval", "std": "standard deviation", "undefined": "spread of unknown kind"}


def reproduction_report(table: Reproduction) -> Report:
    """A table for each pair, with our best in bold."""
    return Report(
        name="reproduction",
        title=table.title,
        blocks=[_block(table, pair) for pair in dict.fromkeys(row.wanted.pair for row in table.rows)],
        notes=_notes(table),
        sheet=_sheet(table),
        values=_values(table),
        pictures={"reproduction": lambda form: _plot(table, form)},
        metrics=list(_metrics(table)),
        tight=True,
        bullets=True,
    )


def _values(table: Reproduction) -> dict[str, Any]:
    """All of it as JSON values."""
    rows = []
    for row in table.rows:
        want = row.wanted
        published = want.published.model_dump(mode="json") if want.published else None
        own = {name: value for name, value in vars(want).items() if name != "published"}
        rest = {name: value for name, value in asdict(row).items() if name != "wanted"}
        rows.append({**own, "unit": want.unit, "published": published, **rest})
    return {**vars(table), "rows": rows}


def _sheet(table: Reproduction) -> Sheet:
    """Plain values, a line for each number of the paper's table."""
    columns = ["table", "scale", "pair", "row", "part", "metric", "published", "published_spread", "published_seeds"]
    columns += ["origin", "source", "place", "ours", "mean", "half_width", "seeds", "difference", "verdict", "reason"]
    rows = []
    for row in table.rows:
        want, published, ours = row.wanted, row.wanted.published, row.interval
        values = {"table": table.table, "scale": table.scale, "pair": want.pair, "row": want.label, "part": want.part}
        values |= {"metric": want.metric, "verdict": row.verdict, "reason": row.reason}
        numbers = {"ours": row.value, "seeds": len(row.seeds), "difference": row.difference}
        if published:
            values |= {"origin": published.origin, "source": published.source, "place": published.place}
            numbers |= {"published": published.value, "published_spread": published.spread}
            numbers |= {"published_seeds": published.seeds}
        if ours:
            numbers |= {"mean": ours.mean, "half_width": ours.half_width}
        rows.append(values | numbers)
    return Sheet(columns, rows)


def _metrics(table: Reproduction) -> Iterator[Number]:
    """The number of rows by verdict; every number published and ours, and the difference, at the step of its seeds."""
    verdicts = Counter(row.verdict for row in table.rows)
    seeds = sum(len(row.seeds) for row in table.rows)
    for verdict in get_args(Verdict):
        yield Number(f"verdict/{verdict}", verdicts[verdict], seeds)
    for row in table.rows:
        name = f"{row.wanted.pair}/{row.wanted.label}/{row.wanted.metric}"
        if row.wanted.published:
            yield Number(f"published/{name}", row.wanted.published.value)
        for kind, value in (("ours", row.value), ("difference", row.difference)):
            if value is not None:
                yield Number(f"{kind}/{name}", value, len(row.seeds))


def _block(table: Reproduction, pair: str) -> Block:
    sources, rows = _sources(table), [row for row in table.rows if row.wanted.pair == pair]
    columns = [Column(name, left=name in LEFT, wraps=name == "verdict") for name in COLUMNS]
    bold = frozenset(index for index, row in enumerate(rows) if row.best)
    marks = [mark for mark in ("" if table.scale == "full" else f"{table.scale} scale", table.data) if mark]
    title = f"{table.table} ({', '.join(marks)}): {pair}"
    return Block(title, columns, [_cells(row, sources) for row in rows], bold, COLUMNS.index("ours"))


def _cells(row: Reproduced, sources: list[str]) -> list[str]:
    """A number of the paper's table as texts, by COLUMNS."""
    want, published = row.wanted, row.wanted.published
    digits = 0 if want.unit == "errors" else 2
    theirs = ""
    if published:
        spread = f" ± {published.spread:g}" if published.spread is not None else ""
        theirs = f"{published.value:g}{spread} [{sources.index(_source(row)) + 1}]"
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


def _source(row: Reproduced) -> str:
    """Where the published number is from, as a footnote."""
    published = row.wanted.published
    if published is None:
        return ""
    spread = f"; ± is a {SPREADS[published.spread_kind]}" if published.spread_kind else ""
    place = f", {published.place}" if published.place else ""
    return f"{published.origin}, of {published.paper} ({published.year}): {published.source}{place}{spread}"


def _sources(table: Reproduction) -> list[str]:
    """Every source, once, in the order of the rows."""
    return list(dict.fromkeys(text for row in table.rows if (text := _source(row))))


def _notes(table: Reproduction) -> list[str]:
    done = sum(1 for row in table.rows if row.value is not None)
    lines = [f"[{number}] {text}" for number, text in enumerate(_sources(table), start=1)]
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


def _plot(table: Reproduction, form: str) -> bytes:
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
