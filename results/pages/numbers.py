"""Numbers as texts of tables, in the unit of their metric."""

from __future__ import annotations

from typing import Any

from kdbench.bench.record import Metric
from kdbench.results.analysis.statistics import Interval

DIFFERS = "*"
"""Marks a difference that a test finds after correction."""


def score_text(value: Interval | None, metric: Metric, signed: bool = False) -> str:
    """A mean with the half-width of its interval, as "97.8 ± 0.3" for a metric in %; empty if there is none.

    Args:
        value: as it is kept.
        metric: says the unit.
        signed: whether a positive number has its sign, as gains do.
    """
    if value is None:
        return ""
    digits = digits_of(metric)
    mean = f"{metric.factor * value.mean:{'+' if signed else ''}.{digits}f}"
    return mean if value.half_width is None else f"{mean} ± {metric.factor * value.half_width:.{digits}f}"


def digits_of(metric: Metric, of_percent: int = 1) -> int:
    """Decimals of a printed score: `of_percent` for one in %, as many as say the same of one that is no share."""
    return of_percent if metric.unit == "%" else of_percent + 2


def printed(value: float, metric: Metric, of_percent: int = 1) -> str:
    """One score with its unit, as "97.8 %"."""
    return f"{metric.factor * value:.{digits_of(metric, of_percent)}f} {metric.unit}".rstrip()


def count_text(value: int) -> str:
    """A large number in three digits, as "77.8k"."""
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{suffix}"
    return str(value)


NOT_MEASURED = "not measured"
UNMEASURED = "–"
"""The same in a table."""


def latency_text(latency: float | None, spread: float | None) -> str:
    """Milliseconds as "0.41 ± 0.02", half the distance of the quartiles; UNMEASURED if they were not."""
    if latency is None:
        return UNMEASURED
    return f"{latency:.2f}" if spread is None else f"{latency:.2f} ± {spread:.2f}"


def setting_text(setting: dict[str, Any]) -> str:
    """Hyperparameters as "alpha=0.9, form=kl", floating-point numbers in four digits."""
    return ", ".join(f"{name}={rounded(value)}" for name, value in setting.items())


def rounded(value: Any) -> str:
    """A value as text, a floating-point number in four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """A duration, in the largest unit of which there are at least two."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
