"""Checkpoints that users bring are read in the forms in which programs save them, and refused in one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from kdbench.bench.data.images import ImageSplits
from kdbench.bench.errors import InputError
from kdbench.bench.networks.build import build
from kdbench.bench.networks.checkpoints import import_checkpoint, load_weights
from kdbench.bench.networks.network import Network
from kdbench.bench.spec import ModelSpec

SMALL = ModelSpec(name="cifar_resnet8_quarter")
State = dict[str, Tensor]


@pytest.fixture
def network(digits: ImageSplits) -> Network:
    return build(SMALL, digits)


@pytest.fixture
def state(digits: ImageSplits) -> State:
    """The weights of another network of the same form."""
    return {key: value.clone() for key, value in build(SMALL, digits).model.state_dict().items()}


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


FORMS: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
    "model": lambda state: {"model": state, "best_acc": torch.tensor(0.9)},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": 1.0},
    "net": lambda state: {"net": state, "acc": 93.1, "epoch": 200},
    "network": lambda state: {"network": state},
    "student": lambda state: {"student": state},
    "nested": lambda state: {"state_dict": {"model": {"net": state}}, "epoch": 1},
    "with its arguments": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1)},
    "DataParallel": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "lightning": lambda state: {"state_dict": prefixed("model.")(state), "callbacks": {}},
    "backbone": lambda state: {"model": prefixed("backbone.")(state)},
    "compiled in DataParallel": lambda state: {"net": prefixed("module._orig_mod.")(state)},
    "DataParallel in a model": lambda state: {"state_dict": {"model": prefixed("model.module.")(state)}},
}


@pytest.mark.parametrize("suffix", ["pth", "pt", "tar"])
@pytest.mark.parametrize("form", FORMS)
def test_state_dict_is_found_in_every_form(
    form: str, suffix: str, network: Network, state: State, tmp_path: Path, digits: ImageSplits
) -> None:
    path = tmp_path / f"teacher.{suffix}"
    torch.save(FORMS[form](state), path)
    file = import_checkpoint(path, network, SMALL.name)
    assert all(torch.equal(value, state[key]) for key, value in network.model.state_dict().items())
    other = build(SMALL, digits)
    load_weights(other, file, SMALL.name)
    assert all(torch.equal(value, state[key]) for key, value in other.model.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_our_own_file_keeps_its_normalisation(
    prefix: str, network: Network, digits: ImageSplits, tmp_path: Path
) -> None:
    args = {"mean": (0.1,), "std": (0.7,)}
    own = build(SMALL.model_copy(update={"args": args}), digits).state_dict()
    safetensors.torch.save_file({f"{prefix}{key}": value for key, value in own.items()}, tmp_path / "t.safetensors")
    import_checkpoint(tmp_path / "t.safetensors", network, SMALL.name)
    assert network.state_dict().keys() == own.keys() and float(network.mean) == pytest.approx(0.1)
    assert all(torch.equal(value, own[key]) for key, value in network.state_dict().items())


class Whole(nn.Module):
    """A module that a program has pickled whole."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda state: [1, 2], "holds no state dict of tensors, but list"),
        (lambda state: {}, "holds an empty state dict"),
        (lambda state: {"model": {}}, "holds an empty state dict"),
        (lambda state: {"weights": state}, "'weights' is dict. It may be bare, or below state_dict, model_state_dict,"),
        (lambda state: {"epoch": 3}, "'epoch' is int"),
        (lambda state: {**state, "conv1.weight": state["conv1.weight"] * float("nan")}, "no finite real numbers, in "),
        (lambda state: dict(list(state.items())[:-1]), "does not fit cifar_resnet8_quarter: .*Missing key"),
        (lambda state: {**state, "criterion.weight": torch.ones(3)}, "Unexpected key.*criterion.weight"),
        (lambda state: {**state, "fc.weight": torch.ones(7, 3)}, "does not fit cifar_resnet8_quarter: .*"),
        (lambda state: {**prefixed("student.")(state), **prefixed("teacher.")(state)}, "Unexpected key.*teacher"),
        (lambda state: {**prefixed("model.")(state), **prefixed("net.")(state)}, "of several networks, as net.*: keep"),
        (
            lambda state: Whole(),
            r"not a readable checkpoint of tensors: Unsupported global: GLOBAL \S+\.Whole was not an allowed global by "
            r"default\. Objects are never executed: keep the weights alone, torch.save\(network.state_dict\(\), path\)",
        ),
        (lambda state: dict(list(state.items())[:1]), r"does not fit .*Missing key.*\.\.\.$"),
    ],
)
def test_what_is_no_state_dict_of_the_network_is_refused_in_one_line(
    content: Callable[[State], Any], message: str, network: Network, state: State, tmp_path: Path
) -> None:
    torch.save(content(state), tmp_path / "t.pth")
    with pytest.raises(InputError, match=message) as error:
        import_checkpoint(tmp_path / "t.pth", network, SMALL.name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_missing_and_corrupt_files_are_named(network: Network, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no checkpoint"):
        import_checkpoint(tmp_path / "t.pth", network, SMALL.name)
    for name in ("t.pth", "t.safetensors"):
        (tmp_path / name).write_bytes(b"\x80\x04not a checkpoint")
        with pytest.raises(InputError, match="is not a readable checkpoint of tensors"):
            import_checkpoint(tmp_path / name, network, SMALL.name)
