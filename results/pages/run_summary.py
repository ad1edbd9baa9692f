"""What one run is worth as a report: its scores, what it costs, practitioners' targets, and pictures of its errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from kdbench.bench.errors import InputError
from kdbench.bench.record import Metrics, Outcome, plain
from kdbench.results.analysis.status import TeacherCost
from kdbench.results.analysis.targets import targets
from kdbench.results.pages.numbers import NOT_MEASURED, setting_text
from kdbench.results.pages.pictures import figure_file
from kdbench.results.pages.report import Report
from kdbench.results.store.stored_run import StoredRun


def run_summary_report(run: StoredRun) -> Report:
    """The scores of both epochs that count, cost and targets of a run; of one without a result, why it has none."""
    done = run.outcome if run.status == "done" else None
    return Report(
        name="summary",
        title=f"{run.spec.method} {run.key[:8]}",
        text=[_what(run), *(_lines(run, done) if done else [f"Run {run.key}: {run.status}: {run.reason}"])],
        values={
            "key": run.key,
            "status": run.status,
            "reason": run.reason,
            "spec": run.spec.model_dump(mode="json"),
            "outcome": plain(run.outcome) if run.outcome else None,
            "targets": [asdict(target) for target in targets(done)] if done else [],
        },
        pictures={"confusion": lambda form: _confusion(run, form), "anytime": lambda form: _anytime(run, form)},
    )


def _lines(run: StoredRun, outcome: Outcome) -> list[str]:
    lines = []
    for which in ("last", "best"):
        scores = outcome.scores[which]
        part = scores.parts[-1]
        for student, predictions in scores.part(part).items():
            for name, metrics in predictions.items():
                lines.append(f"{part}, {which} epoch ({scores.epoch}), {student}, {name}: {_metrics(metrics)}")
    lines += [f"{part}, teacher: {_metrics(metrics)}" for part, metrics in list(outcome.teacher.items())[-1:]]
    lines += _cost(outcome)
    lines += [f"Left out: {note}" for note in outcome.notes]
    return [*lines, f"Run {run.key} is in {run.folder.parent}"] if run.folder else lines


def _what(run: StoredRun) -> str:
    """The method, the networks, the data, how long, and the seed of a run, on one line."""
    spec = run.spec
    teachers = " + ".join(teacher.name for teacher in spec.teachers)
    networks = f"{teachers} -> {spec.student.name}" if teachers else spec.student.name
    share = f", {100 * spec.data.train_fraction:.3g} % labelled" if spec.data.train_fraction < 1 else ""
    kind = "" if spec.test else ", a tuning trial"
    setting = f"; {setting_text(spec.params)}" if spec.params else ""
    return (
        f"{spec.method}: {networks} on {spec.data.name}{share}, {spec.recipe.epochs} epochs, seed {spec.seed}"
        f"{kind}{setting}"
    )


def _cost(outcome: Outcome) -> list[str]:
    """Size, speed, targets, and what teachers cost if there were any."""
    cost = outcome.cost
    sizes = [
        f"{cost[name]:,.0f} {name.replace('_', '-')}"
        + (f" ({cost[f'teacher_{name}'] / cost[name]:.1f} times fewer)" if f"teacher_{name}" in cost else "")
        for name in ("parameters", "multiply_adds")
        if name in cost
    ]
    shown = [
        f"{target.rule}: {NOT_MEASURED}"
        if target.value is None
        else f"{target.rule}: {'met' if target.met else 'not met'} ({_number(target.value)})"
        for target in targets(outcome)
    ]
    return [
        f"{', '.join(sizes)}; {_latency(cost)}; {cost['seconds']:.1f} s of training",
        *([f"Trained with {'; '.join(held)}"] if (held := _held(cost)) else []),
        f"Targets: {'; '.join(shown)}",
        *([f"T{str(TeacherCost.of(cost))[1:]}"] if cost.get("teacher_forwards") else []),
    ]


def _latency(cost: Mapping[str, float]) -> str:
    """One sample's, with its quartiles where the record has them."""
    if "latency_ms" not in cost:
        return f"latency {NOT_MEASURED}, as the core was not quiet"
    said = f"{cost['latency_ms']:.2f} ms a sample"
    if "latency_low_ms" not in cost:
        return said
    return f"{said} (quartiles {cost['latency_low_ms']:.2f} to {cost['latency_high_ms']:.2f})"


def _held(cost: Mapping[str, float]) -> list[str]:
    """What training takes beyond what is deployed, of records that say it."""
    found = {"training_parameters": "{:,.0f} parameters that are not deployed", "peak_memory": "at most {:,.0f} bytes"}
    return [text.format(cost[name]) for name, text in found.items() if name in cost]


def _metrics(metrics: Metrics) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in metrics.items())


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"


def _anytime(run: StoredRun, form: str) -> bytes:
    """The primary metric over multiply-adds of every prediction of the last epoch that has them, as a file.

    Predictions of single exits are joined by a line; those of several exits together are squares beside it.

    Raises:
        InputError: for an unknown form, or if the run has no exits.
    """
    from matplotlib.figure import Figure

    outcome = run.outcome if run.status == "done" else None
    scores = outcome.scores["last"] if outcome else None
    part = scores.parts[-1] if scores else ""
    predictions: dict[str, Metrics] = next(iter(scores.part(part).values()), {}) if scores else {}
    costs = {name: metrics["multiply_adds"] for name, metrics in predictions.items() if "multiply_adds" in metrics}
    if outcome is None or not costs:
        raise InputError(f"run {run.key} ({run.spec.method}, {run.status}) has no exits to compare.")
    metric = outcome.metric
    points = sorted((cost, metric.factor * predictions[name][metric.name], name) for name, cost in costs.items())
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    exits = [(cost, score) for cost, score, name in points if name not in outcome.combined]
    axes.plot([cost for cost, _ in exits], [score for _, score in exits], marker="o")
    for cost, score, name in points:
        together = name in outcome.combined
        if together:
            axes.plot(cost, score, marker="s")
        axes.annotate(name, (cost, score), textcoords="offset points", xytext=(-40, 6) if together else (4, -12))
    axes.set(title=f"{run.spec.method} {run.key[:8]}", xlabel="multiply-adds", ylabel=f"{part} {metric.phrase}")
    return figure_file(figure, form)


def _confusion(run: StoredRun, form: str) -> bytes:
    """The confusion matrix of the headline's last epoch as a file.

    Raises:
        InputError: for an unknown form, or if the run has none.
    """
    from matplotlib.figure import Figure

    if run.outcome is None or not run.outcome.confusion:
        raise InputError(f"run {run.key} has no confusion matrix: it is {run.status}.")
    matrix = run.outcome.confusion
    figure = Figure(figsize=(5, 5))  # a sweep draws many, and a layout that is searched for takes longer than the rest
    axes = figure.subplots()
    axes.imshow(matrix, cmap="Blues")
    axes.set(title=f"{run.spec.method} {run.key[:8]}", xlabel="decision", ylabel="class")
    if len(matrix) <= 20:
        axes.set(xticks=range(len(matrix)), yticks=range(len(matrix)))
        half = max(map(max, matrix)) / 2
        for row, counts in enumerate(matrix):
            for column, count in enumerate(counts):
                axes.text(column, row, str(count), ha="center", va="center", color="white" if count > half else "black")
    return figure_file(figure, form)
