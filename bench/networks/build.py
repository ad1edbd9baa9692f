"""Builds networks by timm name for given data."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, load_model_config_from_hf
from timm.models._hub import load_model_config_from_path
from torch import nn

import kdbench.bench.networks.zoo  # noqa: F401  (registers the literature's networks)
from kdbench.bench.data.images import ImageSplits
from kdbench.bench.errors import InputError, reason, unknown
from kdbench.bench.networks.network import Network
from kdbench.bench.networks.zoo.base import register
from kdbench.bench.outside import brought, loaded
from kdbench.bench.spec import ModelSpec
from kdbench.methods.base import Unsupported


class Refused(Unsupported):
    """A model does not take arguments that it was given on top of its own."""

    def __init__(self, model: str, arguments: list[str]) -> None:
        """Says which model, and which arguments."""
        super().__init__(f"{model} does not take {', '.join(arguments)}.")
        self.arguments = arguments


SOURCES = ("hf-hub:", "hf_hub:", "local-dir:")
"""How names start of models that are described elsewhere, with their weights: on the Hugging Face hub, in a folder."""


def check_model(name: str) -> None:
    """Checks that timm knows a model; one that an installed package brings is registered with it when it is named.

    One that is described elsewhere is looked up when its weights are.

    Raises:
        InputError: if it does not, with the near names.
    """
    if name.startswith(SOURCES) or timm.is_model(name):
        return
    if name in brought("networks"):
        register(name, loaded("networks", name))
    else:
        raise unknown("model", name, timm.list_models())


def published_config(name: str) -> tuple[Any, str, dict[str, Any]]:
    """What is known of the weights that a name means, None if nothing; the model's name in timm, and its arguments.

    Raises:
        InputError: if the hub or the folder does not say it.
    """
    if not name.startswith(SOURCES):
        try:
            return timm.get_pretrained_cfg(name), name, {}
        except RuntimeError:  # the name has a tag that timm does not know
            return None, name, {}
    kind, _, place = name.partition(":")
    read = load_model_config_from_path if kind == "local-dir" else load_model_config_from_hf
    try:
        values, architecture, args = read(place)
        known = {field.name for field in dataclasses.fields(PretrainedCfg)}
        config = PretrainedCfg(**{key: value for key, value in values.items() if key in known})
    except Exception as error:  # the hub, the disk or a torn file raises anything
        raise InputError(
            f"{name} cannot be had: its config.json was asked for, but {type(error).__name__}: {reason(error)}. "
            "Connect this machine once, copy its folder into the hub's cache (~/.cache/huggingface/hub), or name a "
            "folder that holds its config.json and model.safetensors."
        ) from None
    check_model(architecture)
    return config, architecture, {key: value for key, value in args.items() if key != "num_classes"}


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
    config = published_config(spec.name)[0] if pretrained else None
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
    return Network(model, mean, std, input_size, spec.compute)


@torch.no_grad()
def _probe(network: Network, name: str, data: ImageSplits) -> None:
    """Runs a network on one image: some can be built for a size that they cannot take."""
    try:
        logits = network.eval()(torch.zeros(1, data.channels, data.size, data.size))
    except RuntimeError as error:
        raise InputError(f"{name} cannot take {data.size}x{data.size} images: {reason(error)}") from None
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
