"""Intervals over seeds: of a mean, and of a difference paired by seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean and the half-width of its confidence interval; the half-width is None with fewer than two values."""

    mean: float
    half_width: float | None
    count: int

    @property
    def includes_zero(self) -> bool:
        """Whether zero lies in the interval; true when there is no interval to exclude it."""
        return self.half_width is None or abs(self.mean) <= self.half_width


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


def paired(first: Mapping[int, float], second: Mapping[int, float], confidence: float = 0.95) -> Interval | None:
    """Interval of first - second over the seeds that both have; None if they share none."""
    shared = sorted(first.keys() & second.keys())
    return interval([first[seed] - second[seed] for seed in shared], confidence) if shared else None
