"""What methods say of themselves, for the pages of the registry; imports little, as it is often asked."""

from __future__ import annotations

import inspect
import sys
from dataclasses import asdict

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from kdbench.bench.configure import configure
from kdbench.bench.outside import brought, method_id
from kdbench.methods import REGISTRY
from kdbench.methods.base import Method
from kdbench.results.pages.methods import HyperparameterFacts, MethodFacts, PaperFacts
from kdbench.sweeps.suites.tuning import UNITS


def all_facts() -> list[MethodFacts]:
    """What every method says of itself, in the order of their ids; last those that installed packages bring."""
    return [facts_of(name) for name in (*sorted(REGISTRY), *sorted(brought("methods")))]


def facts_of(name: str) -> MethodFacts:
    """What a method, or a sum of several, says of itself.

    Raises:
        InputError: if there is no such method.
    """
    method = configure(method_id(name), {})
    return MethodFacts(
        id=method.id,
        paper=PaperFacts(**asdict(method.paper)),
        knowledge=method.knowledge,
        needs=sorted(method.needs),
        needs_teacher=method.needs_teacher,
        hyperparameters=_hyperparameters(method),
        module=inspect.getdoc(sys.modules[type(method).__module__]) or "",
        about=inspect.getdoc(type(method)) or "",
        equation=method.equation,
        collection=method.collection,
    )


def _hyperparameters(method: Method) -> list[HyperparameterFacts]:
    space = {name: _space(each) for name, each in method.space().items()}
    weights = {
        name.partition(".")[0]: f"1/{UNITS:g} to {UNITS:g} times the calibrated" for name in method.loss_weights()
    }
    return [
        HyperparameterFacts(name, value, (space | weights).get(name, ""))
        for name, value in method.hyperparameters().items()
    ]


def _space(space: BaseDistribution) -> str:
    """What is searched, as "0.1 to 10, log"."""
    if isinstance(space, CategoricalDistribution):
        return "one of " + ", ".join(map(str, space.choices))
    assert isinstance(space, FloatDistribution | IntDistribution)
    return f"{space.low:g} to {space.high:g}" + (", log" if space.log else "")
