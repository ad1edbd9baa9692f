"""observe(): the only place that knows how features, tokens, attention and input gradients are taken from a network."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdbench.bench.networks.activations import Preactivations
from kdbench.bench.networks.attention import QKV, between_tokens, watch_attention
from kdbench.bench.networks.head import HeadMap, bias_of, is_linear, watch_heads
from kdbench.bench.networks.network import Network
from kdbench.methods.base import Signals, Unsupported

GRADIENTS = frozenset({"input_grad", "mirrored_grad"})
"""Signals that need a backward pass of their own; they are of no use in evaluation."""

SMALL = frozenset({"pooled", "classifier", "classifier_bias"})
"""Signals of so few numbers that copying them out of inference mode costs less than the mode saves."""

STEM = re.compile(r"(features\.)?(stem|conv|act|bn|norm|layer0|level0|$)", re.IGNORECASE)
"""How timm names the part of a network whose feature map comes before its first stage."""

UNTAPPED = frozenset({"features", "classifier", "classifier_bias"})
"""Signals that are taken without hooks or second passes, so that the network may be compiled."""

HEAD = frozenset({"pooled", "classifier", "classifier_bias", "head_map"})
"""Signals of a linear classifier."""

MAPS = frozenset({"features", "preactivations", "norms"})
"""Signals for which every stage is passed one by one."""


def observe(
    network: Network,
    images: Tensor,
    labels: Tensor | None,
    needs: frozenset[str],
    training: bool = False,
) -> Signals:
    """Runs a network on a batch and returns what was asked for, in float32.

    Args:
        network: in the mode (train or eval) that the caller chose.
        images: (B, C, H, W) in [0, 1].
        labels: (B,) classes or (B, K) probabilities, for input gradients; None where these are not needed.
        needs: names of Signals fields beyond the logits.
        training: whether the result is differentiated, as a student's is.

    Raises:
        Unsupported: if the network does not offer what is asked for.
    """
    if not training and needs <= SMALL:
        with torch.inference_mode(), network.precision():
            signals = _forward(network, images, needs)
        return signals.detached()
    wants_grad = bool(needs & GRADIENTS)
    with torch.set_grad_enabled(training or wants_grad), _differentiable_attention(wants_grad):
        images = images.detach().requires_grad_("input_grad" in needs)
        with network.precision():
            signals = _forward(network, images, needs)
        if "input_grad" in needs:
            grad = _input_grad(signals.logits, labels, images, training)
            signals = dataclasses.replace(signals, input_grad=grad)
        if "mirrored_grad" in needs:
            mirrored = images.detach().flip(-1).requires_grad_()
            with network.precision():
                logits = network(mirrored).float()
            grad = _input_grad(logits, labels, mirrored, training).flip(-1)
            signals = dataclasses.replace(signals, mirrored_grad=grad)
    return signals if training else signals.detached()


def _input_grad(logits: Tensor, labels: Tensor | None, images: Tensor, training: bool) -> Tensor:
    """Gradient (B, C, H, W) of each image's own cross-entropy."""
    assert labels is not None, "input gradients are of a loss on labels"
    loss = F.cross_entropy(logits, labels, reduction="sum")
    (grad,) = torch.autograd.grad(loss, images, create_graph=training)
    return grad


def _forward(network: Network, images: Tensor, needs: frozenset[str]) -> Signals:
    """What is asked for but gradients, in float32 from one forward pass by timm's own interface."""
    model: Any = network.model
    if needs & MAPS and not (hasattr(model, "forward_intermediates") and hasattr(model, "feature_info")):
        raise Unsupported(f"{type(model).__name__} has no stages that can be tapped (no forward_intermediates).")
    passed = _staged if needs & MAPS else _unstaged
    if network.compute.compiled and needs <= UNTAPPED:
        passed = network.compiled(passed)
    with _before_activations(network, images, needs) as before, _tapped(network, needs) as taps:
        logits, features = passed(model, network.normalised(images))
    if network.compute.compiled and images.is_cuda:  # a graph's next replay writes over what it gave out
        logits, features = logits.clone(), features and [feature.clone() for feature in features]
    return Signals(
        logits.float(),
        tuple(feature.float() for feature in features or ()) if "features" in needs else None,
        taps.pooled if "pooled" in needs else None,
        model.get_classifier().weight.flatten(1) if "classifier" in needs else None,
        tuple(taps.tokens) if "tokens" in needs else None,
        tuple(taps.qkv) if "qkv" in needs else None,
        preactivations=before.maps(features or []) if before and "preactivations" in needs else None,
        norms=before.norms() if before and "norms" in needs else None,
        head_map=taps.head_map.taken(taps.pooled) if taps.head_map and taps.pooled is not None else None,
        heads=tuple(taps.heads or [logits.float()]) if "heads" in needs else None,
        classifier_bias=bias_of(model.get_classifier()) if "classifier_bias" in needs else None,
        stem=stem_maps(model) if needs & MAPS else 0,
    )


def _unstaged(model: Any, images: Tensor) -> tuple[Tensor, None]:
    """The logits, and no feature map."""
    return model(images), None


def _staged(model: Any, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the feature map of every stage."""
    stages = list(range(len(model.feature_info)))
    final, maps = model.forward_intermediates(images, indices=stages)
    return model.forward_head(final), maps


def stem_maps(model: Any) -> int:
    """How many feature maps come before a model's first stage: 1 where timm names the first one as a stem's, else 0."""
    return int(bool(STEM.match(model.feature_info[0]["module"])))


@dataclass
class _Taps:
    """What has been seen in a forward pass."""

    pooled: Tensor | None = None
    tokens: list[Tensor] = field(default_factory=list)
    normed: Tensor | None = None
    """Tokens after the final norm."""
    qkv: list[QKV] = field(default_factory=list)
    head_map: HeadMap | None = None
    heads: list[Tensor] = field(default_factory=list)


@contextlib.contextmanager
def _tapped(network: Network, needs: frozenset[str]) -> Iterator[_Taps]:
    """Watches one forward pass: the blocks' outputs, the classifier's input, and attention.

    Raises:
        Unsupported: if the model has no such parts, or does not call them; the message names what is missing.
    """
    model: Any = network.model
    taps, name, blocks = _Taps(), type(model).__name__, len(getattr(model, "blocks", ()))
    if needs & HEAD and not is_linear(model.get_classifier()):
        raise Unsupported(f"{name} has no linear classifier, whose input and rows could be used.")
    if "tokens" in needs and not blocks:
        raise Unsupported(f"{name} is no chain of transformer blocks, so it has no tokens (B, N, D).")
    with contextlib.ExitStack() as watches:
        if needs & {"pooled", "head_map"}:
            _watch_pooled(model, taps, watches)
        if "head_map" in needs:
            taps.head_map = HeadMap(network, watches)
        if "heads" in needs:
            watch_heads(model, taps.heads, watches)
        if "tokens" in needs:
            _watch_tokens(model, taps, watches)
        if "qkv" in needs:
            watch_attention(model, taps.qkv, watches)
        yield taps
    if "tokens" in needs:
        if len(taps.tokens) != blocks + 1:
            raise Unsupported(f"{name} does not run its blocks one after another, so it has no tokens of each.")
        if taps.normed is not None and taps.normed.shape == taps.tokens[-1].shape:
            taps.tokens[-1] = taps.normed
    if "qkv" in needs:
        taps.qkv = between_tokens(name, taps.qkv, blocks)


@contextlib.contextmanager
def _before_activations(network: Network, images: Tensor, needs: frozenset[str]) -> Iterator[Preactivations | None]:
    """Watches one forward pass for maps before activations, if these or their norms are needed."""
    if not needs & {"preactivations", "norms"}:
        yield None
        return
    before = Preactivations(network, images)
    with before.watched():
        yield before


def _watch_pooled(model: Any, taps: _Taps, watches: contextlib.ExitStack) -> None:
    """Takes what the classifier sees."""

    def pooled(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        output = inputs[0].flatten(1) if inputs[0].shape[2:] == (1, 1) else inputs[0]
        if output.dim() != 2:
            raise Unsupported(
                f"{type(model).__name__} classifies something else than one pooled vector (B, D) an image."
            )
        taps.pooled = output.float()

    watches.callback(model.get_classifier().register_forward_pre_hook(pooled).remove)


def _watch_tokens(model: Any, taps: _Taps, watches: contextlib.ExitStack) -> None:
    """Takes the first block's input, every block's output, and what the final norm makes of the last."""

    def token(output: Any) -> None:
        if not isinstance(output, Tensor) or output.dim() != 3:
            raise Unsupported(f"{type(model).__name__} has blocks of feature maps, not of tokens (B, N, D).")
        taps.tokens.append(output.float())

    def normed(_: nn.Module, inputs: Any, output: Tensor) -> None:
        taps.normed = output.float()

    watches.callback(model.blocks[0].register_forward_pre_hook(lambda _, inputs: token(inputs[0])).remove)
    for block in model.blocks:
        watches.callback(block.register_forward_hook(lambda _, inputs, output: token(output)).remove)
    if isinstance(getattr(model, "norm", None), nn.Module):
        watches.callback(model.norm.register_forward_hook(normed).remove)


@contextlib.contextmanager
def _differentiable_attention(needed: bool) -> Iterator[None]:
    """Attention that can be differentiated twice, which the fused kernels cannot."""
    if not needed:
        yield
        return
    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextlib.contextmanager
def differentiation(needs: frozenset[str]) -> Iterator[None]:
    """Where losses are differentiated: says so if a network has an operation that cannot be differentiated twice.

    Raises:
        Unsupported: if gradients were needed as signals, and the second derivative of an operation is unknown.
    """
    try:
        yield
    except RuntimeError as error:
        if not needs & GRADIENTS or "is not implemented" not in str(error):
            raise
        operation = str(error).removeprefix("derivative for ").split()[0]
        raise Unsupported(f"a network has an operation that cannot be differentiated twice: {operation}.") from None
