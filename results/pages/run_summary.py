"""What one run is worth: its scores, what it costs, and the targets that practitioners set, as text and picture."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import Any

from bench.errors import InputError
from bench.record import Outcome, plain
from results.analysis.status import taught
from results.store.run_store import RunStore, StoredRun

ACCURACY_SHARE, PARAMETER_SHARE, LATENCY_MS = 0.9, 0.1, 50.0
"""Rules of thumb for a deployed student: of the teacher's accuracy, of its parameters, and for one image."""


@dataclass(frozen=True)
class Target:
    """A rule of thumb, and whether a run meets it."""

    name: str
    rule: str
    value: float
    met: bool


def targets(outcome: Outcome) -> list[Target]:
    """Practitioners' targets for the last epoch on the last part scored; those of a teacher only if there is one."""
    cost, found = outcome.cost, []
    part = outcome.scores["last"].parts[-1]
    accuracy, teacher = outcome.headline("last", part), outcome.teacher.get(part, {}).get("accuracy")
    if accuracy is not None and teacher:
        share = accuracy / teacher
        found.append(Target("accuracy", "at least 90 % of the teacher's accuracy", share, share >= ACCURACY_SHARE))
    if "teacher_parameters" in cost:
        share = cost["parameters"] / cost["teacher_parameters"]
        found.append(Target("parameters", "at most 10 % of its parameters", share, share <= PARAMETER_SHARE))
    found.append(Target("latency", "under 50 ms an image", cost["latency_ms"], cost["latency_ms"] < LATENCY_MS))
    return found


def run_summary_values(run: StoredRun) -> dict[str, Any]:
    """A run as plain values."""
    done = run.outcome is not None and run.status == "done"
    return {
        "key": run.key,
        "status": run.status,
        "reason": run.reason,
        "spec": run.spec.model_dump(mode="json"),
        "outcome": plain(run.outcome) if run.outcome else None,
        "targets": [asdict(target) for target in targets(run.outcome)] if done and run.outcome else [],
    }


def run_summary_page(run: StoredRun, store: RunStore) -> str:
    """A run as text."""
    if run.outcome is None or run.status != "done":
        return f"Run {run.key}: {run.status}: {run.reason}"
    outcome, lines = run.outcome, []
    for which in ("last", "best"):
        scores = outcome.scores[which]
        part = scores.parts[-1]
        for student, predictions in scores.part(part).items():
            for name, metrics in predictions.items():
                values = ", ".join(f"{metric} {_metric(value)}" for metric, value in metrics.items())
                lines.append(f"{part}, {which} epoch ({scores.epoch}), {student}, {name}: {values}")
    lines += [
        f"{part}, teacher: " + ", ".join(f"{metric} {_metric(value)}" for metric, value in metrics.items())
        for part, metrics in list(outcome.teacher.items())[-1:]
    ]
    return "\n".join([*lines, *_size(outcome), f"Run {run.key} is in {store.root / 'runs' / run.key}"])


def _size(outcome: Outcome) -> list[str]:
    cost = outcome.cost
    sizes = [
        f"{cost[name]:,.0f} {name.replace('_', '-')}"
        + (f" ({cost[f'teacher_{name}'] / cost[name]:.1f} times fewer)" if f"teacher_{name}" in cost else "")
        for name in ("parameters", "multiply_adds")
        if name in cost
    ]
    shown = [
        f"{target.rule}: {'met' if target.met else 'not met'} ({_metric(target.value)})" for target in targets(outcome)
    ]
    return [
        f"{', '.join(sizes)}; {cost['latency_ms']:.2f} ms an image; {cost['seconds']:.1f} s of training",
        f"Targets: {'; '.join(shown)}",
        *([f"T{taught(cost)[1:]}"] if cost.get("teacher_forwards") else []),
    ]


def _metric(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"


def anytime_picture(run: StoredRun) -> bytes:
    """Accuracy over multiply-adds of every prediction of the last epoch that stops early or not, as a png file.

    Raises:
        InputError: if the run has no exits.
    """
    from matplotlib.figure import Figure

    scores = run.outcome.scores["last"] if run.outcome and run.status == "done" else None
    part = scores.parts[-1] if scores else ""
    predictions = next(iter(scores.part(part).values()), {}) if scores else {}
    points = sorted(
        (m["multiply_adds"], m["accuracy"], name) for name, m in predictions.items() if "multiply_adds" in m
    )
    if not points:
        raise InputError(f"run {run.key} ({run.spec.method}, {run.status}) has no exits to compare.")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    exits = [point for point in points if not _together(point[2])]
    axes.plot([cost for cost, _, _ in exits], [100 * accuracy for _, accuracy, _ in exits], marker="o")
    for cost, accuracy, name in points:
        if _together(name):
            axes.plot(cost, 100 * accuracy, marker="s")
        offset = (-40, 6) if _together(name) else (4, -12)
        axes.annotate(name, (cost, 100 * accuracy), textcoords="offset points", xytext=offset)
    axes.set(title=f"{run.spec.method} {run.key[:8]}", xlabel="multiply-adds", ylabel=f"{part} accuracy in %")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def _together(name: str) -> bool:
    """Whether a prediction is of several exits."""
    return name == "ensemble" or name.startswith("first_")


def has_exits(outcome: Outcome) -> bool:
    """Whether a run's predictions are costed one by one."""
    scores = outcome.scores.get("last")
    return scores is not None and any(
        "multiply_adds" in metrics for predictions in scores.validation.values() for metrics in predictions.values()
    )


def confusion_picture(run: StoredRun) -> bytes:
    """The confusion matrix of the headline's last epoch as a png file.

    Raises:
        InputError: if the run has none.
    """
    from matplotlib.figure import Figure

    if run.outcome is None or not run.outcome.confusion:
        raise InputError(f"run {run.key} has no confusion matrix: it is {run.status}.")
    matrix = run.outcome.confusion
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(matrix, cmap="Blues")
    figure.colorbar(image, ax=axes, label="images")
    axes.set(title=f"{run.spec.method} {run.key[:8]}", xlabel="decision", ylabel="class")
    if len(matrix) <= 20:
        axes.set(xticks=range(len(matrix)), yticks=range(len(matrix)))
        half = max(map(max, matrix)) / 2
        for row, counts in enumerate(matrix):
            for column, count in enumerate(counts):
                axes.text(column, row, str(count), ha="center", va="center", color="white" if count > half else "black")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()
