"""The Pareto front of a search for a student as a report: a table, what was left out, and a plot."""

from __future__ import annotations

from kdbench.results.analysis.front import Front, Point
from kdbench.results.pages.numbers import count_text, printed, score_text, setting_text
from kdbench.results.pages.pictures import figure_file
from kdbench.results.pages.report import Block, Column, Report


def front_report(front: Front) -> Report:
    """The front, cheapest first; test scores are of seeds that the search never saw."""
    metric = front.metric
    columns = [
        Column("student", left=True),
        Column("method", left=True),
        Column("params"),
        Column("ms (quartiles)"),
        Column(f"validation {metric.name}"),
        Column(f"test {metric.name}"),
        Column("run", left=True),
        Column("setting", left=True, wraps=True),
    ]
    rows = [_row(point, front) for point in front.points]
    limits, cost = front.search.limits, front.search.limits.cost
    notes = [
        f"Searched together, on validation alone: {len(front.search.candidates)} students, their methods and "
        f"hyperparameters, {metric.name} against {cost}; {front.ended} of {front.budget} trials of {front.epochs} "
        f"epochs, {len(front.trials)} with a score.",
        f"Test {metric.phrase}: mean and 95 % interval (Student's t) over {front.seeds} fresh seeds with splits and "
        "teachers of their own, scored once. Validation scores are the best of many, and so too good.",
        "ms: one image, median after warm-up, measured once before any training, with quartiles.",
        *(f"Left out: {line}" for line in front.search.left_out),
        *([] if rows else ["No trial has a score yet."]),
        *(["kdbench export-student RUN --to onnx --out FOLDER hands one out."] if rows else []),
    ]
    title = f"{front.suite}: {', '.join(limits.students)}"
    return Report(
        name="front",
        title=front.suite,
        blocks=[Block(title, columns, rows)] if rows else [],
        notes=notes,
        values=front.values(),
        pictures={"front": lambda form: _plot(front, form)},
    )


def _row(point: Point, front: Front) -> list[str]:
    trial, each = point.trial, point.trial.candidate
    return [
        each.name,
        trial.planned.method,
        count_text(each.parameters),
        f"{each.latency_ms:.3g} ({each.latency_low:.3g} to {each.latency_high:.3g})"
        if each.latency_quiet
        else "not measured",
        printed(trial.validation, front.metric),
        score_text(point.test, front.metric),
        point.keys[0] if point.keys else "",
        setting_text(trial.planned.setting),
    ]


def _plot(front: Front, form: str) -> bytes:
    """Trials on validation as dots, the front on test with its intervals, over cost, as a file."""
    from matplotlib.figure import Figure

    metric = front.metric
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    costs = [trial.cost for trial in front.trials]
    scores = [metric.factor * trial.validation for trial in front.trials]
    axes.scatter(costs, scores, s=10, color="0.7", label="trials, on validation")
    tested = [(point.trial, point.test) for point in front.points if point.test]
    axes.errorbar(
        [trial.cost for trial, _ in tested],
        [metric.factor * test.mean for _, test in tested],
        yerr=[metric.factor * (test.half_width or 0.0) for _, test in tested],
        marker="o",
        capsize=3,
        label=f"front, on test, {front.seeds} seeds",
    )
    for trial, test in tested:
        place = (trial.cost, metric.factor * test.mean)
        axes.annotate(trial.candidate.name, place, textcoords="offset points", xytext=(5, -11), fontsize=8)
    unit = "ms for one image" if front.search.limits.cost == "latency" else "parameters"
    axes.set(xscale="log", xlabel=unit, ylabel=metric.phrase, title=front.suite)
    axes.legend()
    return figure_file(figure, form)
