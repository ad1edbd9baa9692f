from __future__ import annotations

import pytest

from results.statistics import interval, paired


def test_interval_by_hand() -> None:
    # 1, 2, 3: mean 2, standard deviation 1, t(0.975, 2) = 4.302653, so 4.302653 / sqrt(3) = 2.484138
    result = interval([1.0, 2.0, 3.0])
    assert result.mean == 2.0 and result.count == 3
    assert result.half_width == pytest.approx(2.484138, abs=1e-6)
    assert result.includes_zero


def test_interval_of_one_value_has_no_width() -> None:
    result = interval([0.9])
    assert result.half_width is None and result.includes_zero


def test_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        interval([])


def test_paired_uses_shared_seeds_alone() -> None:
    result = paired({1: 0.9, 2: 0.8, 3: 0.1}, {1: 0.8, 2: 0.7, 4: 0.9})
    assert result is not None and result.count == 2
    assert result.mean == pytest.approx(0.1) and result.half_width == pytest.approx(0.0, abs=1e-12)
    assert not result.includes_zero
    assert paired({1: 0.9}, {2: 0.9}) is None


def test_pairing_removes_what_seeds_share() -> None:
    noise = {seed: 0.1 * seed for seed in range(1, 6)}
    better = {seed: value + 0.01 + 0.001 * (seed % 2) for seed, value in noise.items()}
    gain = paired(better, noise)
    assert gain is not None and not gain.includes_zero
    assert interval(list(better.values())).half_width > 0.1  # type: ignore[operator]
