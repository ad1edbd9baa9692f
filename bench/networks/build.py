"""Builds networks by timm name for given data."""

from __future__ import annotations

import warnings
from typing import Any

import timm
import torch
from torch import nn

import bench.networks.zoo  # noqa: F401  (registers the literature's networks)
from bench.data.images import ImageSplits
from bench.errors import InputError, unknown
from bench.networks.network import Network
from bench.networks.zoo.base import register
from bench.outside import brought, loaded
from bench.spec import ModelSpec
from methods.base import Unsupported


class Refused(Unsupported):
    """A model does not take arguments that it was given on top of its own."""

    def __init__(self, model: str, arguments: list[str]) -> None:
        """Says which model, and which arguments."""
        super().__init__(f"{model} does not take {', '.join(arguments)}.")
        self.arguments = arguments


def check_model(name: str) -> None:
    """Checks that timm knows a model; one that an installed package brings is registered with it when it is named.

    Raises:
        InputError: if it does not, with the near names.
    """
    if not timm.is_model(name) and name in brought("networks"):
        register(name, loaded("networks", name))
    if not timm.is_model(name):
        raise unknown("model", name, timm.list_models())


def build(spec: ModelSpec, data: ImageSplits, model_args: dict[str, Any] | None = None) -> Network:
    """A network for these data, with timm's pretrained weights if the spec asks for them, else random ones.

    Args:
        spec: the timm name and constructor arguments; `mean`, `std` and `input_size` among them are the network's own
            normalisation and image size, which are the data's by default (timm's for pretrained weights).
        data: gives classes, channels and size.
        model_args: more constructor arguments, as dropout for a noised student.

    Raises:
        InputError: if timm cannot build it.
        Refused: if the model does not take one of `model_args`.
    """
    network = backbone(spec, data, data.train.classes, model_args)
    _probe(network, spec.name, data)
    return network


def backbone(spec: ModelSpec, data: ImageSplits, classes: int, model_args: dict[str, Any] | None = None) -> Network:
    """A timm model for images of these channels and this size, with so many classes; see `build`.

    Args:
        spec: see `build`.
        data: gives channels and size.
        classes: outputs of the classifier; 0 for none.
        model_args: see `build`.

    Raises:
        InputError: if timm cannot build it.
        Refused: if the model does not take one of `model_args`.
    """
    check_model(spec.name)
    pretrained = spec.weights == "pretrained"
    config = timm.get_pretrained_cfg(spec.name) if pretrained else None
    args = dict(spec.args)
    channels = int(args.get("in_chans", 3 if pretrained else data.channels))
    mean = tuple(args.pop("mean", config.mean if config else data.mean))
    std = tuple(args.pop("std", config.std if config else data.std))
    input_size = int(args.pop("input_size", config.input_size[-1] if config else 0))
    args = {"num_classes": classes, "in_chans": channels, **args}
    size = input_size or data.size
    model = _create(spec.name, pretrained, {**args, **(model_args or {})}, size, model_args or {})
    if len(mean) != channels or len(std) != channels:
        raise InputError(f"{spec.name} takes {channels} channels, but got mean={mean} and std={std}.")
    if hasattr(model, "head_dist"):
        raise InputError(f"{spec.name} has two classifiers, whose mean no single tap gives: take its undistilled form.")
    return Network(model, mean, std, input_size, spec.compute)


@torch.no_grad()
def _probe(network: Network, name: str, data: ImageSplits) -> None:
    """Runs a network on one image: some can be built for a size that they cannot take."""
    try:
        logits = network.eval()(torch.zeros(1, data.channels, data.size, data.size))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name} cannot take {data.size}x{data.size} images: {reason}") from None
    if tuple(logits.shape) != (1, data.train.classes):
        raise InputError(f"{name} gives {tuple(logits.shape)} for one image, not (1, {data.train.classes}).")


def _create(name: str, pretrained: bool, args: dict[str, Any], size: int, optional: dict[str, Any]) -> nn.Module:
    """Timm's model; `img_size` is given to those that take one."""
    for tried in ({"img_size": size, **args}, args):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model: nn.Module = timm.create_model(name, pretrained=pretrained, **tried)
                return model
        except TypeError as error:
            if "'img_size'" in str(error) and "img_size" in tried and "img_size" not in args:
                continue
            if refused := [argument for argument in optional if f"'{argument}'" in str(error)]:
                raise Refused(name, refused) from None
            raise InputError(f"timm cannot build {name} with {tried}: {error}") from None
        except Exception as error:  # constructors raise what they like for a size that they cannot take
            first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"timm cannot build {name} for {size}x{size} images: {first_line}") from None
    raise AssertionError("unreachable")
