"""The terms of a loss: named numbers that leave what they see as it is, each in proportion to its weight."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from kdbench.bench.configure import nested
from kdbench.bench.contract.open_run import OpenRun
from kdbench.bench.contract.rules import rule
from kdbench.bench.contract.toy import CPU, Toy, toy_data
from kdbench.bench.training.calibration import calibrated
from kdbench.methods.base import Losses, Signals, Stage, Step


def losses_are_named_numbers(toy: Toy) -> None:
    """A loss returns named tensors without dimensions, and writes into nothing that it is given."""
    for stage in range(len(toy.opened().stages)):
        opened = _at(toy.opened(), stage)
        opened.change(_watched)
        opened.one_update()


def _watched(stage: Stage) -> Stage:
    """A stage whose loss is watched."""

    def loss(step: Step) -> Losses:
        before = _values(step)
        losses = stage.loss(step)
        for name, value in losses.items():
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            rule(shape == (), f"loss {name!r} is {shape}, not a tensor without dimensions: average it over the batch")
        after = _values(step)
        written = [name for name in before if not torch.equal(before[name], after[name])]
        rule(not written, f"the loss writes into {', '.join(written)}: clone what is changed in place")
        return losses

    return dataclasses.replace(stage, loss=loss)


def _values(step: Step) -> dict[str, Tensor]:
    """Copies of the tensors that a loss sees, by name."""
    found = {name: getattr(step, name) for name in ("inputs", "targets")}
    for owner, signals in (
        ("student", step.student),
        *((f"teacher {i}", each) for i, each in enumerate(step.teachers)),
    ):
        found |= {f"{owner}'s {name}": value for name, value in _tensors(signals).items()}
    return {name: value.detach().clone() for name, value in found.items() if isinstance(value, Tensor)}


def _tensors(signals: Signals) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in dataclasses.fields(signals):
        value = getattr(signals, each.name)
        parts = value if isinstance(value, tuple) else (value,)
        found |= {f"{each.name}": parts[0]} if len(parts) == 1 else {f"{each.name} {i}": p for i, p in enumerate(parts)}
    return found


def weights_are_calibrated(toy: Toy) -> None:
    """The terms that a loss_weight names are there, in proportion to it, and pull on the student."""
    weights = toy.method.loss_weights()
    if not weights:
        return
    params = nested(dict.fromkeys(weights, 1.0))
    spec = toy.spec(params=params)
    once, twice = _losses(toy, params), _losses(toy, nested(dict.fromkeys(weights, 2.0)))
    values = calibrated(spec, toy_data(), toy.memory(spec), CPU)
    for name, terms in weights.items():
        lacking = sorted(set(terms) - once.keys())
        rule(not lacking, f"{name} = loss_weight(...) names {lacking}, but the losses are called {sorted(once)}")
        for term in terms:
            double = torch.isclose(torch.tensor(twice[term]), torch.tensor(2 * once[term]), rtol=1e-3, atol=1e-7)
            rule(bool(double), f"loss {term!r} is not in proportion to {name}: give it a range by tuned() instead")
        rule(
            values.get(name, 0) > 0,
            f"{name} has no calibrated value, as its terms have no gradient on the student before training",
        )


def _losses(toy: Toy, params: dict[str, Any]) -> dict[str, float]:
    """The first student's losses on the first batch of every stage."""
    spec, found = toy.spec(params=params), dict[str, float]()
    for stage in range(len(toy.opened(spec).stages)):
        seen = _at(toy.opened(spec), stage).one_update()
        found |= {name: float(value.detach()) for name, value in seen.losses.items()}
    return found


def _at(opened: OpenRun, stage: int) -> OpenRun:
    """A run at the start of a stage, of which nothing was trained."""
    for index in range(1, stage + 1):
        opened.enter(index)
    return opened
