"""A reproduced table as a report: gains, their order, then the numbers themselves, each published beside ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, get_args

from kdbench.results.analysis.order import Order
from kdbench.results.analysis.paper_table import Wanted
from kdbench.results.analysis.reproduced import Gain, Reproduced
from kdbench.results.analysis.reproduction import Reproduction
from kdbench.results.analysis.statistics import Interval
from kdbench.results.analysis.verdict import Judgement, Verdict
from kdbench.results.pages.published_plot import MEASURES, plot
from kdbench.results.pages.report import TIE, Block, Column, Number, Report, Sheet

COLUMNS = ("row", "measure", "published", "origin", "ours", "seeds", "difference", "verdict")
LEFT = ("row", "measure", "origin", "verdict")
SPREADS = {"ci95": "95 % interval", "std": "standard deviation", "undefined": "spread of unknown kind"}


def reproduction_report(table: Reproduction) -> Report:
    """A table of gains for each pair and the order of all, then a table of numbers for each, with our best in bold."""
    pairs = list(dict.fromkeys(row.wanted.pair for row in table.rows))
    gained = [pair for pair in pairs if any(row.gain for row in table.rows if row.wanted.pair == pair)]
    return Report(
        name="reproduction",
        title=table.title,
        blocks=[*(_gains(table, pair) for pair in gained), *(_numbers(table, pair) for pair in pairs)],
        notes=_notes(table),
        sheet=_sheet(table),
        values=_values(table),
        pictures={"reproduction": lambda form: plot(table, form)},
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
        rest = {name: value for name, value in asdict(row).items() if name not in ("wanted", "judgement")}
        rows.append({**own, "unit": want.unit, "published": published, **rest, **asdict(row.judgement)})
    return {**vars(table), "rows": rows, "orders": [asdict(each) for each in table.orders]}


def _sheet(table: Reproduction) -> Sheet:
    """Plain values, a line for each number of the paper's table."""
    columns = ["table", "scale", "pair", "row", "part", "metric", "published", "published_spread", "published_seeds"]
    columns += ["origin", "source", "place", "ours", "mean", "half_width", "seeds", "margin", *_judged(None)]
    columns += ["gain_published", "gain_ours", "gain_half_width", "gain_seeds", *_judged(None, "gain_")]
    rows = []
    for row in table.rows:
        want, published, ours = row.wanted, row.wanted.published, row.interval
        values = {"table": table.table, "scale": table.scale, "pair": want.pair, "row": want.label, "part": want.part}
        values |= {"metric": want.metric, **_judged(row.judgement)}
        numbers = {"ours": row.value, "seeds": len(row.seeds), "margin": table.margins.get(want.metric)}
        if published:
            values |= {"origin": published.origin, "source": published.source, "place": published.place}
            numbers |= {"published": published.value, "published_spread": published.spread}
            numbers |= {"published_seeds": published.seeds}
        if ours:
            numbers |= {"mean": ours.mean, "half_width": ours.half_width}
        if gain := row.gain:
            numbers |= {"gain_published": gain.published, "gain_ours": gain.ours.mean}
            numbers |= {"gain_half_width": gain.ours.half_width, "gain_seeds": gain.ours.count}
            values |= _judged(gain.judgement, "gain_")
        rows.append(values | numbers)
    return Sheet(columns, rows)


def _judged(judgement: Judgement | None, prefix: str = "") -> dict[str, Any]:
    """A judgement by the names of its columns; None is an empty one's."""
    names = ("difference", "p_different", "p_equivalent", "verdict", "reason")
    return {f"{prefix}{name}": getattr(judgement, name, None) for name in names}


def _metrics(table: Reproduction) -> Iterator[Number]:
    """The number of rows by verdict; every number published and ours, difference and gain, at the step of its seeds."""
    verdicts = Counter(row.judgement.verdict for row in table.rows)
    gains = Counter(row.gain.judgement.verdict for row in table.rows if row.gain)
    seeds = sum(len(row.seeds) for row in table.rows)
    for verdict in get_args(Verdict):
        yield Number(f"verdict/{verdict}", verdicts[verdict], seeds)
        yield Number(f"gain_verdict/{verdict}", gains[verdict], seeds)
    for order in table.orders:
        yield Number(f"tau/{order.over or 'all'}", order.tau.mean, order.tau.count)
    for row in table.rows:
        name = f"{row.wanted.pair}/{row.wanted.label}/{row.wanted.metric}"
        if row.wanted.published:
            yield Number(f"published/{name}", row.wanted.published.value)
        gain = row.gain.ours.mean if row.gain else None
        for kind, value in (("ours", row.value), ("difference", row.judgement.difference), ("gain", gain)):
            if value is not None:
                yield Number(f"{kind}/{name}", value, len(row.seeds))


def _gains(table: Reproduction, pair: str) -> Block:
    """The gains of a pair's rows; the last pair's has the order of all rows below it."""
    found = [(row, row.gain) for row in table.rows if row.gain]
    rows = [_gain_cells(row, gain, _sources(table)) for row, gain in found if row.wanted.pair == pair]
    last = found[-1][0].wanted.pair == pair
    remarks = [_order_text(order) for order in table.orders] if last else []
    return Block(f"{_title(table, pair)}: gain over its own student", _columns(), rows, remarks=remarks)


def _numbers(table: Reproduction, pair: str) -> Block:
    """The numbers of a pair's rows."""
    rows = [row for row in table.rows if row.wanted.pair == pair]
    bold = frozenset(index for index, row in enumerate(rows) if row.best)
    cells = [_cells(row, _sources(table)) for row in rows]
    return Block(_title(table, pair), _columns(), cells, bold, COLUMNS.index("ours"))


def _title(table: Reproduction, pair: str) -> str:
    marks = [mark for mark in ("" if table.scale == "full" else f"{table.scale} scale", table.data) if mark]
    return f"{table.table} ({', '.join(marks)}): {pair}"


def _columns() -> list[Column]:
    return [Column(name, left=name in LEFT, wraps=name == "verdict") for name in COLUMNS]


def _order_text(order: Order) -> str:
    """The order of rows as a sentence."""
    where = f"Order of {order.over}" if order.over else "Order of all"
    half = "" if order.tau.half_width is None else f" ± {order.tau.half_width:.2f}"
    return f"{where}: Kendall's tau {order.tau.mean:.2f}{half} over {order.tau.count} seed(s) of {order.rows} rows."


def _gain_cells(row: Reproduced, gain: Gain, sources: list[str]) -> list[str]:
    """A gain as texts, by COLUMNS."""
    want, published = row.wanted, row.wanted.published
    theirs = ""
    if gain.published is not None:
        theirs = f"{gain.published:+.{0 if want.unit == 'errors' else 2}f} [{sources.index(_source(row)) + 1}]"
    return [
        want.label,
        "fewer errors" if want.unit == "errors" else "points",
        theirs,
        published.origin if published else "",
        _ours_text(want, gain.ours.mean, gain.ours, signed=True),
        str(gain.ours.count),
        _difference_text(want, gain.judgement),
        str(gain.judgement),
    ]


def _cells(row: Reproduced, sources: list[str]) -> list[str]:
    """A number of the paper's table as texts, by COLUMNS."""
    want, published = row.wanted, row.wanted.published
    theirs = ""
    if published:
        spread = f" ± {published.spread:g}" if published.spread is not None else ""
        theirs = f"{published.value:g}{spread} [{sources.index(_source(row)) + 1}]"
    ours = "" if row.value is None or row.interval is None else _ours_text(want, row.value, row.interval)
    return [
        want.label,
        MEASURES.get(want.metric, want.metric),
        theirs,
        published.origin if published else "",
        ours + (f" {TIE}" if row.tied else ""),
        str(len(row.seeds) or ""),
        _difference_text(want, row.judgement),
        str(row.judgement),
    ]


def _ours_text(want: Wanted, value: float, interval: Interval, signed: bool = False) -> str:
    """A number of ours with the half-width of its mean's interval."""
    digits = 2 if want.unit == "%" else 0 if value.is_integer() else 1
    half = "" if interval.half_width is None else f" ± {interval.half_width:.{2 if want.unit == '%' else 1}f}"
    return f"{value:{'+' if signed else ''}.{digits}f}{half}"


def _difference_text(want: Wanted, judgement: Judgement) -> str:
    """Ours less the published, with the half-width of the predictive interval."""
    if judgement.difference is None:
        return ""
    digits = 2 if want.unit == "%" else 1
    half = "" if judgement.half_width is None else f" ± {judgement.half_width:.{digits}f}"
    return f"{judgement.difference:+.{digits}f}{half}"


def _source(row: Reproduced) -> str:
    """Where the published number is from, as a footnote."""
    published = row.wanted.published
    if published is None:
        return ""
    spread = f"; ± is a {SPREADS[published.spread_kind]}" if published.spread_kind else ""
    place = f", {published.place}" if published.place else ""
    year = f" ({published.year})" if published.year else ""
    return f"{published.origin}, of {published.paper}{year}: {published.source}{place}{spread}"


def _sources(table: Reproduction) -> list[str]:
    """Every source, once, in the order of the rows."""
    return list(dict.fromkeys(text for row in table.rows if (text := _source(row))))


def _notes(table: Reproduction) -> list[str]:
    done = sum(1 for row in table.rows if row.value is not None)
    lines = [f"[{number}] {text}" for number, text in enumerate(_sources(table), start=1)]
    lines += [
        f"Ours: test part of {table.data}, {table.epoch} epoch, {table.statistic} of the seeds, ± 95 % interval of the "
        "mean (Student's t); gains are paired by seed. Hyperparameters are the protocol's; no run chose any.",
        *_rules(table),
    ]
    if any(row.best for row in table.rows):
        lines.append(f"Bold: our best of a pair; {TIE} no other row beats it by comparisons with the best (Hsu 1984).")
    if done < len(table.rows):
        lines.append(f"Unfinished: {done} of {len(table.rows)} numbers.")
    lines += [f"Departure: {text}" for text in table.departures]
    return [*lines, *table.notes]


def _rules(table: Reproduction) -> list[str]:
    """How the verdicts of a table were found."""
    units = {"errors": "errors", "%": "points"}
    margins = {
        f"{value:g} {units['errors' if name.startswith('test_errors') else '%']}"
        for name, value in table.margins.items()
    }
    lines = [
        "Difference: ours less the published, ± its 95 % predictive interval: the published number is a draw too, of "
        "our spread where the paper prints none.",
        f"equivalent: within the margin, {' or '.join(sorted(margins))}, which the protocol declares (two one-sided "
        "tests). different: two-sided t-test. Both after Holm's correction, over the gains and over the numbers.",
    ]
    if table.statistic == "median":
        lines.append("The paper's are medians: ours is shown as one, and judged by our mean with a median's error.")
    if table.orders:
        lines.append("Kendall's tau: 1 where a seed has the paper's order, students among the rows; ± 95 % interval.")
    return lines
