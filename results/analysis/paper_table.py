"""A paper's table as it is asked for: its published numbers, and where ours are found among its protocol's runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

from kdbench.results.analysis.literature import Published

Measure = Literal[
    "", "accuracy_top1", "accuracy_top5", "error_top1", "error_top5", "test_errors", "test_errors_digit3"
]  # fmt: skip
"""The values of published.csv's column `metric` that a run of ours can be measured by."""


def unit_of(metric: str) -> str:
    """% or errors."""
    return "errors" if metric.startswith("test_errors") else "%"


@dataclass(frozen=True)
class Wanted:
    """A number of a paper's table, and where ours is found."""

    pair: str
    row: str
    """The plan's name of the row, shared by the numbers of one row."""
    label: str
    metric: Measure
    published: Published | None
    part: str = ""
    """The share of the data set that the number is of, as "10 %"; empty if it is the usual one."""
    phase: str = "seed"
    """The plan's phase, seed or teacher; "taught" is a teacher that was not trained: its students' runs score it."""
    prediction: str = ""
    """The name of the prediction; by default the headline."""
    student: str = ""
    """The name of the student in the run; by default the first."""
    share: str = ""
    """The score that is read, if it is not the one that the measure names, as "accuracy_omitted"."""
    classes: tuple[int, ...] = ()
    """The classes whose errors are counted; by default all."""
    network: str = ""
    """The paper's name of the network that is trained."""
    alone: bool = False
    """Whether it learns from labels alone, so that other rows gain over it."""
    incomparable: str = ""
    """The reason if it cannot be compared, else empty."""
    best_of: tuple[str, ...] = ()
    """Predictions of which, in each run, the one that is best on validation is the number's."""

    @property
    def unit(self) -> str:
        """% or errors."""
        return unit_of(self.metric)

    @property
    def quantity(self) -> tuple[object, ...]:
        """What rows must share for one to be a gain over another: the network, its data, and what is measured."""
        return (self.network, self.part, self.metric, self.prediction, self.best_of, self.share, self.classes)

    @property
    def lower(self) -> bool:
        """Whether lower is better."""
        return "error" in self.metric


@dataclass(frozen=True)
class Table:
    """A paper's table as it is asked for: whole, or a part of it."""

    name: str
    about: str
    scale: str
    data: str
    statistic: str
    """mean or median, as the paper has it."""
    epoch: str
    """last or best: the epoch whose scores are compared."""
    seeds: int
    """The number of seeds that each row is run with."""
    incomparable: str
    """The reason if nothing of it can be compared, else empty."""
    margins: dict[str, float]
    """By measure, in its unit: a smaller difference from the published does not matter."""
    wanted: list[Wanted]
    departures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def values(self) -> dict[str, Any]:
        """All of it as JSON values, as a plan keeps it."""
        values: dict[str, Any] = TypeAdapter(Table).dump_python(self, mode="json")
        return values
