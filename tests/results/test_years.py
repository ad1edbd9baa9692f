from __future__ import annotations

import re

import numpy as np
import pytest

from kdbench.bench.errors import InputError
from kdbench.results.analysis.years import Trends, by_year
from kdbench.results.pages.report import render
from kdbench.results.pages.years import years_report
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from tests.results.conftest import SUITE, Finish, outcome

PAIR = "large -> small"
YEARS = {"kd": 2015, "at": 2017, "sp": 2019, "crd": 2020, "dkd": 2022, "student": 2000}
RISING = {name: 0.8 + 0.005 * (year - 2015) for name, year in YEARS.items() if name != "student"}


def trends(store: RunStore, finish: Finish, scores: dict[str, float], seeds: int = 4, **years: int) -> Trends:
    """Of methods whose score each seed moves, and the same for all, but for `dkd`."""
    given = dict.fromkeys(scores, "labels and a teacher") | {"student": "labels alone"}
    form = SUITE | {"pairs": [{"teacher": "large", "student": "small", "methods": list(scores)}], "given": given}
    plan = SweepPlan.create(store.root, "toy", "abcd1234", form | {"seeds": seeds})
    for method, score in scores.items():
        for seed in range(seeds):
            moved = score + 0.01 * seed + (0.002 * seed if method == "dkd" else 0.0)
            finish(f"{method}-{seed}", outcome(moved))
            plan.add(Planned(PAIR, method, "seed", seed, f"{method}-{seed}"))
    return by_year(plan, store, YEARS | years)


def test_scores_that_rise_by_half_a_point_a_year_are_five_in_a_decade(store: RunStore, finish: Finish) -> None:
    (trend,) = trends(store, finish, {**RISING, "student": 0.5}).pairs
    assert [row.method for row in trend.rows] == ["kd", "at", "sp", "crd", "dkd"], "what asks no teacher is left out"
    assert [row.gain and round(row.gain.mean, 4) for row in trend.rows] == [None, 0.01, 0.02, 0.025, 0.038]
    when = np.array([2015, 2017, 2019, 2020, 2022])
    pull = float((when - when.mean())[-1] / np.square(when - when.mean()).sum()) * 0.003  # of dkd's own rise
    assert trend.slope and trend.slope.mean == pytest.approx(0.05 + 10 * pull) and trend.slope.count == 4
    assert trend.tau and trend.tau.tau.mean == pytest.approx(1)
    assert trend.p == pytest.approx(2 / 120, abs=0.01), "of 120 orders this one and its reverse are as steep"


def test_an_order_without_years_in_it_has_a_large_p(store: RunStore, finish: Finish) -> None:
    found = trends(store, finish, {"kd": 0.8, "at": 0.83, "sp": 0.79, "crd": 0.82, "dkd": 0.8})
    (trend,) = found.pairs
    assert trend.p and trend.p > 0.5
    text = render(years_report(found), "markdown")
    assert re.search(r"\| 2017 +\| at +\| \+3\.0 ", text) and "in 10 years; Kendall's tau with the year" in text


def test_too_few_methods_have_no_slope(store: RunStore, finish: Finish) -> None:
    found = trends(store, finish, {"kd": 0.8, "at": 0.83})
    assert found.pairs[0].slope is None and "Too few methods" in render(years_report(found), "terminal")


def test_a_suite_without_its_baseline_is_refused(store: RunStore, finish: Finish) -> None:
    with pytest.raises(InputError, match="has no finished run of kd"):
        trends(store, finish, {"at": 0.8, "sp": 0.8})
