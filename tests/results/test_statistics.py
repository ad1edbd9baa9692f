from __future__ import annotations

import math
import random

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from kdbench.results.analysis.statistics import (
    ROUNDING,
    could_be_best,
    critical_difference,
    differences,
    holm,
    iman_davenport,
    interval,
    probability_better,
    ranking,
    share_won,
    t_test,
    wilcoxon,
)

DEMSAR_METHODS = ["C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf"]
DEMSAR = [
    [0.763, 0.768, 0.771, 0.798],
    [0.599, 0.591, 0.590, 0.569],
    [0.954, 0.971, 0.968, 0.967],
    [0.628, 0.661, 0.654, 0.657],
    [0.882, 0.888, 0.886, 0.898],
    [0.936, 0.931, 0.916, 0.931],
    [0.661, 0.668, 0.609, 0.685],
    [0.583, 0.583, 0.563, 0.625],
    [0.775, 0.838, 0.866, 0.875],
    [1.000, 1.000, 1.000, 1.000],
    [0.940, 0.962, 0.965, 0.962],
    [0.619, 0.666, 0.614, 0.669],
    [0.972, 0.981, 0.975, 0.9749],  # printed as 0.975 twice, but ranked 2 and 3
    [0.957, 0.978, 0.946, 0.970],
]
"""Table 6 of Demšar (2006): AUC of four learners on fourteen data sets."""
FIVE = [0.01, 0.02, 0.03, 0.04, 0.05]
"""Mean 0.03, standard deviation sqrt(0.00025) = 0.0158114, standard error 0.00707107."""


def test_interval_by_hand() -> None:
    # 1, 2, 3: mean 2, standard deviation 1, t(0.975, 2) = 4.302653, so 4.302653 / sqrt(3) = 2.484138
    result = interval([1.0, 2.0, 3.0])
    assert result.mean == 2.0 and result.count == 3
    assert result.half_width == pytest.approx(2.484138, abs=1e-6)


def test_interval_of_one_value_has_no_width() -> None:
    assert interval([0.9]).half_width is None


def test_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        interval([])
    with pytest.raises(ValueError, match="at least one"):
        share_won([])


def test_differences_are_of_shared_seeds_alone() -> None:
    assert differences({2: 0.5, 1: 0.75, 3: 1.0}, {1: 0.25, 2: 0.25, 4: 9.0}) == [0.5, 0.25]
    assert differences({1: 0.9}, {2: 0.9}) == []


def test_t_test_by_hand() -> None:
    # t = 0.03 / 0.00707107 = 4.242641 with 4 degrees of freedom. In closed form, with x = t / sqrt(4 + t^2):
    # cdf = 1/2 + (3/4) (x - x^3 / 3); x = 0.904534, so cdf = 0.993382 and the p value 0.013236
    assert t_test(FIVE) == pytest.approx(0.013236, abs=2e-6)
    # of two: t = 3 with 1 degree of freedom: 1 - 2 atan(3) / pi
    assert t_test([0.01, 0.02]) == pytest.approx(1 - 2 * math.atan(3) / math.pi)


def test_t_test_is_below_a_twentieth_just_where_the_interval_excludes_zero() -> None:
    draw = random.Random(0)
    for _ in range(200):
        values = [draw.gauss(0.01, 0.01) for _ in range(draw.randint(2, 8))]
        found = interval(values)
        assert (t_test(values) < 0.05) is (abs(found.mean) > found.half_width)  # type: ignore[operator]


def test_student_1908_sleep_data() -> None:
    # the paper's own example, hours of sleep gained by two drugs: mean 1.58, t = 4.06, p = 0.0028
    gained = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    assert t_test(gained) == pytest.approx(0.002833, abs=1e-6)
    # nine differ from zero and all are positive; 1.3 twice share a rank, which changes no sum: 2 / 2^9
    assert wilcoxon(gained) == pytest.approx(2 / 2**9)


def test_wilcoxon_by_hand() -> None:
    # six of one sign: 2 / 2^6. With the least negative, W = 1: two of 64 sums are 0 or 1, both tails make 4 / 64
    six = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]
    assert wilcoxon(six) == pytest.approx(2 / 64)
    assert wilcoxon([-0.01, *six[1:]]) == pytest.approx(4 / 64)
    assert wilcoxon(FIVE) is None
    # Demšar (2006), section 3.1.3: C4.5 with and without m differ at 0.05
    assert wilcoxon([row[1] - row[0] for row in DEMSAR]) < 0.05  # type: ignore[operator]


@pytest.mark.parametrize("count", [6, 9, 13, 14])
def test_wilcoxon_is_that_of_scipy_with_and_without_equal_differences(count: int) -> None:
    draw = random.Random(count)
    for values in ([draw.gauss(0.01, 0.02) for _ in range(count)], [draw.choice([-1, 1, 2, 3]) for _ in range(count)]):
        assert wilcoxon(values) == pytest.approx(stats.wilcoxon(values).pvalue)


def test_share_won_counts_a_tie_as_half() -> None:
    assert share_won([0.1, -0.1, 0.0, 0.2]) == 2.5 / 4
    assert share_won([1e-8, -1e-8]) == 0.5, "32-bit noise is a tie"


def test_probability_better_by_hand() -> None:
    # one more difference: t = 0.03 / (0.0158114 sqrt(1 + 1/5)) = sqrt(3), 4 degrees of freedom: x = sqrt(3 / 7)
    x = math.sqrt(3 / 7)
    assert probability_better(FIVE) == pytest.approx(1 / 2 + 3 / 4 * (x - x**3 / 3))
    # of two, 1 and 3: t = 2 / (sqrt(2) sqrt(3/2)) = 2 / sqrt(3), 1 degree of freedom
    assert probability_better([1.0, 3.0]) == pytest.approx(1 / 2 + math.atan(2 / math.sqrt(3)) / math.pi)


def test_a_beats_b_and_b_beats_a_add_up_to_one() -> None:
    draw = random.Random(1)
    for _ in range(100):
        gains = [draw.choice([0.0, 0.01, draw.gauss(0, 0.02)]) for _ in range(draw.randint(2, 9))]
        losses = [-gain for gain in gains]
        assert share_won(gains) + share_won(losses) == pytest.approx(1)
        assert probability_better(gains) + probability_better(losses) == pytest.approx(1)  # type: ignore[operator]
        assert t_test(gains) == pytest.approx(t_test(losses)) and wilcoxon(gains) == wilcoxon(losses)


@pytest.mark.parametrize(("constant", "p", "probability"), [(0.01, 0.0, 1.0), (0.0, 1.0, 0.5), (-0.01, 0.0, 0.0)])
def test_equal_differences_are_the_limit(constant: float, p: float, probability: float) -> None:
    for noise in (0.0, ROUNDING / 100):
        values = [constant, constant + noise, constant - noise]
        assert t_test(values) == p and probability_better(values) == probability
        assert share_won(values) == probability
    assert wilcoxon([constant] * 6) == pytest.approx(1.0 if constant == 0 else 2 / 64)


def test_one_difference_has_no_test() -> None:
    assert t_test([0.1]) is None and probability_better([0.1]) is None and share_won([0.1]) == 1


def test_holm_by_hand() -> None:
    # 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1, which is raised to the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.6]) == [1.0, None, 1.0] and holm([]) == []
    # Demšar (2006), section 3.2.3: the first two stand against 0.017 and 0.025, the third does not
    assert holm([0.607, 0.016, 0.019]) == pytest.approx([0.607, 0.048, 0.048])


def test_holm_lies_between_no_correction_and_bonferroni() -> None:
    draw = random.Random(3)
    for _ in range(100):
        values = [draw.random() ** 3 for _ in range(draw.randint(1, 10))]
        corrected = [value for value in holm(values) if value is not None]
        bounds = zip(values, corrected, strict=True)
        assert all(value <= ours <= min(1, value * len(values)) for value, ours in bounds)
        assert sorted(range(len(values)), key=values.__getitem__) == sorted(
            range(len(values)), key=lambda index: (corrected[index], values[index])
        )


def rows(values: npt.NDArray[np.float64]) -> dict[str, dict[int, float]]:
    """Scores (methods, seeds) by name and seed."""
    return {str(index): dict(enumerate(map(float, row))) for index, row in enumerate(values)}


def test_comparisons_with_the_best_by_hand() -> None:
    noise = {1: 0.0, 2: 0.1, 3: -0.1}
    best = {seed: 10 + 5 * value for seed, value in noise.items()}
    near = {seed: value - 0.2 - noise[seed] for seed, value in best.items()}
    # behind by 0.2, 0.3 and 0.1: t = 0.2 sqrt(3) / 0.1 = 3.46, one-sided p 0.037 with 2 degrees: out of two, not three
    assert could_be_best({"best": best, "near": near}) == {"best"}
    far = {seed: value - 5 + noise[seed] / 10 for seed, value in best.items()}
    assert could_be_best({"best": best, "near": near, "far": far}) == {"best", "near"}


def test_the_best_of_few_seeds_or_of_none_is_anyones() -> None:
    assert could_be_best({"a": {1: 0.9, 2: 0.9}, "b": {1: 0.1, 2: 0.1}}) == {"a", "b"}
    assert could_be_best({"a": {1: 0.9, 2: 0.9, 3: 0.9}, "b": {1: 0.1, 2: 0.1}}) == {"a", "b"}
    assert could_be_best({"a": {1: 0.9}}) == {"a"} and could_be_best({}) == set()
    whole = {1: 0.9, 2: 0.8, 3: 0.85, 4: 0.9}
    missing = {seed: value - 0.3 - seed / 100 for seed, value in whole.items() if seed != 2}
    assert could_be_best({"a": whole, "b": missing}) == {"a"}


def test_rows_without_spread_are_told_apart_unless_they_are_equal() -> None:
    same = dict.fromkeys((1, 2, 3), 0.5)
    assert could_be_best({"a": same, "b": dict(same), "c": dict.fromkeys((1, 2, 3), 0.4)}) == {"a", "b"}


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_best_is_lost_at_most_once_in_twenty(seeds: int) -> None:
    """Rows with one mean, each with its own spread, on seeds that move them together."""
    draw, count = np.random.default_rng(seeds), 400
    spread = np.array([0.1, 1, 1, 10])[:, None]
    tables = [spread * draw.normal(size=(4, seeds)) + draw.normal(size=seeds) for _ in range(count)]
    found = [could_be_best(rows(table)) for table in tables]
    kept = np.array([[str(row) in possible for row in range(4)] for possible in found])
    assert (1 - kept.mean(axis=0)).max() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / count)


@pytest.mark.parametrize("seeds", [3, 5])
def test_any_row_is_marked_as_unlike_its_control_at_most_once_in_twenty(seeds: int) -> None:
    draw, count, wrong = np.random.default_rng(seeds), 400, 0
    for _ in range(count):
        control, *others = draw.normal(size=(5, seeds)) + draw.normal(size=seeds)
        corrected = holm([t_test(list(other - control)) for other in others])
        wrong += min(p for p in corrected if p is not None) < 0.05
    assert wrong / count <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / count)


def test_ranks_of_demsar_2006() -> None:
    found = ranking([dict(zip(DEMSAR_METHODS, row, strict=True)) for row in DEMSAR])
    published = {"C4.5": 3.143, "C4.5+m": 2.000, "C4.5+cf": 2.893, "C4.5+m+cf": 1.964}
    assert found.ranks == pytest.approx(published, abs=5e-4) and found.blocks == 14
    assert list(found.ranks) == ["C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5"]
    # published 9.28 without the correction for ties: three pairs and one four of them, 3 * 6 + 60 of 14 (4^3 - 4)
    assert found.friedman * (1 - 78 / 840) == pytest.approx(9.28, abs=0.005)
    assert found.friedman_p == pytest.approx(stats.chi2.sf(found.friedman, 3))
    # published: 1.25 at 0.05; the largest difference, 1.18, is less, so that all are one group
    assert found.critical_difference == pytest.approx(1.25, abs=0.005)
    assert found.groups == [list(found.ranks)]


def test_iman_davenport_of_demsar_2006() -> None:
    value, p_value = iman_davenport(9.28, 4, 14)
    assert value == pytest.approx(3.69, abs=0.005)
    # published: the critical value of F(3, 39) at 0.05 is 2.85
    assert p_value == pytest.approx(stats.f.sf(3.687, 3, 39), abs=1e-4) and p_value < 0.05
    assert iman_davenport(4.0, 3, 2) == (None, None)


@pytest.mark.parametrize(
    ("methods", "quantile"),
    [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (7, 2.949), (8, 3.031), (9, 3.102), (10, 3.164)],
)
def test_critical_difference_has_demsars_quantiles(methods: int, quantile: float) -> None:
    # table 5 (a); k (k + 1) / 6 N is 1 for N = k (k + 1) / 6, so take the root out
    unit = math.sqrt(methods * (methods + 1) / (6 * 30))
    assert critical_difference(methods, 30) / unit == pytest.approx(quantile, abs=0.001)


def test_ranking_by_hand() -> None:
    # a first in all of four blocks; b and c share the others: sums of ranks 4, 10, 10
    # chi-squared = 12 / (4 * 3 * 4) (16 + 100 + 100) - 3 * 4 * 4 = 54 - 48 = 6; F = 3 * 6 / (4 * 2 - 6) = 9
    blocks = [{"a": 0.9, "b": 0.8, "c": 0.7}, {"a": 0.9, "b": 0.7, "c": 0.8}] * 2
    found = ranking(blocks)
    assert found.ranks == {"a": 1.0, "b": 2.5, "c": 2.5}
    assert found.friedman == pytest.approx(6) and found.friedman_p == pytest.approx(math.exp(-3))
    # F with 2 and 6 degrees of freedom: (1 + F / 3)^-3
    assert found.iman_davenport == pytest.approx(9) and found.iman_davenport_p == pytest.approx(4**-3)
    # 2.343 sqrt(3 * 4 / (6 * 4)) = 1.657
    assert found.critical_difference == pytest.approx(1.657, abs=1e-3)
    assert found.groups == [["a", "b", "c"]]
    assert found.nemenyi["b"]["c"] == pytest.approx(1) and found.nemenyi["a"]["b"] == found.nemenyi["b"]["a"]


def test_groups_are_the_largest_runs_that_are_not_told_apart() -> None:
    # four methods in one order in all of twelve blocks: ranks 1 to 4; 2.569 sqrt(4 * 5 / (6 * 12)) = 1.354
    found = ranking([{"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6}] * 12)
    assert found.groups == [["a", "b"], ["b", "c"], ["c", "d"]] and found.iman_davenport is None
    for first, one in found.ranks.items():
        for second, other in found.ranks.items():
            apart = abs(one - other) >= found.critical_difference
            assert (found.nemenyi[first][second] < 0.05) is apart
            assert any({first, second} <= set(group) for group in found.groups) is not apart or first == second


def test_blocks_in_which_all_are_equal_show_no_difference() -> None:
    # 32-bit floats of equal shares, as means over seeds make them
    found = ranking([{"a": 0.97885954, "b": 0.97885952, "c": 0.9788595}] * 3)
    assert set(found.ranks.values()) == {2.0} and (found.friedman, found.friedman_p) == (0.0, 1.0)


@pytest.mark.parametrize("blocks", [[], [{"a": 1, "b": 2, "c": 3}], [{"a": 1, "b": 2}] * 3, [{"a": 1}, {"b": 1}]])
def test_too_few_blocks_or_methods_are_refused(blocks: list[dict[str, float]]) -> None:
    with pytest.raises(ValueError, match="ranks take 2 blocks"):
        ranking(blocks)
