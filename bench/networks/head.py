"""What a network's head takes: the map whose mean the classifier sees, and the classifier."""

from __future__ import annotations

import contextlib
import math
from typing import Any

from torch import Tensor, nn

from kdbench.bench.networks.network import Network
from kdbench.methods.base import Unsupported

NEAR = 0.02
"""Share of its norm by which the mean of a map may differ from what the classifier sees: bf16 rounds by 0.004."""


def is_linear(classifier: Any) -> bool:
    """Whether a classifier is a linear layer, also one that is written as a 1x1 convolution of the pooled map."""
    return isinstance(classifier, nn.Linear) or (isinstance(classifier, nn.Conv2d) and classifier.kernel_size == (1, 1))


def bias_of(classifier: Any) -> Tensor:
    """(K,), zeros if the classifier has none."""
    zeros: Tensor = classifier.weight.new_zeros(len(classifier.weight))
    return zeros if classifier.bias is None else classifier.bias


def watch_heads(model: Any, seen: list[Tensor], watches: contextlib.ExitStack) -> None:
    """Takes the logits (B, K) of each of a network's classifiers, where it has two."""
    for head in (model.head, model.head_dist) if hasattr(model, "head_dist") else ():
        watches.callback(head.register_forward_hook(lambda _, __, output: seen.append(output.float())).remove)


class HeadMap:
    """Takes what a network's head is given in a pass; of our own networks what their neck makes of it."""

    def __init__(self, network: Network, watches: contextlib.ExitStack) -> None:
        """Watches a network's passes, until the stack is closed."""
        self.network, self.given = network, None
        model: Any = network.model
        forward, neck = getattr(model, "forward_head", None), getattr(model, "neck", None)
        if forward is None:
            return

        def noted(x: Any, *args: Any, **kwargs: Any) -> Any:
            self.given = x
            return forward(x, *args, **kwargs)

        model.forward_head = noted
        watches.callback(delattr, model, "forward_head")
        if isinstance(neck, nn.Module):
            watches.callback(neck.register_forward_hook(lambda _, __, output: setattr(self, "given", output)).remove)

    def taken(self, pooled: Tensor) -> Tensor:
        """The map (B, D, H, W), in float32; in evaluation mode its mean is once compared with what the classifier sees.

        Args:
            pooled: (B, D), what the classifier saw.

        Raises:
            Unsupported: if that is not the mean of such a map.
        """
        model: Any = self.network.model
        head_map = _laid_out(model, self.given)
        if head_map is None or head_map.shape[:2] != pooled.shape:
            raise self._refusal()
        head_map = head_map.float()
        if not model.training and not self.network.pools_head_map:
            apart = head_map.mean(dim=(2, 3)) - pooled
            if not bool(apart.norm() <= NEAR * pooled.norm()):
                raise self._refusal()
            self.network.pools_head_map = True
        return head_map

    def _refusal(self) -> Unsupported:
        return Unsupported(
            f"{type(self.network.model).__name__} has no head_map: what its classifier sees is not the mean of a map "
            "over positions, as where a class token, a norm or a convolution stands between."
        )


def _laid_out(model: Any, given: Any) -> Tensor | None:
    """What a head was given as (B, D, H, W); None if it cannot be."""
    if not isinstance(given, Tensor):
        return None
    if given.dim() == 4:
        return given.permute(0, 3, 1, 2) if str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC") else given
    if given.dim() != 3:
        return None
    tokens = given[:, getattr(model, "num_prefix_tokens", 0) :]
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side)) if side * side == tokens.shape[1] else None
