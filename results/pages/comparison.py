"""Comparisons of a suite's methods, or of its pairs, as a report with a critical-difference diagram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from kdbench.bench.errors import InputError
from kdbench.results.analysis.comparison import Compared, Comparison, Ranked
from kdbench.results.analysis.statistics import FEWEST, LEVEL, WILCOXON_SEEDS, Ranking
from kdbench.results.pages.diagram import critical_difference_diagram
from kdbench.results.pages.numbers import DIFFERS, score_text
from kdbench.results.pages.report import Block, Column, Report, Sheet

COLUMNS = ("difference", "seeds", "p", "p Holm", "Wilcoxon", "won", "again")
NEEDED = ("difference", "p Holm")
RANK_COLUMNS = ("mean rank", "group")


def comparison_report(compared: Compared) -> Report:
    """A table for each control and pair, then the mean ranks; as CSV the comparisons with controls alone."""
    families = dict.fromkeys((each.control, each.pair) for each in compared.comparisons)
    blocks = [_against(compared, control, pair) for control, pair in families]
    blocks += [_ranks(compared, ranked, ranked.ranking) for ranked in compared.rankings if ranked.ranking]
    rows = [_named(compared, each) for each in compared.comparisons]
    return Report(
        name="comparison",
        title=compared.suite,
        blocks=blocks,
        notes=_notes(compared),
        sheet=_sheet(compared),
        values=asdict(compared) | {"metric": compared.metric.model_dump(), "comparisons": rows},
        pictures={"ranks": lambda form: _diagram(compared, form)},
        tight=True,
    )


def _sheet(compared: Compared) -> Sheet:
    """Plain numbers, a line for each comparison with a control; differences as scores are kept, not in points."""
    columns = ["pair", "control", "method", "difference", "half_width", "seeds", "p", "p_holm", "p_wilcoxon"]
    rows = []
    for each in compared.comparisons:
        mean, half_width, seeds = each.difference.mean, each.difference.half_width, each.difference.count
        rows.append(_named(compared, each) | {"difference": mean, "half_width": half_width, "seeds": seeds})
    return Sheet([*columns, "won", "probability"], rows)


def _named(compared: Compared, each: Comparison) -> dict[str, Any]:
    """A comparison's values by what they are: where pairs are compared, method and pair change places."""
    values = asdict(each)
    return values if compared.noun == "method" else values | {"method": each.pair, "pair": each.method}


def _diagram(compared: Compared, form: str) -> bytes:
    """The critical-difference diagram over pairs as a file; where there is none, that of each pair over its seeds.

    Raises:
        InputError: for an unknown form, or if nothing could be ranked.
    """
    over = [each for each in compared.rankings if each.ranking and each.over == "pairs"]
    drawn = {_title(compared, each): each.ranking for each in over or compared.rankings if each.ranking}
    if not drawn:
        raise InputError(f"there are no ranks to draw: {' '.join(each.reason for each in compared.rankings)}")
    return critical_difference_diagram(drawn, form)


def _notes(compared: Compared) -> list[str]:
    lines, metric = [], compared.metric
    if compared.comparisons:
        minus = f"{compared.noun} minus control" if metric.higher_is_better else f"control minus {compared.noun}"
        points = "points of test" if metric.unit == "%" else "test"
        lower = "" if metric.higher_is_better else ", so that above zero is better"
        lines += [
            f"difference: {minus} in {points} {metric.name}{lower}, {compared.shows} epoch, paired by "
            "seed; mean and 95 % interval (Student's t).",
            f"p: paired t-test, two-sided; below 0.05 just where the interval excludes zero. From {FEWEST} seeds up.",
            f"p Holm: p corrected for the number of rows of its table (Holm 1979); {DIFFERS} below {LEVEL}.",
            f"Wilcoxon: p of the signed-rank test, not corrected, from {WILCOXON_SEEDS} seeds up: a check that does "
            "not ask for normal differences.",
            f"won: share of the seeds in which the {compared.noun} is better, a tie counts half. again: probability "
            "that it is under one more seed (t predictive).",
            "Seeds vary weights and batches: all this holds for these networks and data.",
        ]
    if any(each.differs and each.p == 0 for each in compared.comparisons):
        lines.append("p of zero: all seeds differ by the same; so few samples or seeds say less than that.")
    if any(each.ranking for each in compared.rankings):
        told = f"{compared.noun}s that share a number are not told apart (Nemenyi 1963)."
        lines.append(f"mean rank: 1 is best. group: {told}")
    return [*lines, *(each.reason for each in compared.rankings if each.reason), *compared.missing]


def _against(compared: Compared, control: str, pair: str) -> Block:
    """The comparisons with one control on one pair."""
    rows = [_cells(compared, each) for each in compared.comparisons if (each.control, each.pair) == (control, pair)]
    title = f"{compared.suite}: against {control} {'on' if compared.noun == 'method' else 'by'} {pair}"
    return Block(title, _columns(compared, COLUMNS), rows)


def _cells(compared: Compared, each: Comparison) -> list[str]:
    """A comparison as texts: its name, then COLUMNS."""
    return [
        each.method,
        score_text(each.difference, compared.metric, signed=True),
        str(each.difference.count),
        p_text(each.p),
        p_text(each.p_holm) + (f" {DIFFERS}" if each.differs else ""),
        p_text(each.p_wilcoxon),
        f"{each.won:.2f}",
        "" if each.probability is None else f"{each.probability:.2f}",
    ]


def _ranks(compared: Compared, ranked: Ranked, found: Ranking) -> Block:
    """Mean ranks, and the numbers of the groups in which each name is."""
    rows = []
    for name, rank in found.ranks.items():
        groups = [str(number) for number, group in enumerate(found.groups, start=1) if name in group]
        rows.append([name, f"{rank:.2f}", "-".join(dict.fromkeys([groups[0], groups[-1]])) if groups else ""])
    columns, remarks = _columns(compared, RANK_COLUMNS), _remarks(compared, ranked, found)
    return Block(_title(compared, ranked), columns, rows, remarks=remarks)


def _columns(compared: Compared, names: Sequence[str]) -> list[Column]:
    return [Column(compared.noun, left=True), *(Column(name, needed=name in NEEDED) for name in names)]


def _remarks(compared: Compared, ranked: Ranked, found: Ranking) -> list[str]:
    """The tests of a ranking, and how far it may be believed."""
    methods, blocks = len(found.ranks), found.blocks
    text = f"Friedman chi-squared({methods - 1}) = {found.friedman:.2f}, p {_equals(found.friedman_p)}; "
    if found.iman_davenport is None or found.iman_davenport_p is None:
        text += "Iman-Davenport F not defined, as all blocks agree; "
    else:
        degrees = f"{methods - 1}, {(methods - 1) * (blocks - 1)}"
        text += f"Iman-Davenport F({degrees}) = {found.iman_davenport:.2f}, p {_equals(found.iman_davenport_p)}; "
    remarks = [f"{text}critical difference {found.critical_difference:.2f} at {LEVEL}."]
    if found.friedman_p >= LEVEL:
        remarks.append("Friedman's test finds no difference among them: the groups say nothing further.")
    if found.critical_difference >= methods - 1:
        remarks.append(f"So few blocks cannot tell any two of {methods} {compared.noun}s apart, whatever their ranks.")
    if ranked.left_out:
        remarks.append(f"Left out, as they lack what the others share: {', '.join(ranked.left_out)}.")
    return remarks


def _title(compared: Compared, ranked: Ranked) -> str:
    blocks = len(ranked.blocks)
    where = "pair" if compared.noun == "method" else "method"
    over = f"{blocks} pairs" if ranked.over == "pairs" else f"{blocks} seeds of {ranked.over}, for that {where} alone"
    return f"{compared.suite}: mean ranks over {over}"


def p_text(value: float | None) -> str:
    """A p value in three decimals; empty if there is none."""
    return "" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def _equals(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
