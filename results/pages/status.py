"""How a suite and the teachers of a store stand, as reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from kdbench.results.analysis.status import Running, SuiteStatus, TeacherStatus
from kdbench.results.pages.numbers import duration, printed
from kdbench.results.pages.report import Report


def status_report(status: SuiteStatus) -> Report:
    """A line for each method, what teachers cost, the runs that failed or are damaged, and those under way."""
    lines = [f"{status.suite}: {status.started} of {status.expected} runs started"]
    for method, counts in status.methods.items():
        lines.append(f"  {method}: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    lines += [f"  {status.teaching}"] if status.teaching.teacher_forwards else []
    lines += [f"  {each.status}: {each.method} {each.phase} ({each.key}): {each.reason}" for each in status.failures]
    lines += [_running(each) for each in status.running]
    lines += [f"  about {duration(status.left)} left"] if status.left is not None else []
    return Report(name="status", title=status.suite, text=lines, values=asdict(status))


def _running(run: Running) -> str:
    """A running run: what, by whom, since when, its last sign of life, and the time left."""
    left = f", about {duration(run.left)} left" if run.left is not None else ""
    place = f"{run.method} {run.phase} {run.number} of {run.pair}"
    return (
        f"  running: {place} ({run.key}) by {run.by} for {duration(run.since)}, "
        f"last sign of life {duration(run.seen)} ago, epoch {run.epoch} of {run.of}{left}"
    )


def teachers_report(teachers: Sequence[TeacherStatus]) -> Report:
    """A line for each teacher."""
    lines = [_line(teacher) for teacher in teachers] or ["There are no teachers yet."]
    return Report(name="teachers", title="", text=lines, values={"teachers": [_values(each) for each in teachers]})


def _line(teacher: TeacherStatus) -> str:
    score = "imported" if teacher.score is None else f"test {printed(teacher.score, teacher.metric, of_percent=2)}"
    trained = f"{teacher.data}, {teacher.epochs} epochs, " if teacher.data else ""
    state = teacher.problem or ("weights not exported" if teacher.left_out else "verified")
    return f"{teacher.reference}  {teacher.model}  {trained}{score}  {state}"


def _values(teacher: TeacherStatus) -> dict[str, Any]:
    """A teacher as JSON values, its score under the name of the metric."""
    score = {f"test_{teacher.metric.name}": teacher.score}
    kept = {"reference": teacher.reference, "model": teacher.model, "data": teacher.data, "epochs": teacher.epochs}
    return kept | score | {"problem": teacher.problem, "left_out": teacher.left_out}
