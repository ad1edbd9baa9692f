"""Statistics of compared methods: over seeds of one pair, paired by seed, and over pairs, by ranks.

How marks are corrected for their number, on every page: a gain over a control is marked by the paired t-test with
Holm's correction over the rows that are compared with it; rows tied with the best are those that no other row beats, by
Hsu's comparisons with the best. Seeds are blocks, and each comparison has the spread of its own paired differences:
rows of one board differ in theirs up to fifteenfold, so the common one that Dunnett (1955) and Hsu assume would let the
worst rows decide about the best.

Everything here takes plain numbers; higher is better.

Student (1908), The probable error of a mean. Wilcoxon (1945), Individual comparisons by ranking methods. Holm (1979),
A simple sequentially rejective multiple test procedure. Hsu (1984), Constrained simultaneous confidence intervals for
multiple comparisons with the best. Friedman (1937), The use of ranks to avoid the assumption of
normality. Iman and Davenport (1980), Approximations of the critical region of the Friedman statistic. Nemenyi (1963),
Distribution-free multiple comparisons. Demšar (2006), Statistical comparisons of classifiers over multiple data sets.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

LEVEL = 0.05
"""The significance level of every test here: the chance to find a difference that is not there."""
ROUNDING = 1e-6
"""Scores closer than this are equal: they come from 32-bit floats, and no test part has a million samples."""
FEWEST = 3
"""Seeds from which anything is concluded: two are often equal by chance, as if they had no spread."""
WILCOXON_SEEDS = 6
"""The signed-rank test of fewer seeds cannot fall below LEVEL: the least p value of n differences is 2 / 2^n."""
ENUMERATED = 13
"""Most differences that are given every sign; more are left to scipy."""


@dataclass(frozen=True)
class Interval:
    """A mean and the half-width of its confidence interval; the half-width is None with fewer than two values."""

    mean: float
    half_width: float | None
    count: int


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's t interval of the mean.

    Raises:
        ValueError: if there are no values.
    """
    if not values:
        raise ValueError("an interval takes at least one value, but got none.")
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return Interval(mean, None, count)
    quantile = float(stats.t.ppf((1 + confidence) / 2, count - 1))
    return Interval(mean, quantile * statistics.stdev(values) / count**0.5, count)


def differences(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """First - second for each seed that both have, by seed."""
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def t_test(paired_differences: Sequence[float]) -> float | None:
    """Two-sided p value of the paired t-test (Student 1908): below 0.05 just where the 95 % interval excludes zero.

    None with fewer than two differences. Equal differences are the limit: 1 if they are zero, else 0.
    """
    if len(paired_differences) < 2:
        return None
    statistic = _t(paired_differences, statistics.stdev(paired_differences) / len(paired_differences) ** 0.5)
    return float(2 * stats.t.sf(abs(statistic), len(paired_differences) - 1))


def wilcoxon(paired_differences: Sequence[float]) -> float | None:
    """Two-sided p value of the signed-rank test (Wilcoxon 1945), which does not ask for normal differences.

    None with fewer than WILCOXON_SEEDS differences. Zeros are dropped; if all are zero, it is 1. Few differences
    are given every sign in turn, also where some are equal, as scipy does, but all at once.
    """
    if len(paired_differences) < WILCOXON_SEEDS:
        return None
    sizes = _levels([0.0, *map(abs, paired_differences)])[1:]
    signed = (np.sign(paired_differences) * sizes)[sizes > 0]
    if len(signed) > ENUMERATED:
        return float(stats.wilcoxon(signed).pvalue)
    ranks = stats.rankdata(abs(signed))
    sums = np.array(list(itertools.product((-1, 1), repeat=len(signed)))) @ ranks
    return float(np.mean(abs(sums) >= abs(np.sign(signed) @ ranks)))


def share_won(paired_differences: Sequence[float]) -> float:
    """The share of seeds in which the first is better; a tie counts half.

    Raises:
        ValueError: if there are no differences.
    """
    if not paired_differences:
        raise ValueError("a share takes at least one difference, but got none.")
    return statistics.fmean(0.5 if abs(value) <= ROUNDING else float(value > 0) for value in paired_differences)


def probability_better(paired_differences: Sequence[float]) -> float | None:
    """The probability that the first is better in a fresh pair of runs under one more seed.

    From Student's t predictive distribution of one more difference, mean + s sqrt(1 + 1/n) t(n - 1): with few seeds it
    stays away from 0 and 1 however close they agree. None with fewer than two differences; equal differences are the
    limit: 1, 0.5 or 0.
    """
    count = len(paired_differences)
    if count < 2:
        return None
    statistic = _t(paired_differences, statistics.stdev(paired_differences) * (1 + 1 / count) ** 0.5)
    return float(stats.t.cdf(statistic, count - 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P values corrected for their number (Holm 1979): all below 0.05 may be believed together.

    The i-th smallest of m is multiplied by m - i + 1, is at least the one before it and at most 1. None stays None and
    is not counted.
    """
    order = sorted((value, index) for index, value in enumerate(p_values) if value is not None)
    corrected: list[float | None] = [None] * len(p_values)
    least = 0.0
    for place, (value, index) in enumerate(order):
        least = max(least, min(1.0, value * (len(order) - place)))
        corrected[index] = least
    return corrected


def could_be_best(scores: Mapping[str, Mapping[int, float]]) -> set[str]:
    """The rows that may be the best: with 95 % probability the truly best one is among them (Hsu 1984).

    A row is out if any other beats it by a one-sided paired t-test at LEVEL over the number of others (Bonferroni). The
    truly best row alone must survive, so the rows need no further correction. Fewer than FEWEST shared seeds beat none.

    Args:
        scores: by row and seed; higher is better.
    """
    found = set()
    for name, mine in scores.items():
        gaps = [differences(theirs, mine) for other, theirs in scores.items() if other != name]
        ahead = [gap for gap in gaps if len(gap) >= FEWEST and statistics.fmean(gap) > 0]
        p_values = [p / 2 for gap in ahead if (p := t_test(gap)) is not None]
        if not p_values or min(p_values) * len(gaps) >= LEVEL:
            found.add(name)
    return found


@dataclass(frozen=True)
class Ranking:
    """Methods ranked in each of several blocks, such as pairs; best first."""

    blocks: int
    ranks: dict[str, float]
    """Mean over blocks; 1 is best."""
    friedman: float
    """Friedman's chi-squared statistic, corrected for ties."""
    friedman_p: float
    iman_davenport: float | None
    """Iman and Davenport's F statistic; None if every block has the same order, so that it would divide by zero."""
    iman_davenport_p: float | None
    critical_difference: float
    """Methods whose mean ranks differ by less are not told apart."""
    nemenyi: dict[str, dict[str, float]]
    """P value of Nemenyi's test for each two methods."""
    groups: list[list[str]]
    """Largest sets of neighbours in rank, of two methods or more, that are not told apart."""


def ranking(blocks: Sequence[Mapping[str, float]]) -> Ranking:
    """Ranks methods in each block and tests whether they differ (Friedman 1937), and which (Nemenyi 1963).

    Follows Demšar (2006). Blocks must be independent for the tests to hold.

    Args:
        blocks: the score of each method, once a block; scores within ROUNDING share a rank.

    Raises:
        ValueError: if there are fewer than two blocks or three methods, or blocks differ in their methods.
    """
    names = list(blocks[0]) if blocks else []
    if len(blocks) < 2 or len(names) < 3 or any(block.keys() != blocks[0].keys() for block in blocks):
        raise ValueError(f"ranks take 2 blocks of the same 3 methods or more, but got {len(blocks)} of {names}.")
    from scikit_posthocs import posthoc_nemenyi_friedman

    levels = np.array([_levels([block[name] for name in names]) for block in blocks])
    means = (len(names) + 1 - stats.rankdata(levels, axis=1)).mean(axis=0)
    ranks = {names[index]: float(means[index]) for index in np.argsort(means, kind="stable")}
    chi_squared, p_value = 0.0, 1.0
    if np.ptp(levels, axis=1).any():
        chi_squared, p_value = map(float, stats.friedmanchisquare(*levels.T))
    f_value, f_p_value = iman_davenport(chi_squared, len(names), len(blocks))
    difference = critical_difference(len(names), len(blocks))
    table = posthoc_nemenyi_friedman(levels)
    nemenyi = {
        first: {second: float(table.iloc[names.index(first), names.index(second)]) for second in ranks}
        for first in ranks
    }
    return Ranking(
        len(blocks), ranks, chi_squared, p_value, f_value, f_p_value, difference, nemenyi, _groups(ranks, difference)
    )


def iman_davenport(chi_squared: float, methods: int, blocks: int) -> tuple[float | None, float | None]:
    """Friedman's statistic as an F statistic, less conservative (Iman and Davenport 1980), and its p value."""
    left = blocks * (methods - 1) - chi_squared
    if left < 1e-9:
        return None, None
    value = (blocks - 1) * chi_squared / left
    return value, float(stats.f.sf(value, methods - 1, (methods - 1) * (blocks - 1)))


def critical_difference(methods: int, blocks: int, level: float = LEVEL) -> float:
    """The least difference of mean ranks that tells two methods apart (Nemenyi 1963; Demšar 2006, section 3.2.2)."""
    quantile = float(stats.studentized_range.ppf(1 - level, methods, math.inf)) / 2**0.5
    return quantile * math.sqrt(methods * (methods + 1) / (6 * blocks))


def _groups(ranks: Mapping[str, float], difference: float) -> list[list[str]]:
    names, groups, reached = list(ranks), list[list[str]](), 0
    for first in range(len(names)):
        last = max(index for index in range(len(names)) if ranks[names[index]] - ranks[names[first]] < difference)
        if last > max(first, reached):
            groups.append(names[first : last + 1])
            reached = last
    return groups


def _t(values: Sequence[float], scale: float) -> float:
    """The t statistic, mean over scale; for values that do not vary its limit, which is infinite or zero."""
    mean = statistics.fmean(values)
    if max(values) - min(values) > ROUNDING:
        return mean / scale
    return math.copysign(math.inf, mean) if abs(mean) > ROUNDING else 0.0


def _levels(values: Sequence[float]) -> npt.NDArray[np.int_]:
    """Whole numbers in the order of the values; neighbours within ROUNDING of each other share one."""
    array = np.asarray(values, float)
    order = np.argsort(array, kind="stable")
    levels = np.empty(len(array), int)
    levels[order] = np.cumsum(np.diff(array[order], prepend=array[order[0]]) > ROUNDING)
    return levels
