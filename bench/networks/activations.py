"""Where the map of a stage is before its last activation, and which batch norm is before that."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.bench.networks.network import Network


@dataclass(frozen=True)
class Place:
    """Of one stage's map."""

    activation: str = ""
    """The module that takes the map; empty where the stage ends without one, so that its map is what is wanted."""
    call: int = 0
    """Which of the module's calls in a pass that is."""
    norm: str = ""
    """The batch norm that comes before; empty if none does."""


@dataclass
class _Trace:
    """What modules did in a pass, in order."""

    activations: list[tuple[str, Any, int]] = field(default_factory=list)
    """Name, output, and how many norms came before."""
    norms: list[tuple[str, Any]] = field(default_factory=list)
    """Name and input."""


def is_activation(module: nn.Module) -> bool:
    """Whether a module is one of torch's or timm's activations."""
    return type(module).__module__.rpartition(".")[2].startswith("activation")


@torch.no_grad()
def places(network: Network, images: Tensor) -> tuple[Place, ...]:
    """Where each stage's map is before its last activation, as a pass over images (B, C, H, W) in [0, 1] shows.

    The last activation is the module that gives out the stage's map, as at the end of a ResNet's; else the one of the
    batch norm that takes it, as in networks whose stages end in a raw sum; a stage may also have none, as one of linear
    bottlenecks. The batch norm before is the last one beside the activation, so not a shortcut's.
    """
    model: Any = network.model
    trace, training = _Trace(), model.training
    model.eval()
    with contextlib.ExitStack() as watches:
        for name, module in model.named_modules():
            if is_activation(module):
                watches.callback(module.register_forward_hook(_acted(trace, name)).remove)
            elif isinstance(module, nn.BatchNorm2d):
                watches.callback(module.register_forward_pre_hook(_normed(trace, name)).remove)
        stages = list(range(len(model.feature_info)))
        _, maps = model.forward_intermediates(network.normalised(images), indices=stages)
    model.train(training)
    return tuple(_place(model, trace, stage, each) for stage, each in enumerate(maps))


def _acted(trace: _Trace, name: str) -> Any:
    return lambda _, inputs, output: trace.activations.append((name, output, len(trace.norms)))


def _normed(trace: _Trace, name: str) -> Any:
    return lambda _, inputs: trace.norms.append((name, inputs[0]))


def _place(model: Any, trace: _Trace, stage: int, feature: Tensor) -> Place:
    width = feature.shape[1]
    for name, output, before in trace.activations:
        if output is feature:
            norms = [each for each, _ in trace.norms[:before]]
            return Place(name, _call(trace, name, output), _norm_beside(model, name, norms, width))
    for name, taken in trace.norms:
        if taken is feature and is_activation(getattr(model.get_submodule(name), "act", model)):
            return Place(f"{name}.act", 0, name)
    inside = str(model.feature_info[stage].get("module", ""))
    norms = [name for name, _ in trace.norms if f"{name}.".startswith(f"{inside}.")]
    return Place(norm=_last(model, norms, width))


def _call(trace: _Trace, name: str, wanted: Any) -> int:
    outputs = [output for each, output, _ in trace.activations if each == name]
    return next(number for number, output in enumerate(outputs) if output is wanted)


def _norm_beside(model: Any, activation: str, norms: list[str], width: int) -> str:
    """The last of the norms in the activation's module, or else in a part of it that is no shortcut."""
    parent = activation.rpartition(".")[0]
    if isinstance(model.get_submodule(parent), nn.BatchNorm2d):
        return parent
    beside = [name for name in norms if name.rpartition(".")[0] == parent]
    within = [name for name in norms if name.startswith(f"{parent}.") and "downsample" not in name]
    return _last(model, beside, width) or _last(model, within, width)


def _last(model: Any, norms: list[str], width: int) -> str:
    return next((name for name in reversed(norms) if model.get_submodule(name).num_features == width), "")


class Preactivations:
    """Takes the maps before activations in passes of a network."""

    def __init__(self, network: Network, images: Tensor) -> None:
        """Finds the places with one image (1, C, H, W) at a network's first pass."""
        if not network.places:
            network.places = places(network, images[:1].detach())
        self.model: Any = network.model
        self.places: tuple[Place, ...] = network.places
        self.seen: dict[str, list[Tensor]] = {}

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Notes what activations take; a copy where they write into it."""
        with contextlib.ExitStack() as watches:
            for name in {place.activation for place in self.places} - {""}:
                module = self.model.get_submodule(name)
                watches.callback(module.register_forward_pre_hook(self._taking(name)).remove)
            yield

    def _taking(self, name: str) -> Any:
        def take(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            taken = inputs[0].clone() if getattr(module, "inplace", False) else inputs[0]
            self.seen.setdefault(name, []).append(taken)

        return take

    def maps(self, features: list[Tensor]) -> tuple[Tensor, ...]:
        """One map a stage; the stage's own where it ends without an activation."""
        return tuple(
            (self.seen[place.activation][place.call] if place.activation else feature).float()
            for place, feature in zip(self.places, features, strict=True)
        )

    def norms(self) -> tuple[Tensor | None, ...]:
        """Weight and bias (2, C) of the batch norm before each map; None where there is none."""
        modules = [self.model.get_submodule(place.norm) if place.norm else None for place in self.places]
        return tuple(
            None if module is None or module.weight is None else torch.stack([module.weight, module.bias]).detach()
            for module in modules
        )
