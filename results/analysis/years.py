"""Whether methods have become better with the years: their gains over the baseline, and the years of their papers.

Two questions have two uncertainties. Of these very methods, each seed has a slope and Kendall's tau, whose means have
Student's interval over seeds. Whether other methods would show the same is asked by a permutation test: how often years
that are dealt out anew among the methods go with their mean gains as closely. A year is a paper's, and says nothing of
how well a method was understood, tuned or carried over since.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from kdbench.bench.errors import InputError
from kdbench.bench.record import Metric
from kdbench.results.analysis.comparison import comparisons, scores_of
from kdbench.results.analysis.order import Order, Ordered, order
from kdbench.results.analysis.statistics import Interval, interval
from kdbench.results.store.plan import SweepPlan
from kdbench.results.store.run_store import RunStore

DECADE = 10
PERMUTATIONS = 9999
FEWEST_METHODS = 5
"""Below that a slope over methods is not asked for."""


@dataclass(frozen=True)
class Dated:
    """A row of a suite with the year of its method's paper."""

    method: str
    year: int
    gain: Interval | None
    """Over the baseline, paired by seed; None for the baseline itself."""
    p_holm: float | None
    """Of the paired t-test, corrected for the rows of this table."""


@dataclass(frozen=True)
class Trend:
    """The rows of one pair that are given what its baseline is given, the earliest paper first."""

    pair: str
    baseline: str
    given: str
    rows: list[Dated]
    slope: Interval | None
    """Of scores against years, in a decade: least squares over the rows, mean over the seeds that all rows have."""
    p: float | None
    """Of the permutation test of mean scores and years, two-sided."""
    tau: Order | None
    """Kendall's tau of scores and years."""


@dataclass(frozen=True)
class Trends:
    """A suite by years, as far as it is done."""

    suite: str
    metric: Metric
    shows: str
    pairs: list[Trend]


def by_year(plan: SweepPlan, store: RunStore, years: Mapping[str, int]) -> Trends:
    """The rows of a suite by the years of their papers.

    Args:
        plan: the suite's.
        store: where its runs are.
        years: by row; one without a paper is left out.

    Raises:
        InputError: if the suite has no baseline, or one whose paper is not known.
    """
    suite, scores = plan.suite, scores_of(plan, store)
    if suite.baseline not in years or not any(suite.baseline in methods for methods in scores.values()):
        raise InputError(f"{plan.name} has no finished run of {suite.baseline}, over which gains by year are taken.")
    given = suite.given.get(suite.baseline, "")
    pairs = []
    for pair, methods in scores.items():
        chosen = {row: seeds for row, seeds in methods.items() if row in years and suite.given.get(row, "") == given}
        if suite.baseline in chosen:
            pairs.append(_trend(pair, suite.baseline, given, chosen, years))
    return Trends(plan.name, suite.metric, suite.show, pairs)


def _trend(
    pair: str, baseline: str, given: str, scores: Mapping[str, Mapping[int, float]], years: Mapping[str, int]
) -> Trend:
    found = {each.method: each for each in comparisons({pair: scores}, [baseline])}
    rows = [
        Dated(
            row,
            years[row],
            found[row].difference if row in found else None,
            found[row].p_holm if row in found else None,
        )
        for row in sorted(scores, key=lambda row: (years[row], row))
    ]
    seeds = sorted(set.intersection(*(set(each) for each in scores.values())))
    if len({years[row] for row in scores}) < 2 or len(scores) < FEWEST_METHODS or not seeds:
        return Trend(pair, baseline, given, rows, None, None, None)
    when = np.array([float(years[row]) for row in scores])
    values = np.array([[scores[row][seed] for seed in seeds] for row in scores])
    slopes = [float(DECADE * stats.linregress(when, column).slope) for column in values.T]
    shuffled = stats.PermutationMethod(n_resamples=PERMUTATIONS, rng=np.random.default_rng(0))
    p = float(stats.pearsonr(when, values.mean(axis=1), method=shuffled).pvalue)
    tau = order(pair, [Ordered(pair, float(years[row]), scores[row]) for row in scores])
    return Trend(pair, baseline, given, rows, interval(slopes), p, tau)
