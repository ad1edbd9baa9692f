"""The numbers of a paper's table beside ours: each judged, its gain over its own student judged, and their order.

The gain is the first question: it is what a paper claims, and what data, budget and program move least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kdbench.results.analysis.order import Order, Ordered, order
from kdbench.results.analysis.paper_table import Table, Wanted
from kdbench.results.analysis.statistics import Interval, could_be_best, interval
from kdbench.results.analysis.verdict import ONE_NETWORK, Judgement, Question, error_of, gap, judged, unable


@dataclass(frozen=True)
class Gain:
    """By how much a row is better than its own student, beside what was published."""

    published: float | None
    """The difference of the two published numbers; None unless both are."""
    ours: Interval
    """Paired by seed, with its 95 % interval; above zero is better."""
    judgement: Judgement


@dataclass(frozen=True)
class Reproduced:
    """A number of the paper's table beside ours, in the published unit."""

    wanted: Wanted
    value: float | None
    """Ours, by the paper's statistic."""
    interval: Interval | None
    """The 95 % interval of our mean over seeds."""
    seeds: dict[int, float]
    """Ours by seed."""
    judgement: Judgement
    gain: Gain | None = None
    """None for a teacher and a student alone, and where one of the two has no number."""
    best: bool = False
    """Whether ours is the best of its pair, or cannot be told apart from it."""
    tied: bool = False


def with_verdicts(table: Table, rows: Sequence[Reproduced]) -> list[Reproduced]:
    """The same rows, their numbers judged as one family."""
    judgements: dict[int, Judgement] = {}
    family: dict[int, Question] = {}
    for index, row in enumerate(rows):
        want, published = row.wanted, row.wanted.published
        if published is None or row.value is None:
            continue
        ours = np.array(list(row.seeds.values()))
        found = gap(ours, published.value, [error_of(published, ours, table.statistic == "median")])
        reason = table.incomparable or want.incomparable or (ONE_NETWORK if want.phase == "taught" else "")
        if reason := unable(found, reason):
            judgements[index] = Judgement("not comparable", reason, float(found.value))
        else:
            family[index] = Question(want, found, table.margins[want.metric], want.lower)
    judgements |= dict(zip(family, judged(list(family.values())), strict=True))
    return [replace(row, judgement=_also(judgements.get(i, row.judgement), row)) for i, row in enumerate(rows)]


def _also(judgement: Judgement, row: Reproduced) -> Judgement:
    """A judgement with the seeds that were lost, which the row's own has as its reason."""
    reasons = dict.fromkeys((judgement.reason, row.judgement.reason))
    return replace(judgement, reason="; ".join(filter(None, reasons)))


def with_gains(table: Table, rows: Sequence[Reproduced]) -> list[Reproduced]:
    """The same rows, with their gains over their own students, judged as one family."""
    gains: dict[int, Gain] = {}
    family: dict[int, Question] = {}
    for index, row in enumerate(rows):
        if (student := own_student(row, rows)) is None:
            continue
        gains[index], question = _gain(table, row, student)
        if question:
            family[index] = question
    for index, judgement in zip(family, judged(list(family.values())), strict=True):
        gains[index] = replace(gains[index], judgement=judgement)
    return [replace(row, gain=gains.get(index)) for index, row in enumerate(rows)]


def own_student(row: Reproduced, rows: Sequence[Reproduced]) -> Reproduced | None:
    """The student alone over which a row gains, of its own pair if there is one; None without a seed that both have."""
    alone = [other for other in rows if other.wanted.alone and other.wanted.quantity == row.wanted.quantity]
    alone = [other for other in alone if other.seeds.keys() & row.seeds.keys()]
    if row.wanted.alone or row.wanted.phase != "seed" or not alone:
        return None
    return next((other for other in alone if other.wanted.pair == row.wanted.pair), alone[0])


def _gain(table: Table, row: Reproduced, student: Reproduced) -> tuple[Gain, Question | None]:
    """A gain, and what is to be judged of it, if anything is."""
    want, alone, sign = row.wanted, student.wanted, -1 if row.wanted.lower else 1
    shared = sorted(row.seeds.keys() & student.seeds.keys())
    mine, theirs = (np.array([each.seeds[seed] for seed in shared]) for each in (row, student))
    ours = interval([float(each) for each in sign * (mine - theirs)])
    if want.published is None or alone.published is None:
        return Gain(None, ours, Judgement("not published")), None
    published, median = sign * (want.published.value - alone.published.value), table.statistic == "median"
    errors = [error_of(want.published, mine, median), error_of(alone.published, theirs, median)]
    found = gap(sign * (mine - theirs), published, errors)
    if reason := unable(found, table.incomparable or want.incomparable or alone.incomparable):
        return Gain(published, ours, Judgement("not comparable", reason, float(found.value))), None
    return Gain(published, ours, Judgement("inconclusive")), Question(want, found, table.margins[want.metric], False)


def orders(rows: Sequence[Reproduced]) -> list[Order]:
    """How far ours have the paper's order: for each student and share of the data, and for all if they are several.

    Students alone are ranked too, each once, though several pairs may have it; numbers that cannot be compared are not.
    """
    groups: dict[tuple[str, str], list[Ordered]] = {}
    seen = set()
    for row in rows:
        want = row.wanted
        again = want.alone and want.quantity in seen
        if want.phase != "seed" or not want.published or not row.seeds or want.incomparable or again:
            continue
        seen |= {want.quantity} if want.alone else set()
        sign = -1 if want.lower else 1
        ours = {seed: sign * value for seed, value in row.seeds.items()}
        ordered = Ordered(want.quantity, sign * want.published.value, ours)
        groups.setdefault((want.network, want.part), []).append(ordered)
    found = {name: order(", ".join(filter(None, name)), group) for name, group in groups.items()}
    whole = order("", [each for name, group in groups.items() if found[name] for each in group])
    each = [one for one in found.values() if one]
    return [*each, whole] if whole and len(each) > 1 else each


def ranked(rows: Sequence[Reproduced]) -> list[Reproduced]:
    """Marks the best of our students for each pair, measure and exit, and those that may be the best as well."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, row in enumerate(rows):
        want = row.wanted
        if row.interval and want.phase == "seed":
            groups.setdefault((want.pair, want.quantity, want.student), []).append(index)
    marked = list(rows)
    for indices in groups.values():
        sign = -1 if rows[indices[0]].wanted.lower else 1
        lead = max(indices, key=lambda index: sign * (rows[index].value or 0.0))
        scores = {str(index): {s: sign * v for s, v in rows[index].seeds.items()} for index in indices}
        possible = could_be_best(scores)
        for index in indices if len(indices) > 1 else ():
            if index == lead or str(index) in possible:
                marked[index] = replace(rows[index], best=True, tied=index != lead)
    return marked
