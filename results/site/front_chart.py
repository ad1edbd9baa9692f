"""The Pareto front of a search for a student as a chart."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from kdbench.results.analysis.front import Front
from kdbench.results.site.charts import COLOURS, Spec, spec


def front_chart(front: Front) -> Spec | None:
    """Trials on validation, and the front on test with its intervals, over what accuracy is weighed against.

    None while no trial has a score.
    """
    if not front.trials:
        return None
    metric, weighed = front.metric, front.search.limits.cost
    title = "ms for one image" if weighed == "latency" else weighed
    trials: list[dict[str, Any]] = [
        {"cost": each.cost, "score": metric.factor * each.validation, "low": None, "high": None}
        | {"student": each.candidate.name, "method": each.planned.method, "shown": "a trial, on validation"}
        for each in front.trials
    ]
    points: list[dict[str, Any]] = []
    for point in front.points:
        if point.test:
            mean, half = metric.factor * point.test.mean, metric.factor * (point.test.half_width or 0.0)
            points.append(
                {"cost": point.trial.cost, "score": mean, "low": mean - half, "high": mean + half}
                | {"student": point.trial.candidate.name, "method": point.trial.planned.method}
                | {"shown": "the front, on test"}
            )
    kinds = list(dict.fromkeys(each["shown"] for each in [*trials, *points]))
    colours = alt.Scale(domain=kinds, range=[COLOURS[4], COLOURS[1]][: len(kinds)])
    legend = alt.Legend(orient="bottom", symbolOpacity=1)
    colour = alt.Color("shown:N", title=None, scale=colours, legend=legend)
    shape = alt.Shape("shown:N", title=None, scale=alt.Scale(domain=kinds), legend=legend)
    scale = alt.Scale(type="log", nice=False, padding=20)
    base = alt.Chart(pd.DataFrame([*trials, *points])).encode(x=alt.X("cost:Q", title=title, scale=scale))
    axis = alt.Y("score:Q", title=metric.phrase, scale=alt.Scale(zero=False))
    shown = ["student:N", "method:N", alt.Tooltip("score:Q", format=".4~g"), alt.Tooltip("cost:Q", title=title)]
    dots = base.mark_point(filled=True, size=70).encode(y=axis, color=colour, shape=shape, tooltip=shown)
    told = f"{metric.phrase} over {title} of {len(trials)} trials and {len(points)} students of the front"
    tested = base.transform_filter("datum.low !== null")
    bars = tested.mark_rule(aria=False).encode(y=alt.Y("low:Q", title=metric.phrase), y2="high:Q", color=colour)
    names = tested.mark_text(align="left", dx=7, dy=12, fontSize=11, aria=False).encode(y=axis, text="student:N")
    return spec(bars + dots + names, told)
