"""Builds networks by timm name, seeds them by their name in the run, and loads their weights."""

from __future__ import annotations

import contextlib
import hashlib
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn

import bench.zoo  # noqa: F401  (registers the literature's networks)
from bench.data import EVALUATION_BATCH, Splits
from bench.errors import InputError, unknown
from bench.seeds import generator, seed_of
from bench.spec import Compute, ModelSpec
from methods.base import Net, Unsupported

COMPILED = 2**16
"""Shapes, modes and networks for which a process may compile; beyond torch's own limits passes are eager."""


class Network(nn.Module):
    """A timm model that takes images in [0, 1] of any size and normalises them as it was trained to."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        input_size: int,
        compute: Compute = Compute(),  # noqa: B008  (immutable)
    ) -> None:
        """Wraps a model.

        Args:
            model: of timm's interface.
            mean: of its inputs in [0, 1], for each channel that it takes.
            std: likewise.
            input_size: height and width that it expects; 0 is whatever comes.
            compute: in which precision and layout.
        """
        super().__init__()
        self.model, self.input_size, self.compute = model, input_size, compute
        self.layout = torch.channels_last if compute.layout == "channels_last" else torch.contiguous_format
        self.model.to(memory_format=self.layout)
        self.made: dict[Callable[..., Any], Callable[..., Any]] = {}
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def normalised(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] as the model expects them: resized, grey repeated, normalised."""
        if self.input_size and images.shape[-1] != self.input_size:
            size = (self.input_size, self.input_size)
            images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        if images.shape[1] == 1 and self.mean.shape[1] > 1:
            images = images.expand(-1, self.mean.shape[1], -1, -1)
        return ((images - self.mean) / self.std).contiguous(memory_format=self.layout)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of the model and images, compiled once, with CUDA graphs on a GPU."""
        if function not in self.made:
            torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = COMPILED
            mode = "reduce-overhead" if self.mean.is_cuda else None
            self.made[function] = torch.compile(function, dynamic=False, mode=mode)
        return self.made[function]

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Where its passes are computed in its own precision."""
        return torch.autocast(self.mean.device.type, torch.bfloat16, enabled=self.compute.precision == "bf16")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in [0, 1]."""
        logits: Tensor = self.model(self.normalised(images))
        return logits

    def parameter_count(self) -> int:
        """Trainable numbers."""
        return sum(parameter.numel() for parameter in self.parameters())


def check_model(name: str) -> None:
    """Checks that timm knows a model.

    Raises:
        InputError: if it does not, with the near names.
    """
    if not timm.is_model(name):
        raise unknown("model", name, timm.list_models())


def build(spec: ModelSpec, data: Splits, model_args: dict[str, Any] | None = None) -> Network:
    """A network for these data, with timm's pretrained weights if the spec asks for them, else random ones.

    Args:
        spec: the timm name and constructor arguments; `mean`, `std` and `input_size` among them are the network's own
            normalisation and image size, which are the data's by default (timm's for pretrained weights).
        data: gives classes, channels and size.
        model_args: more constructor arguments, as dropout for a noised student.

    Raises:
        InputError: if timm cannot build it.
        Unsupported: if the model does not know one of `model_args`.
    """
    check_model(spec.name)
    pretrained = spec.weights == "pretrained"
    config = timm.get_pretrained_cfg(spec.name) if pretrained else None
    args = dict(spec.args)
    channels = int(args.get("in_chans", 3 if pretrained else data.channels))
    mean = tuple(args.pop("mean", config.mean if config else data.mean))
    std = tuple(args.pop("std", config.std if config else data.std))
    input_size = int(args.pop("input_size", config.input_size[-1] if config else 0))
    args = {"num_classes": data.train.classes, "in_chans": channels, **args}
    size = input_size or data.size
    model = _create(spec.name, pretrained, {**args, **(model_args or {})}, size, model_args or {})
    if len(mean) != channels or len(std) != channels:
        raise InputError(f"{spec.name} takes {channels} channels, but got mean={mean} and std={std}.")
    if hasattr(model, "head_dist"):
        raise InputError(f"{spec.name} has two classifiers, whose mean no single tap gives: take its undistilled form.")
    network = Network(model, mean, std, input_size, spec.compute)
    _probe(network, spec.name, data)
    return network


@torch.no_grad()
def _probe(network: Network, name: str, data: Splits) -> None:
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
                raise Unsupported(f"{name} does not take {', '.join(refused)}.") from None
            raise InputError(f"timm cannot build {name} with {tried}: {error}") from None
        except Exception as error:  # constructors raise what they like for a size that they cannot take
            first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"timm cannot build {name} for {size}x{size} images: {first_line}") from None
    raise AssertionError("unreachable")


Recall = Callable[[str, Tensor, Callable[[], Tensor]], tuple[Tensor, bool]]
"""Takes a network's identity, images, and what predicts them; gives the logits, and whether they were known before."""


class Networks:
    """The networks of one run, by the names of their Nets.

    Rule 1 of the engine: a Net first named as a student starts from weights seeded by its name (or pretrained ones);
    first named as a teacher, it is loaded from the store; named again, it goes on.
    """

    def __init__(
        self,
        models: dict[str, ModelSpec],
        data: Splits,
        seed: int,
        device: torch.device,
        weights: Callable[[str], bytes],
        recall: Recall,
    ) -> None:
        """Starts without any network.

        Args:
            models: the spec's models by name.
            data: what the networks are built for.
            seed: of random weights.
            device: where they live.
            weights: gives the safetensors file of a stored network.
            recall: gives what stored networks have predicted before.
        """
        self.models, self.data, self.seed, self.device, self._weights = models, data, seed, device, weights
        self.recall = recall
        self.built: dict[str, Network] = {}
        self.trained: list[str] = []
        self.asked, self.cached, self.seconds = 0, 0, 0.0
        """Images that predictions were asked for, those of them that were at hand, and the time that the rest took."""

    def student(self, net: Net) -> Network:
        """A network to train."""
        if net.name not in self.trained:
            self.trained.append(net.name)
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed_of(self.seed, "weights", net.name))
                self.built[net.name] = build(self._model(net), self.data, dict(net.model_args)).to(self.device)
        return self.built[net.name].requires_grad_(True)

    def teacher(self, net: Net) -> Network:
        """A network to learn from, frozen and in evaluation mode."""
        if net.name not in self.built:
            model = self._model(net)
            network = build(model, self.data)
            load_weights(network, self._weights(model.weights), model.name)
            self.built[net.name] = network.to(self.device)
        return self.built[net.name].requires_grad_(False).eval()

    def identity(self, net: Net) -> str:
        """Names all that decides what a teacher says; empty for a network of this run's own making."""
        if net.name in self.trained:
            return ""
        network = self.teacher(net)
        digest = hashlib.sha256(f"{self._model(net)} {network.input_size} {self.device.type}".encode())
        for name, tensor in network.state_dict().items():
            digest.update(name.encode() + tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def predict(self, net: Net, images: Tensor) -> Tensor:
        """Logits (N, K) on the CPU of a frozen network for images (N, C, H, W) uint8."""
        network, identity, start = self.teacher(net), self.identity(net), time.perf_counter()
        logits, known = self.recall(identity, images, lambda: _predictions(network, images))
        self.asked, self.cached = self.asked + len(images), self.cached + known * len(images)
        self.seconds += 0 if known else time.perf_counter() - start
        return logits

    def model(self, net: Net) -> nn.Module:
        """The timm model of a network that has been built."""
        return self.built[net.name].model

    def share_normalisation(self, net: Net, source: Net) -> None:
        """Makes a network normalise its input as another does.

        Raises:
            Unsupported: if they take images of different channels or sizes.
        """
        mine, theirs = self.built[net.name], self.built[source.name]
        if mine.mean.shape != theirs.mean.shape or mine.input_size != theirs.input_size:
            raise Unsupported(f"{net.name} and {source.name} take images of different channels or sizes.")
        mine.mean.copy_(theirs.mean)
        mine.std.copy_(theirs.std)

    def generator(self, name: str) -> torch.Generator:
        """Random numbers that depend on the run's seed and this name alone."""
        return generator(self.seed, name)

    def _model(self, net: Net) -> ModelSpec:
        if net.model not in self.models:
            raise Unsupported(f"this method needs a {net.model}, and the run has none.")
        return self.models[net.model]


@torch.no_grad()
def _predictions(network: Network, images: Tensor) -> Tensor:
    device = network.mean.device
    with network.precision():
        batches = images.split(EVALUATION_BATCH)
        return torch.cat([network(batch.to(device).float() / 255).float().cpu() for batch in batches])


def load_weights(network: Network, file: bytes, name: str) -> None:
    """Puts a stored safetensors file into a network.

    Raises:
        InputError: if the file does not fit.
    """
    try:
        network.load_state_dict(safetensors.torch.load(file))
    except (RuntimeError, KeyError, safetensors.SafetensorError) as error:
        raise InputError(f"the stored weights do not fit {name}: {' '.join(str(error).split())[:300]}") from None


def import_checkpoint(path: Path, network: Network, name: str) -> bytes:
    """A user's checkpoint as our safetensors file: tensors only, never executing a pickle.

    A state dict, bare or under "state_dict", "model" or "model_state_dict", of the timm model.

    Raises:
        InputError: if the file is missing, is not a checkpoint of tensors, or does not fit the network.
    """
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}.")
    try:
        if path.suffix == ".safetensors":
            state: Any = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a corrupt file can raise anything
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path} is not a readable checkpoint of tensors: {reason}") from None
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise InputError(f"{path} holds no state dict of tensors.")
    if bad := [k for k, v in state.items() if v.is_complex() or not v.isfinite().all()]:
        raise InputError(f"{path} holds values that are no finite real numbers, in {bad[0]}.")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    target = network if "mean" in state and any(key.startswith("model.") for key in state) else network.model
    try:
        target.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path} does not fit {name}: {' '.join(str(error).split())[:300]}") from None
    return safetensors.torch.save({key: value.contiguous() for key, value in network.state_dict().items()})
