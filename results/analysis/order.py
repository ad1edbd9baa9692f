"""Whether ours have the paper's order: Kendall's tau between the published numbers and those of each of our seeds.

A gain over one student has the order of the number itself, so either may be ranked. The paper's order is taken as it is
printed, mostly of one run a row; tau is what one run of each row of ours gives, which seeds repeat, so that its mean
has Student's interval. (A bootstrap of the order of means held the true one in a half to nine tenths of cases with
three seeds, not in 95 %.) Kendall (1938), A new measure of rank correlation; tau-b where numbers are tied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kdbench.results.analysis.statistics import FEWEST, ROUNDING, Interval, interval

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ordered:
    """A number to rank; higher is better in both."""

    stratum: object
    """Numbers are ranked among those of their own stratum alone."""
    published: float
    ours: Mapping[int, float]
    """By seed."""


@dataclass(frozen=True)
class Order:
    """How far ours have the paper's order."""

    over: str
    """Names the rows that are ranked; empty for all of a table."""
    rows: int
    tau: Interval
    """Mean over the seeds that all rows have: 1 if ours have the paper's order, -1 if it is reversed.

    Without a half-width for fewer than FEWEST seeds, and where all have the same tau, which shows no spread.
    """


def order(over: str, rows: Sequence[Ordered]) -> Order | None:
    """Kendall's tau of rows; None if they share no seed, or fewer than three of one stratum are there to rank."""
    seeds = sorted(set.intersection(*(set(row.ours) for row in rows))) if rows else []
    strata = [row.stratum for row in rows]
    if not seeds or max(map(strata.count, strata)) < 3:
        return None
    ours = np.array([[row.ours[seed] for row in rows] for seed in seeds])
    tau = interval([float(each) for each in kendall(np.array([row.published for row in rows]), ours, strata)])
    if len(seeds) < FEWEST or (tau.half_width or 0.0) < ROUNDING:
        tau = replace(tau, half_width=None)
    return Order(over, len(rows), tau)


def kendall(published: Array, ours: Array, strata: Sequence[object]) -> Array:
    """Kendall's tau-b over the pairs of rows of one stratum; 0 where all of either are tied.

    Args:
        published: (rows,).
        ours: (..., rows).
        strata: one for each row.

    Returns:
        (...), from -1 to 1.
    """
    pairs = [(i, j) for i in range(len(strata)) for j in range(i) if strata[i] == strata[j]]
    first, second = np.array(pairs, int).reshape(-1, 2).T
    theirs, mine = (_signs(each[..., first] - each[..., second]) for each in (published, ours))
    untied = np.sqrt(np.abs(theirs).sum() * np.abs(mine).sum(axis=-1))
    return np.asarray((mine * theirs).sum(axis=-1) / np.maximum(untied, 1.0))


def _signs(differences: Array) -> Array:
    """-1, 0 or 1; 0 within ROUNDING of zero."""
    return np.asarray(np.sign(np.where(np.abs(differences) > ROUNDING, differences, 0.0)))
