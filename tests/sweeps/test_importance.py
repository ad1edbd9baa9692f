"""Importance of hyperparameters: what decides the score has it, and too few trials have none."""

from __future__ import annotations

import math
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution

from kdbench.results.analysis.tried import Trial
from kdbench.sweeps.importance import FEWEST, importance_of
from kdbench.sweeps.suites.tuning import Space

SPACE: Space = {
    "lr": FloatDistribution(1e-3, 1.0, log=True),
    "alpha": FloatDistribution(0.0, 0.5),
    "form": CategoricalDistribution(("kl", "mse")),
}


def trials(count: int, status: Any = "complete") -> list[Trial]:
    """Trials whose score depends on the learning rate alone; some values are beyond the range, as first trials' are."""
    settings = [
        {"lr": 10 ** (-3 + 3 * (7 * n % count) / count), "alpha": (5 * n % count) / count, "form": ("kl", "mse")[n % 2]}
        for n in range(count)
    ]
    return [
        Trial("toy@1", number, each, status, 0.5 + math.log10(each["lr"]) / 10, 3)  # type: ignore[arg-type]
        for number, each in enumerate(settings)
    ]


def test_what_decides_the_score_is_important_and_the_seed_is_fixed() -> None:
    found = importance_of(trials(20), SPACE)
    assert next(iter(found)) == "lr" and found["lr"] > 0.8 and abs(sum(found.values()) - 1) < 1e-6
    assert found == importance_of(trials(20), SPACE)


def test_too_few_complete_trials_have_none() -> None:
    assert importance_of(trials(FEWEST - 1) + trials(FEWEST, "pruned"), SPACE) == {}
    assert importance_of([], SPACE) == importance_of(trials(FEWEST), {}) == {}
    alike = [Trial("toy@1", each.number, each.setting, "complete", 0.5, 3) for each in trials(FEWEST)]
    assert importance_of(alike, SPACE) == {}
