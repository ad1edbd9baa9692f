"""What every registered method must keep to; a new file is tested by being there."""

from __future__ import annotations

import functools
import io
import re

import pytest
import torch
from latex2mathml.converter import convert

from kdbench.bench.contract.checks import CHECKS, on_pair
from kdbench.bench.contract.open_run import OpenRun
from kdbench.bench.contract.toy import PAIRS, Toy
from kdbench.bench.data.splits import Splits
from kdbench.methods import REGISTRY
from kdbench.methods.base import Method, Unsupported, as_given
from kdbench.methods.hooks import nothing

METHODS = sorted(REGISTRY)
every_method = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(f"contract of {name}")) for name in METHODS]
)
"""In one process for each, so that the undisturbed run is carried out once."""
BY_PAIR = "other pairs work or are refused"
LONG = ("answers may be shared", "works in bf16")
"""Of today's methods these are slow tests: they take a minute together."""
MODERN = {name for name in METHODS if REGISTRY[name].collection == "modern"}
OTHERS = [(name, pair) for name in METHODS for pair in PAIRS if pair != Toy(name).home]
toy = functools.cache(Toy)


@pytest.mark.parametrize("check", [check for check in CHECKS if check not in (BY_PAIR, *LONG)])
@every_method
def test_method_keeps_to_the_contract(name: str, check: str) -> None:
    CHECKS[check](toy(name))


@pytest.mark.parametrize("check", LONG)
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in MODERN)) for name in METHODS])
def test_method_keeps_to_the_long_part_of_the_contract(name: str, check: str) -> None:
    CHECKS[check](toy(name))


@pytest.mark.parametrize(("name", "pair"), OTHERS)
def test_other_pairs_work_or_are_refused_with_a_reason(name: str, pair: str) -> None:
    on_pair(toy(name), pair)


@every_method
def test_run_leaves_weights_and_scores_of_what_is_deployed(name: str) -> None:
    outcome, files, memory = toy(name).whole
    assert len(memory.epochs) == outcome.cost["epochs"] == memory.epochs[0].of
    modules = torch.load(io.BytesIO(memory.state), weights_only=True)["auxiliary"]["student"]
    predicts = REGISTRY[name].predictions is not Method.predictions
    auxiliary = {"last_auxiliary", "best_auxiliary"} if predicts and modules else set()
    assert set(files) == {"last", "best"} | auxiliary
    assert 0 <= outcome.headline("best", "test", "agreement") <= 1
    assert REGISTRY[name].id == name == REGISTRY[name].__module__.rpartition(".")[2]


@every_method
def test_equation_is_read_whole_and_names_hyperparameters_that_there_are(name: str) -> None:
    """Names with an underscore are fields of the method."""
    learner = REGISTRY[name]()
    for line in learner.equation.splitlines():
        assert "\\" not in convert(line).replace(r"\_", "_"), "a command that is not known stays as it is"
    named = set(re.findall(r"[a-z]+(?:\\_[a-z]+)+", learner.equation))
    assert learner.equation and {each.replace("\\", "") for each in named} <= learner.hyperparameters().keys()


def test_every_method_starts_from_equal_student_weights_and_sees_equal_batches(digits: Splits) -> None:
    starts, batches = [], []
    for name in METHODS:
        spec = toy(name).spec("vit to vit")
        try:
            opened = OpenRun(spec, digits, toy(name).memory(spec))
        except Unsupported:
            continue
        if opened.stages[0].options.prepare is not nothing:
            continue
        for stage in range(len(opened.stages)):
            opened.enter(stage)
        state = opened.students[0].network.state_dict()
        starts.append({key: value.clone() for key, value in state.items()})
        if opened.stages[0].data is as_given:
            opened.enter(0)
            seen = opened.watch()
            batches.append(torch.cat([seen[-1].step.inputs for _ in opened.all_updates()]))
    for start in starts[1:]:
        assert all(torch.equal(start[key], starts[0][key]) for key in starts[0])
    shared = min(map(len, batches))
    assert len(starts) > 40 and len(batches) >= 7 and shared > 200
    assert all(torch.equal(seen[:shared], batches[0][:shared]) for seen in batches[1:])
