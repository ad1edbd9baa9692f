"""observe(): the only place that knows how features and input gradients are taken from a network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.networks import Network
from methods.base import Signals, Unsupported


def observe(
    network: Network,
    images: Tensor,
    labels: Tensor,
    needs: frozenset[str],
    precision: str = "fp32",
    training: bool = False,
) -> Signals:
    """Runs a network on a batch and returns what was asked for, in float32.

    Args:
        network: in the mode (train or eval) that the caller chose.
        images: (B, C, H, W) in [0, 1].
        labels: (B,) classes or (B, K) probabilities; used for input gradients alone.
        needs: names of Signals fields beyond the logits.
        precision: fp32, or bf16 for autocast.
        training: whether the result is differentiated, as a student's is.

    Raises:
        Unsupported: if the network does not offer what is asked for.
    """
    wants_grad = "input_grad" in needs
    with torch.set_grad_enabled(training or wants_grad), _differentiable_attention(wants_grad):
        images = images.detach().requires_grad_(wants_grad)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits, features, pooled = _forward(network, images, needs)
        logits = logits.float()
        grad = None
        if wants_grad:
            loss = F.cross_entropy(logits, labels, reduction="sum")
            (grad,) = torch.autograd.grad(loss, images, create_graph=training)
    signals = Signals(logits, features, pooled, grad)
    return signals if training else signals.detached()


def _forward(network: Network, images: Tensor, needs: frozenset[str]) -> tuple[Tensor, Any, Tensor | None]:
    """Logits, and features and pooled output where needed, in one forward pass by timm's own interface."""
    if not needs & {"features", "pooled"}:
        return network(images), None, None
    model: Any = network.model
    if not hasattr(model, "forward_intermediates") or not hasattr(model, "feature_info"):
        raise Unsupported(f"{type(model).__name__} has no stages that can be tapped (no forward_intermediates).")
    stages = list(range(len(model.feature_info)))
    final, maps = model.forward_intermediates(network.normalised(images), indices=stages)
    features = tuple(feature.float() for feature in maps) if "features" in needs else None
    pooled = model.forward_head(final, pre_logits=True).float() if "pooled" in needs else None
    return model.forward_head(final), features, pooled


@contextlib.contextmanager
def _differentiable_attention(needed: bool) -> Iterator[None]:
    """Attention that can be differentiated twice, which the fused kernels cannot."""
    if not needed:
        yield
        return
    with sdpa_kernel(SDPBackend.MATH):
        yield
