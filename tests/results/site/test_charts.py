"""Charts of plain values: what they draw of what, as the library's own schema has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pytest

from kdbench.bench.record import ACCURACY, Metric
from kdbench.results.analysis.statistics import interval, ranking
from kdbench.results.analysis.training import Confusion
from kdbench.results.analysis.tried import Trial
from kdbench.results.site import charts, tuning_charts
from kdbench.results.site.charts import Spec
from kdbench.results.site.facts import Searched
from kdbench.results.site.matrices import shares_of

ERROR = Metric(name="error", unit="", higher_is_better=False)


def trial(number: int, score: float | None, status: Any = "complete", chosen: bool = False, **setting: Any) -> Trial:
    return Trial("toy@1234", number, setting, status, score, 3, chosen)


TRIALS = [
    trial(0, 0.9, lr=0.001, form="kl"),
    trial(1, 0.95, lr=0.01, form="mse", chosen=True),
    trial(2, 0.2, "pruned", lr=0.1, form="kl"),
    trial(3, None, "no result", lr=1.0, form="kl"),
]
LR = Searched("lr", 0.001, 1.0, log=True)


def data(spec: Spec) -> Sequence[Mapping[str, Any]]:
    """The rows of a chart's only data."""
    (rows,) = spec["datasets"].values()
    return rows


def valid(spec: Spec) -> bool:
    """Whether the library takes the chart; raises otherwise."""
    return bool(alt.Chart.from_dict(spec, validate=True))


def test_score_over_a_hyperparameter_shows_every_scored_trial_as_what_it_is() -> None:
    spec = tuning_charts.over(TRIALS, LR, ACCURACY)
    assert [(row["value"], row["score"], row["state"]) for row in data(spec)] == [
        (0.001, 90.0, "complete"),
        (0.01, 95.0, "chosen"),
        (0.1, 20.0, "pruned"),
    ]
    assert spec["encoding"]["x"]["scale"]["type"] == "log" and valid(spec)
    form = tuning_charts.over(TRIALS, Searched("form", choices=("kl", "mse")), ACCURACY)
    assert form["encoding"]["x"]["type"] == "nominal" and form["encoding"]["x"]["sort"] == ["kl", "mse"] and valid(form)


def test_ranges_that_are_not_known_are_those_of_the_values() -> None:
    found = {each.name: each for each in tuning_charts.searched_in(TRIALS, [])}
    assert found["lr"] == Searched("lr", 0.001, 1.0, log=True) and found["form"].choices == ("kl", "mse")
    same = [trial(0, 0.1, lr=1.0, depth=2), trial(1, 0.2, lr=1.0, depth=4)]
    assert tuning_charts.searched_in(same, [LR]) == [Searched("depth", 2, 4, log=False)]


def test_parallel_coordinates_place_values_between_the_ends_that_were_tried() -> None:
    spec = tuning_charts.parallel(TRIALS, [LR, Searched("form", choices=("kl", "mse"))], ACCURACY)
    places = {(row["trial"], row["name"]): row["place"] for row in data(spec)}
    assert [places[f"toy {number}", "lr"] for number in range(3)] == [0.0, 0.5, 1.0]
    assert [places[f"toy {number}", "form"] for number in range(3)] == [0.0, 1.0, 0.0]
    assert alt.LayerChart.from_dict(spec, validate=True)


def test_importance_is_in_percent_the_largest_first() -> None:
    spec = tuning_charts.importance({"lr": 0.75, "form": 0.25})
    assert data(spec) == [{"name": "lr", "share": 75.0}, {"name": "form", "share": 25.0}]
    assert spec["encoding"]["y"]["sort"] == ["lr", "form"] and valid(spec)


def test_bars_of_ranks_overlap_just_where_rows_are_not_told_apart() -> None:
    blocks = [{"a": 0.9, "b": 0.5 + 0.01 * seed, "c": 0.1} for seed in range(12)]
    found = ranking(blocks)
    ends = {row["row"]: (row["low"], row["high"]) for row in data(charts.ranks(found))}
    told = found.ranks["c"] - found.ranks["a"] >= found.critical_difference
    assert told == (ends["c"][0] >= ends["a"][1]) and told
    assert (found.ranks["b"] - found.ranks["a"] >= found.critical_difference) == (ends["b"][0] >= ends["a"][1])


@pytest.mark.parametrize(("metric", "first"), [(ACCURACY, 50.0), (ERROR, 0.5)])
def test_curves_have_each_point_in_the_unit_of_the_metric(metric: Metric, first: float) -> None:
    line = {epoch: interval([0.5, 0.5]) for epoch in range(1, 11)}
    spec = charts.curves({"kd": line}, metric, bands=True, stride=4)
    assert [row["epoch"] for row in data(spec)] == [1, 4, 8, 10]
    assert data(spec)[0] == {"line": "kd", "epoch": 1, "score": first, "low": first, "high": first}
    assert alt.LayerChart.from_dict(spec, validate=True)
    many = charts.curves({"kd": line, "sp": line}, metric, bands=False)
    assert "low" not in data(many)[0] and many["params"][0]["bind"]["options"] == ["kd", "sp"]


def test_confusion_is_shared_out_by_class_and_cut_to_the_most_confused() -> None:
    student, teacher = shares_of(Confusion([[9, 1], [2, 8]], [[10, 0], [0, 10]], 2, 1))
    assert student.rows == [[90, 10], [20, 80]] and student.right == 85.0 and teacher.right == 100.0
    large = [[90 if row == column else 0 for column in range(30)] for row in range(30)]
    for label in range(5, 25):
        large[label][0] = 10
    (only,) = shares_of(Confusion(large, [], 1, 0))
    assert only.classes == list(range(5, 25)) and only.rows[0][0] == 90
