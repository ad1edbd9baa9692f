"""Queries, keys and values of self-attention where they meet."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch.nn.functional as F
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kdbench.methods.base import Unsupported

QKV = tuple[Tensor, Tensor, Tensor]


class Products(TorchFunctionMode):
    """Notes queries, keys and values where they meet: normed, rotated or pooled, whatever a network does before."""

    def __init__(self, seen: list[QKV]) -> None:
        """Notes them in a list."""
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called in place of every function of torch."""
        if func is F.scaled_dot_product_attention:
            self.note(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def note(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, scale: float | None = None, **__: Any) -> None:
        """Takes the arguments of a fused product, whose scale is 1 / sqrt d if none is given."""
        query = query if scale is None else query * (scale * math.sqrt(query.shape[-1]))
        self.seen.append((query.float(), key.float(), value.float()))


def watch_attention(model: Any, seen: list[QKV], watches: contextlib.ExitStack) -> None:
    """Takes queries, keys and values; every module that projects to all three must bring them together once."""
    before: list[int] = []

    def check(attention: nn.Module, inputs: Any, output: Any) -> None:
        if len(seen) != before.pop() + 1:
            raise Unsupported(
                f"{type(attention).__name__} does not relate tokens by the softmax of queries times keys and no more, "
                "as attention over channels or between heads does not."
            )

    def split(attention: Any, output: Tensor) -> None:
        parts = output.float().unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        seen.append((parts[0], parts[1], parts[2]))

    watches.enter_context(Products(seen))
    for module in model.modules():
        if isinstance(module, WindowAttention) and not module.fused_attn:  # nothing is between projection and product
            watches.callback(module.qkv.register_forward_hook(lambda _, __, out, m=module: split(m, out)).remove)
        if isinstance(getattr(module, "qkv", None), nn.Linear):
            watches.callback(module.register_forward_pre_hook(lambda *_: before.append(len(seen))).remove)
            watches.callback(module.register_forward_hook(check).remove)


def between_tokens(name: str, seen: list[QKV], blocks: int) -> list[QKV]:
    """The attention of each block, or of a network without a chain of blocks all of it.

    Raises:
        Unsupported: if it is not between each token and every other one.
    """
    if not seen:
        raise Unsupported(f"{name} has no self-attention whose queries, keys and values could be taken.")
    if shapes := [tuple(query.shape) for query, _, _ in seen if query.dim() != 4]:
        raise Unsupported(f"{name} does not lay queries out as (B, heads, N, d), but as {shapes[0]}.")
    own = [each for each in seen if each[0].shape == each[1].shape]
    if len(own) == (blocks or len(seen)):
        return own
    for query, key, _ in seen:
        if query.shape != key.shape:
            raise Unsupported(
                f"{name} has attention of {query.shape[2]} queries to {key.shape[2]} keys, as where keys are pooled or "
                "a class token asks alone: no relation between each token and every other one."
            )
    raise Unsupported(f"{name} has {len(own)} attentions in {blocks} blocks, not one in each.")
