"""What tuning searches, how often it tries, and where it begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import Field, field_validator, model_validator

from kdbench.bench.schema import Finite, Frozen
from kdbench.bench.spec import Recipe

UNITS = 30.0
"""A weight is searched from one UNITS-th to UNITS times its calibrated value."""
Space = dict[str, BaseDistribution]


class Range(Finite):
    """The range in which tuning searches a number of the recipe."""

    low: float
    high: float
    log: bool = False
    """Whether it is searched on a logarithmic scale."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError("low must be below high, and positive on a log scale")
        return self

    @property
    def distribution(self) -> FloatDistribution:
        """The range as Optuna has it."""
        return FloatDistribution(self.low, self.high, log=self.log)


class Tuning(Frozen):
    """The tuning budget, the same for every method."""

    trials: Annotated[int, Field(ge=1)] = 20
    """Of each row: the paper's setting, the calibrated weights, then what TPE draws."""
    prune: bool = True
    """Whether trials below the median of earlier ones are stopped after half of their epochs; methods that train in
    several stages never are, as their epochs cannot be compared."""
    search: dict[str, Range] = {}
    """Numbers of the recipe that every method searches beside its own."""
    ranges: dict[str, dict[str, Range]] = {}
    """By row, hyperparameters that are searched in another range than the method's, weights among them."""
    starts: dict[str, dict[str, Any]] = {}
    """By row, values in which its first trial differs from the paper's setting."""
    warm_from: str = ""
    """A suite of the same rows and a longer tuning, whose best settings are tried too; they come with kdbench."""
    warm_trials: int = 0
    """The number of its trials."""
    warm: dict[str, dict[str, dict[str, Any]]] = {}
    """Those settings, by pair and row; filled in when the suite is loaded."""

    @field_validator("search")
    @classmethod
    def _numbers(cls, search: dict[str, Range]) -> dict[str, Range]:
        searchable = [name for name, field in Recipe.model_fields.items() if isinstance(field.default, float)]
        for name in search:
            if name not in searchable:
                raise ValueError(f"{name} is not a searchable number of the recipe; there are {', '.join(searchable)}")
        return search

    def around(self, weights: Mapping[str, float]) -> Space:
        """Where weights are searched, by their calibrated values."""
        return {name: FloatDistribution(value / UNITS, value * UNITS, log=True) for name, value in weights.items()}

    def distributions(self, row: str) -> Space:
        """The ranges of a row that differ from its method's."""
        return {name: each.distribution for name, each in self.ranges.get(row, {}).items()}


def containing(space: Space, setting: Mapping[str, Any]) -> Space:
    """A space whose ranges also have the values of a setting, as Optuna asks of a trial.

    Raises:
        ValueError: if a value is none of a range's or a choice's.
    """
    return {name: _containing(name, each, setting[name]) for name, each in space.items()}


def _containing(name: str, space: BaseDistribution, value: Any) -> BaseDistribution:
    if isinstance(space, FloatDistribution):
        return FloatDistribution(min(space.low, value), max(space.high, value), log=space.log)
    if isinstance(space, IntDistribution):
        return IntDistribution(min(space.low, value), max(space.high, value), log=space.log, step=space.step)
    if isinstance(space, CategoricalDistribution) and value not in space.choices:
        raise ValueError(f"{name} is one of {', '.join(map(str, space.choices))}, but a trial starts with {value!r}")
    return space
