"""The error rates of verdicts, by simulation, and what they say by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from kdbench.results.analysis.literature import Published, load
from kdbench.results.analysis.paper_table import Wanted
from kdbench.results.analysis.verdict import Array, Error, Gap, Question, error_of, gap, judged, unable

PLAIN = next(row for row in load() if row.table == "vid2019_cifar10" and row.method == "vid" and not row.part)
WANT = Wanted("a -> b", "vid", "vid", "accuracy_top1", PLAIN)
TABLES = 40_000
MARGIN = 0.5
SLACK = 3 * math.sqrt(0.05 * 0.95 / TABLES)
"""Three standard errors of a rate of 5 %."""


def printed(spread: float | None = None, kind: str = "", seeds: int | None = None) -> Published:
    return PLAIN.model_copy(update={"spread": spread, "spread_kind": kind, "seeds": seeds})


def simulated(ours: int, theirs: int, gap_of_means: float, sigma: float, spread: bool, median: bool = False) -> Gap:
    """The gaps of many numbers: `ours` seeds against a mean of `theirs`, printed with or without its spread."""
    draw = np.random.default_rng(ours + 100 * theirs)
    mine = draw.normal(gap_of_means, sigma, (TABLES, ours))
    published = draw.normal(0.0, sigma, (TABLES, theirs))
    if spread:
        errors = [Error(published.var(axis=1, ddof=1) / theirs, theirs - 1.0)]
    else:
        errors = [error_of(printed(seeds=theirs), mine, median)]
    return gap(mine, np.median(published, axis=1) if median else published.mean(axis=1), errors)


@pytest.mark.parametrize("ours", [3, 5, 10])
@pytest.mark.parametrize(("theirs", "spread"), [(1, False), (3, False), (3, True), (5, True), (10, True)])
def test_different_is_wrong_at_most_once_in_twenty(ours: int, theirs: int, spread: bool) -> None:
    p_value = simulated(ours, theirs, 0.0, 1.0, spread).p_different()
    assert (p_value < 0.05).mean() <= 0.05 + SLACK


@pytest.mark.parametrize("ours", [3, 5, 10])
def test_intervals_that_take_the_published_number_as_exact_were_wrong(ours: int) -> None:
    """What was said before: above or below where the published number lies outside our 95 % interval."""
    draw = np.random.default_rng(ours)
    mine, published = draw.normal(size=(TABLES, ours)), draw.normal(size=TABLES)
    half = stats.t.ppf(0.975, ours - 1) * mine.std(axis=1, ddof=1) / math.sqrt(ours)
    wrong = (np.abs(mine.mean(axis=1) - published) > half).mean()
    assert wrong == pytest.approx({3: 0.16, 5: 0.32, 10: 0.51}[ours], abs=0.01)


@pytest.mark.parametrize("ours", [3, 5, 10])
@pytest.mark.parametrize("sigma", [0.05, 0.2, 1.0])
@pytest.mark.parametrize(("theirs", "spread"), [(1, False), (3, True), (10, True)])
def test_equivalent_is_wrong_at_most_once_in_twenty(ours: int, sigma: float, theirs: int, spread: bool) -> None:
    at_the_border = simulated(ours, theirs, MARGIN, sigma, spread).p_equivalent(MARGIN)
    assert (at_the_border < 0.05).mean() <= 0.05 + SLACK


@pytest.mark.parametrize("ours", [3, 5, 10])
def test_there_is_power_both_ways(ours: int) -> None:
    far = simulated(ours, 1, 10 * MARGIN, 0.2, spread=False)
    assert (far.p_different() < 0.05).mean() > 0.95 and (far.p_equivalent(MARGIN) < 0.05).mean() == 0
    alike = simulated(ours, 1, 0.0, 0.05, spread=False)
    assert (alike.p_equivalent(MARGIN) < 0.05).mean() > 0.95


@pytest.mark.parametrize("ours", [3, 5])
def test_a_median_of_five_is_judged_with_its_larger_error(ours: int) -> None:
    p_value = simulated(ours, 5, 0.0, 1.0, spread=False, median=True).p_different()
    assert 0.03 < (p_value < 0.05).mean() <= 0.05 + SLACK


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("ours", [3, 10])
def test_gains_paired_by_seed_are_no_more_often_wrong(ours: int, share: float) -> None:
    """Ours share a part of their variance by seed; the paper's two numbers, of one run each, may not."""
    draw = np.random.default_rng(ours)
    seed = math.sqrt(share) * draw.normal(size=(TABLES, ours))
    method, student = (seed + math.sqrt(1 - share) * draw.normal(size=(TABLES, ours)) for _ in range(2))
    published = draw.normal(size=TABLES) - draw.normal(size=TABLES)
    found = gap(method - student, published, [error_of(printed(), each) for each in (method, student)])
    assert (found.p_different() < 0.05).mean() <= 0.05 + SLACK


def tables(count: int, rows: int, truth: float, sigma: float) -> list[list[Question]]:
    draw = np.random.default_rng(rows)
    mine, published = draw.normal(truth, sigma, (count, rows, 3)), draw.normal(0, sigma, (count, rows))
    found = gap(mine, published, [error_of(printed(), mine)])
    return [
        [
            Question(WANT, Gap(found.value[i, j], found.error[i, j], found.freedom, 3), MARGIN, False)
            for j in range(rows)
        ]
        for i in range(count)
    ]


@pytest.mark.parametrize(("truth", "sigma", "wrong"), [(0.0, 1.0, "different"), (MARGIN, 0.05, "equivalent")])
def test_a_whole_table_is_wrong_at_most_once_in_twenty(truth: float, sigma: float, wrong: str) -> None:
    count = 400
    verdicts = [[each.verdict for each in judged(family)] for family in tables(count, 8, truth, sigma)]
    assert sum(wrong in table for table in verdicts) / count <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / count)


def judge(ours: Sequence[float], published: Published = PLAIN, **changes: Any) -> str:
    """The verdict on one number alone."""
    values: Array = np.array(ours)
    found = gap(values, published.value, [error_of(published, values)])
    if reason := unable(found):
        return reason
    want = replace(WANT, **changes)
    (answer,) = judged([Question(want, found, MARGIN, want.lower)])
    return str(answer)


def test_verdicts_by_hand() -> None:
    assert PLAIN.value == 91.85
    # mean 91.9, s = 0.05: error 0.05 sqrt(4/3) = 0.0577; (0.5 - 0.05) / 0.0577 = 7.79, one-sided p 0.008 with 2 degrees
    assert judge([91.85, 91.9, 91.95]) == "equivalent: within 0.50 points"
    # 0.75 / (0.1 sqrt(4/3)) = 6.5: p = 1 - t / sqrt(2 + t^2) = 0.023
    assert judge([91.0, 91.1, 91.2]) == "different: worse by 0.75 points"
    assert judge([91.0, 91.1, 91.2], metric="error_top1") == "different: better by 0.75 points"
    assert judge([91.0, 91.6, 92.2]) == "inconclusive"
    # a difference that is seen, and too small to matter
    assert judge([92.03, 92.04, 92.05]) == "equivalent: within 0.50 points"
    assert judge([85.0, 86.0, 87.0], printed().model_copy(update={"value": 50.0}), metric="test_errors") == (
        "different: worse by 36 errors"
    )


def test_nothing_is_said_of_two_seeds_or_of_no_spread() -> None:
    assert judge([91.0, 91.1]) == judge([91.0]) == "fewer than 3 seeds"
    assert judge([90.0, 90.0, 90.0]) == "all seeds gave one value, so no spread"
    assert judge([90.0, 90.0, 90.0], printed(0.2, "std", 3)) == "different: worse by 1.85 points"


def test_errors_of_published_numbers_by_hand() -> None:
    ours: Array = np.array([1.0, 2.0, 3.0])
    assert error_of(printed(), ours) == Error(np.float64(1.0), None)
    assert error_of(printed(seeds=5), ours).variance == pytest.approx(0.2)
    assert error_of(printed(seeds=5), ours, median=True).variance == pytest.approx(math.pi / 10)
    known = error_of(printed(0.3, "std", 4), ours)
    assert known.variance == pytest.approx(0.3**2 / 4) and known.freedom == 3
    # of an interval, t(0.975, 3) = 3.182446 standard errors; of unknown seeds 1.959964, which makes it larger
    assert error_of(printed(0.3, "ci95", 4), ours).variance == pytest.approx((0.3 / 3.182446) ** 2)
    assert error_of(printed(0.3, "ci95"), ours).variance == pytest.approx((0.3 / 1.959964) ** 2)
    for kind in ("std", "undefined"):
        unknown = error_of(printed(0.3, kind), ours)
        assert unknown.variance == pytest.approx(0.09) and unknown.freedom is None


def test_gap_has_welchs_statistic_and_the_fewer_degrees_of_freedom() -> None:
    draw = np.random.default_rng(0)
    ours, theirs = draw.normal(size=4), draw.normal(0, 3, 6)
    found = gap(ours, theirs.mean(), [error_of(printed(float(theirs.std(ddof=1)), "std", 6), ours)])
    statistic = stats.ttest_ind(ours, theirs, equal_var=False).statistic
    assert found.value / found.error == pytest.approx(statistic) and found.freedom == 3
    assert found.p_different() == pytest.approx(2 * stats.t.sf(abs(statistic), 3))
    assert found.half_width() == pytest.approx(stats.t.ppf(0.975, 3) * found.error)
