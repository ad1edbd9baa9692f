"""Whether a number of ours agrees with the published one: equivalent, different, or inconclusive.

Ours are n values, one a seed; the published number is a mean of m, of 1 where the paper does not say. Both being draws,
their difference has the standard error s sqrt(1/n + 1/m), with our s where the paper prints no spread. Where it prints
one, each has its own s, and the fewer degrees of freedom of the two bound the error (Mickey and Brown 1966).

Two questions are asked. Does the difference differ from zero? A two-sided t-test. Is it nearer to zero than the margin
that the table's protocol declares? Two one-sided t-tests (Schuirmann 1987, A comparison of the two one-sided tests
procedure and the power approach). Where both say yes, the difference is real and too small to matter: equivalent.

Each question is one family over the numbers of a table (Holm 1979), and so is it over its gains. So in each of the two
the chance of any "different" is at most 5 % where ours and the paper's come from one distribution, and that of any
"equivalent" is at most 5 % where the truth lies outside the margin; `tests/results/test_verdict.py` measures both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kdbench.results.analysis.literature import Published
from kdbench.results.analysis.paper_table import Wanted
from kdbench.results.analysis.statistics import FEWEST, LEVEL, ROUNDING, holm

Verdict = Literal["equivalent", "different", "inconclusive", "not comparable", "not run", "not published"]
Array = npt.NDArray[np.float64]
TOO_FEW = f"fewer than {FEWEST} seeds"
NO_SPREAD = "all seeds gave one value, so no spread"
ONE_NETWORK = "published weights, so one network"
MEDIAN = math.pi / 2
"""The variance of a median is at most so many times that of a mean, for normal values of whatever number."""


@dataclass(frozen=True)
class Judgement:
    """What is said of a number beside the published one."""

    verdict: Verdict
    reason: str = ""
    difference: float | None = None
    """Ours less the published."""
    half_width: float | None = None
    """That of the difference's 95 % predictive interval, taken alone."""
    p_different: float | None = None
    """P value of the two-sided test, corrected for the family."""
    p_equivalent: float | None = None
    """P value of the two one-sided tests, corrected for the family."""

    def __str__(self) -> str:
        """The verdict with its reason."""
        return f"{self.verdict}: {self.reason}" if self.reason else self.verdict


@dataclass(frozen=True)
class Error:
    """How far a published number lies from the mean that it estimates."""

    variance: Array
    """Of shape (...), the squared standard error, in the number's squared unit."""
    freedom: float | None
    """Its degrees of freedom; None where it is our spread, or the paper's count of seeds is not known."""


@dataclass(frozen=True)
class Gap:
    """Ours less the published, with all that a t-test takes."""

    value: Array
    """(...), in the number's unit."""
    error: Array
    """(...), its standard error."""
    freedom: float
    """Degrees of freedom: the fewest of any spread in it, with which the test errs on the safe side."""
    seeds: int
    """The number of ours; the error is nan if it is one."""

    def half_width(self) -> Array:
        """That of the 95 % predictive interval."""
        from scipy import stats

        return np.asarray(stats.t.ppf(1 - LEVEL / 2, self.freedom) * self.error)

    def p_different(self) -> Array:
        """Two-sided p value of no difference."""
        from scipy import stats

        return np.asarray(2 * stats.t.sf(np.abs(self.value) / self.error, self.freedom))

    def p_equivalent(self, margin: float) -> Array:
        """P value of a difference of the margin or more, the larger one of two one-sided tests (Schuirmann 1987)."""
        from scipy import stats

        return np.asarray(stats.t.sf((margin - np.abs(self.value)) / self.error, self.freedom))


@dataclass(frozen=True)
class Question:
    """One number, or one gain, beside the published one."""

    want: Wanted
    gap: Gap
    margin: float
    """In the number's unit: a smaller difference does not matter."""
    lower: bool
    """Whether lower is better."""


def error_of(published: Published, ours: Array, median: bool = False) -> Error:
    """The error of a published number; of what its spread or its seeds may mean, the largest that it can be.

    Args:
        published: a number with its spread and its count of seeds m, as far as the paper prints them.
        ours: (..., n), our values by seed, whose variance counts where the paper prints no spread.
        median: whether the published number is a median of its seeds.
    """
    from scipy import stats

    seeds, spread = published.seeds or 1, published.spread
    factor = MEDIAN if median and seeds > 2 else 1.0
    if spread is None:
        return Error(factor * _variance(ours) / seeds, None)
    freedom = seeds - 1 if seeds > 1 and published.spread_kind != "undefined" else None
    if published.spread_kind == "ci95":
        spread /= float(stats.t.ppf(0.975, freedom or math.inf))
    elif published.spread_kind == "std":
        spread *= math.sqrt(factor / seeds)
    return Error(np.asarray(spread**2), freedom)


def gap(ours: Array, published: float | Array, errors: Sequence[Error]) -> Gap:
    """Ours less the published.

    Args:
        ours: (..., n), values by seed.
        published: (...), the paper's number, or the difference of two.
        errors: of every number that the published one is made of.
    """
    seeds = ours.shape[-1]
    error = np.sqrt(_variance(ours) / seeds + sum(each.variance for each in errors))
    freedom = min([seeds - 1.0, *(each.freedom for each in errors if each.freedom is not None)])
    return Gap(np.mean(ours, axis=-1) - published, error, freedom, seeds)


def _variance(ours: Array) -> Array:
    """Of the last axis; nan of one value."""
    return np.var(ours, axis=-1, ddof=1) if ours.shape[-1] > 1 else np.full(ours.shape[:-1], math.nan)


def unable(found: Gap, incomparable: str = "") -> str:
    """Why a number cannot be judged; empty if it can.

    Args:
        found: its gap to the published number.
        incomparable: a reason that was known before.
    """
    return incomparable or (TOO_FEW if found.seeds < FEWEST else NO_SPREAD if found.error < ROUNDING else "")


def judged(family: Sequence[Question]) -> list[Judgement]:
    """The verdicts of one family: on all numbers of a table, or on all its gains."""
    different = holm([float(each.gap.p_different()) for each in family])
    equivalent = holm([float(each.gap.p_equivalent(each.margin)) for each in family])
    found = []
    for each, differs, alike in zip(family, different, equivalent, strict=True):
        difference = float(each.gap.value)
        verdict, reason = _verdict(each, difference, differs, alike)
        found.append(Judgement(verdict, reason, difference, float(each.gap.half_width()), differs, alike))
    return found


def _verdict(asked: Question, difference: float, differs: float | None, alike: float | None) -> tuple[Verdict, str]:
    if alike is not None and alike < LEVEL:
        return "equivalent", f"within {amount(asked.want, asked.margin)}"
    if differs is not None and differs < LEVEL:
        worse = (difference > 0) == asked.lower
        return "different", f"{'worse' if worse else 'better'} by {amount(asked.want, difference)}"
    return "inconclusive", ""


def amount(want: Wanted, difference: float) -> str:
    """A difference in words, as "12 errors"."""
    size = abs(difference)
    return f"{size:.3g} errors" if want.unit == "errors" else f"{size:.2f} points"
