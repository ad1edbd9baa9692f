"""What the site is told of methods and of tuning, which only the caller can know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kdbench.results.analysis.reproduction import Reproduction
from kdbench.results.pages.methods import MethodFacts
from kdbench.results.store.plan import SweepPlan


@dataclass(frozen=True)
class Searched:
    """What tuning searches of a hyperparameter; a choice has no ends."""

    name: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()

    def __str__(self) -> str:
        """The range, as "0.1 to 10, log"."""
        if self.low is None or self.high is None:
            return "one of " + ", ".join(map(str, self.choices))
        return f"{self.low:.3g} to {self.high:.3g}" + (", log" if self.log else "")


@dataclass(frozen=True)
class Importance:
    """What each hyperparameter explains of the scores of a study's trials."""

    suite: str
    """NAME@HASH of the suite whose study it is."""
    complete: int
    """The number of complete trials."""
    needed: int
    """The number that it takes."""
    shares: Mapping[str, float]
    """By hyperparameter, adding up to one; empty where there are too few trials, or they do not differ."""


@dataclass(frozen=True)
class TuningFacts:
    """The tuning of a row on a pair."""

    searched: list[Searched] = field(default_factory=list)
    """None if the suite's ranges cannot be read any more."""
    importance: list[Importance] = field(default_factory=list)
    """Of each study that has trials."""


@dataclass(frozen=True)
class RowFacts:
    """A row of a suite."""

    method: MethodFacts | None
    """None if the method's file is not at hand."""
    fixed: Mapping[str, Any]
    """What the suite sets of its hyperparameters, in place of their defaults."""
    tuning: Mapping[str, TuningFacts]
    """By pair."""


@dataclass(frozen=True)
class SuiteFacts:
    """A suite with what is known of its rows, or a paper's table as it stands."""

    plan: SweepPlan
    rows: Mapping[str, RowFacts] = field(default_factory=dict)
    """By name."""
    table: Reproduction | None = None
    """None of a suite."""
