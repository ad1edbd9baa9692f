from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from kdbench.results.analysis.order import Ordered, kendall, order


def rows(published: list[float], ours: list[list[float]], stratum: str = "") -> list[Ordered]:
    pairs = zip(published, ours, strict=True)
    return [Ordered(stratum, value, dict(enumerate(seeds, start=1))) for value, seeds in pairs]


def test_kendall_is_scipys_with_and_without_ties() -> None:
    draw = np.random.default_rng(0)
    for ties in (False, True):
        for _ in range(20):
            published, ours = draw.normal(size=7), draw.normal(size=7)
            if ties:
                published, ours = published.round(), ours.round()
            expected = stats.kendalltau(published, ours).statistic
            assert kendall(published, ours, [0] * 7) == pytest.approx(expected)


def test_strata_are_ranked_apart() -> None:
    ours = np.array([1.0, 2.0, 20.0, 10.0])
    # two pairs within strata, one in order and one reversed; across strata all four are in order
    assert kendall(np.array([1.0, 2.0, 3.0, 4.0]), ours, "aabb") == 0
    assert kendall(np.ones(4), ours, "aaaa") == 0


def test_order_is_the_mean_over_seeds() -> None:
    alike = order("b", rows([1, 2, 3], [[1.0, 1.1, 1.2], [2.0, 2.1, 2.2], [3.0, 3.1, 3.2]]))
    assert alike is not None and (alike.tau.mean, alike.tau.half_width, alike.tau.count) == (1.0, None, 3)
    # of three pairs: all in order, two, and one: 1, 1/3, -1/3; mean 1/3, standard deviation 2/3
    found = order("b", rows([1, 2, 3], [[1, 2, 2], [2, 1, 3], [3, 3, 1]]))
    assert found is not None and found.tau.mean == pytest.approx(1 / 3) and found.rows == 3
    assert found.tau.half_width == pytest.approx(4.302653 * (2 / 3) / 3**0.5, abs=1e-5)


def test_two_rows_two_seeds_and_no_shared_seed() -> None:
    assert order("b", rows([1, 2], [[1.0], [2.0]])) is None and order("b", []) is None
    few = order("b", rows([1, 2, 3], [[1.0, 2.0], [2.0, 1.0], [3.0, 3.0]]))
    assert few is not None and few.tau.mean == pytest.approx(2 / 3) and few.tau.half_width is None
    apart = [*rows([1, 2], [[1.0], [2.0]]), Ordered("", 3.0, {9: 1.0})]
    assert order("b", apart) is None
    assert order("b", [*rows([1, 2], [[1.0], [2.0]], "a"), *rows([3, 4], [[1.0], [2.0]], "b")]) is None


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("gaps", [0.3, 1.0])
def test_interval_holds_the_tau_of_a_run(seeds: int, gaps: float) -> None:
    draw = np.random.default_rng(seeds)
    truth, published = gaps * np.array([0.0, 1.0, 3.0, 2.0, 4.0]), np.arange(1.0, 6.0)
    expected = kendall(published, truth + draw.normal(size=(100_000, 5)), "aaaaa").mean()
    found = [order("", rows(list(published), (truth + draw.normal(size=(seeds, 5))).T.tolist())) for _ in range(400)]
    taus = [each.tau for each in found if each and each.tau.half_width]
    assert len(taus) > 350
    assert np.mean([abs(tau.mean - expected) <= (tau.half_width or 0) for tau in taus]) > 0.92
