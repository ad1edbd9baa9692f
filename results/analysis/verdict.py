"""Whether a number of ours agrees with the published one."""

from __future__ import annotations

import math
from typing import Literal

from results.analysis.literature import Published
from results.analysis.paper_table import Wanted
from results.analysis.statistics import ROUNDING, Interval

Verdict = Literal["within", "below", "above", "not comparable", "not run", "not published"]
ONE_SEED = "one seed, so no interval"
ONE_NETWORK = "published weights, so no interval"


def judge(want: Wanted, ours: Interval, incomparable: str = "") -> tuple[Verdict, str]:
    """Whether ours agrees with what was published: within, or below (worse) or above (better) by how much.

    Within: the published value lies in our 95 % interval; if it has a spread of its own, the two intervals overlap.
    The interval is that of the mean, so it is the mean that is judged, whatever statistic the table shows.

    Args:
        want: with the published number.
        ours: the interval over seeds.
        incomparable: why they cannot be compared, if so.
    """
    published = want.published
    if published is None:
        return "not published", ""
    if incomparable:
        return "not comparable", incomparable
    if ours.half_width is None:
        return "not comparable", ONE_NETWORK if want.phase == "taught" else ONE_SEED
    theirs = spread_of(published)
    if abs(ours.mean - published.value) <= ours.half_width + theirs + ROUNDING:
        return "within", "the intervals overlap" if theirs else ""
    difference = ours.mean - published.value
    worse = (difference > 0) == want.lower
    return ("below" if worse else "above"), by_how_much(want, difference)


def spread_of(published: Published) -> float:
    """The half-width of a published number's 95 % interval; a spread of unknown kind counts as one, none as zero."""
    if published.spread is None or published.spread_kind != "std":
        return published.spread or 0.0
    if published.seeds is None or published.seeds < 2:
        return published.spread
    from scipy import stats

    quantile = float(stats.t.ppf(0.975, published.seeds - 1))
    return quantile * published.spread / math.sqrt(published.seeds)


def by_how_much(want: Wanted, difference: float) -> str:
    """A difference in words, as "12 more errors"."""
    if want.unit == "errors":
        return f"{abs(difference):.3g} {'more' if difference > 0 else 'fewer'} errors"
    kind = "error" if want.lower else "accuracy"
    return f"{abs(difference):.2f} points {'more' if difference > 0 else 'less'} {kind}"
