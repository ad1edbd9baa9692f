"""The charts of a study: the score over each hyperparameter, their importance, and all of them at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from kdbench.bench.record import Metric
from kdbench.results.analysis.tried import Trial
from kdbench.results.site.charts import COLOURS, Spec, spec
from kdbench.results.site.facts import Searched

STATES = ("complete", "pruned", "chosen")
LOG_FROM = 30.0
"""Values that differ by such a factor have a logarithmic axis where the range that was searched is not known."""


def shown_as(trial: Trial) -> str:
    """What a chart says of a trial: whether it is complete, was pruned, or gave the setting of the seeds."""
    return "chosen" if trial.chosen else trial.status


def searched_in(trials: Sequence[Trial], known: Sequence[Searched]) -> list[Searched]:
    """What trials differ in: as it is known, else as their values have it; what all have alike is left out."""
    found = []
    ranges = {each.name: each for each in known}
    for name in dict.fromkeys(name for trial in trials for name in trial.setting):
        values = [trial.setting[name] for trial in trials if name in trial.setting]
        if len(set(map(str, values))) > 1:
            found.append(ranges.get(name) or _of_values(name, values))
    return found


def _of_values(name: str, values: Sequence[Any]) -> Searched:
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        low, high = min(values), max(values)
        return Searched(name, low, high, log=low > 0 and high / low >= LOG_FROM)
    return Searched(name, choices=tuple(dict.fromkeys(values)))


def over(trials: Sequence[Trial], searched: Searched, metric: Metric) -> Spec:
    """The validation score of each trial over one hyperparameter, with the range that was searched."""
    points = [
        {"value": trial.setting[searched.name], "score": metric.factor * trial.score}
        | {"trial": f"{trial.suite.partition('@')[0]} {trial.number}", "state": shown_as(trial)}
        for trial in trials
        if trial.score is not None and searched.name in trial.setting
    ]
    shown = [alt.Tooltip("trial:N"), alt.Tooltip("value", title=searched.name), alt.Tooltip("score:Q"), "state:N"]
    told = f"validation {metric.phrase} of {len(points)} trials over {searched.name}"
    scale = alt.Scale(domain=list(STATES), range=[COLOURS[0], COLOURS[4], COLOURS[1]])
    shapes = alt.Scale(domain=list(STATES), range=["circle", "cross", "diamond"])
    chart = alt.Chart(_plain(points, searched)).mark_point(filled=True, size=75, opacity=0.9)
    return spec(
        chart.encode(
            x=_axis(searched),
            y=alt.Y("score:Q", title=f"validation {metric.phrase}", scale=alt.Scale(zero=False, padding=6)),
            color=alt.Color("state:N", title=None, scale=scale, legend=None),
            shape=alt.Shape("state:N", title=None, scale=shapes, legend=None),
            tooltip=shown,
        ),
        told,
        170,
    )


def _plain(points: Sequence[dict[str, Any]], searched: Searched) -> pd.DataFrame:
    """A frame whose choices are texts."""
    frame = pd.DataFrame(points)
    return frame.assign(value=frame["value"].map(str)) if searched.choices else frame


def _axis(searched: Searched) -> alt.X:
    if searched.choices:
        return alt.X("value:N", title=searched.name, sort=list(map(str, searched.choices)), axis=alt.Axis(labelAngle=0))
    scale = alt.Scale(type="log", nice=False, padding=6) if searched.log else alt.Scale(zero=False, padding=6)
    ticks = alt.Axis(tickCount=4, format="~g", labelOverlap=True, labelSeparation=6, grid=False)
    return alt.X("value:Q", title=searched.name, scale=scale, axis=ticks)


def importance(shares: Mapping[str, float]) -> Spec:
    """The share of the scores' variance that each hyperparameter explains."""
    frame = pd.DataFrame({"name": list(shares), "share": [100 * share for share in shares.values()]})
    chart = alt.Chart(frame).mark_bar(color=COLOURS[0])
    names = alt.Y("name:N", sort=list(shares), title=None)
    shown = [alt.Tooltip("name:N"), alt.Tooltip("share:Q", format=".1f")]
    bars = chart.encode(x=alt.X("share:Q", title="importance in %"), y=names, tooltip=shown)
    return spec(bars, f"importance of {', '.join(shares)}", 22 * len(shares) + 10)


def parallel(trials: Sequence[Trial], searched: Sequence[Searched], metric: Metric) -> Spec:
    """A line for each trial through all hyperparameters, each from its lowest value up; its colour is the score."""
    scored = [trial for trial in trials if trial.score is not None]
    places = {each.name: _places([trial.setting.get(each.name) for trial in scored], each) for each in searched}
    points = [
        {
            "trial": f"{trial.suite.partition('@')[0]} {trial.number}",
            "name": each.name,
            "place": places[each.name][index],
        }
        | {"value": _text(trial.setting.get(each.name)), "score": metric.factor * (trial.score or 0.0)}
        for index, trial in enumerate(scored)
        for each in searched
    ]
    frame = pd.DataFrame(points).dropna(subset=["place"])
    names = alt.X(
        "name:N", sort=[each.name for each in searched], title=None, axis=alt.Axis(labelAngle=0, labelLimit=110)
    )
    title = f"validation {metric.phrase}"
    ramp = alt.Scale(range=["#8a8f98", COLOURS[1]])
    base = alt.Chart(frame).encode(
        x=names,
        y=alt.Y("place:Q", title="lowest to highest tried", axis=alt.Axis(values=[0, 1], labels=False)),
        color=alt.Color("score:Q", title=title, scale=ramp, legend=alt.Legend(orient="bottom", gradientLength=160)),
        detail="trial:N",
    )
    shown = ["trial:N", alt.Tooltip("name:N"), "value:N", alt.Tooltip("score:Q")]
    lines = base.mark_line(strokeWidth=2, opacity=0.8, aria=False)
    dots = base.mark_point(filled=True, size=45).encode(tooltip=shown)
    return spec(lines + dots, f"{len(scored)} trials through {len(searched)} hyperparameters", 220)


def _places(values: Sequence[Any], searched: Searched) -> list[float | None]:
    """Values as places from 0 to 1 among those tried, on the axis of the hyperparameter; None where there is none."""
    if searched.choices:
        order = list(map(str, searched.choices))
        numbers = [None if value is None else float(order.index(str(value))) for value in values]
    else:
        numbers = [None if value is None else math.log(value) if searched.log else float(value) for value in values]
    there = [number for number in numbers if number is not None]
    low, high = min(there), max(there)
    return [None if each is None else (each - low) / (high - low) if high > low else 0.5 for each in numbers]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
