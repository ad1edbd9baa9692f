"""What a network emits for a batch, and what of the samples a method may name beside it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Signals:
    """What one network emits for one batch of B samples; a field that nobody asked for is None."""

    logits: Tensor
    """(M, K), a row for each decision among K classes: M = B where a sample is one decision, as an image's class; more
    where it is many, as a class for each pixel or token."""
    features: tuple[Tensor, ...] | None = None
    """One map a stage, (B, C_i, H_i, W_i), shallow to deep."""
    pooled: Tensor | None = None
    """(B, D), what the classifier sees."""
    classifier: Tensor | None = None
    """(K, D), the weights of the classifier: one vector a class, in the space of `pooled`."""
    tokens: tuple[Tensor, ...] | None = None
    """The embedding, then each block's output, the last after the final norm: blocks + 1 of them, (B, N, D) each."""
    qkv: tuple[tuple[Tensor, Tensor, Tensor], ...] | None = None
    """Queries, keys and values of each attention as they meet, (B, heads, N, d) each; B counts windows if there are."""
    mask: Tensor | None = None
    """(B, N), true where a token is real and not padding; None where all are. It comes with a student's `tokens` or
    `qkv`, and is its teachers' too, as they see the same inputs."""
    input_grad: Tensor | None = None
    """(B, C, H, W), the gradient of each image's cross-entropy with respect to its pixels in [0, 1]."""
    mirrored_grad: Tensor | None = None
    """(B, C, H, W), the same for the horizontally mirrored image, mirrored back."""
    preactivations: tuple[Tensor, ...] | None = None
    """The maps of `features` before the last activation of their stage, (B, C_i, H_i, W_i); where a stage ends without
    one, as in linear bottlenecks, its map as it is."""
    norms: tuple[Tensor | None, ...] | None = None
    """(2, C_i), weight and bias of the batch norm before each of `preactivations`; None where there is none."""
    head_map: Tensor | None = None
    """(B, D, H, W), the map whose mean over positions is `pooled`."""
    classifier_bias: Tensor | None = None
    """(K,), of the classifier; zeros if it has none."""
    heads: tuple[Tensor, ...] | None = None
    """(B, K) of each classifier, whose mean `logits` are: two of a distilled transformer, of its class and its
    distillation token; else `logits` alone."""
    stem: int = 0
    """How many of these maps come before the first stage: 1 where the first is the bare stem's."""

    def detached(self) -> Signals:
        """The same values without their history, as a fellow student may use them."""
        return Signals(**{field.name: _detached(getattr(self, field.name)) for field in dataclasses.fields(self)})


def _detached(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_detached(item) for item in value)
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value.detach()
    return value


SIGNALS = frozenset(each.name for each in dataclasses.fields(Signals)) - {"logits", "mask", "stem"}
"""The signals that a method may name in `needs`."""
SAMPLES = frozenset({"pixels", "class_targets", "views"})
"""What a method may name in `needs` of the samples themselves, which it then edits or makes: inputs that are images
(N, C, H, W) uint8, targets of one class a sample (N,), and batches that show a second view of each sample."""
CONSTANT = frozenset({"classifier", "classifier_bias", "norms"})
"""Signals that are weights of the network: the same for every batch."""
