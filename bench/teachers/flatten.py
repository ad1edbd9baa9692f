"""Signals as named tensors, as they are kept, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdbench.bench.teachers.backends import Tensors, layout
from kdbench.methods.base import Signals


def signal(key: str) -> str:
    """The signal that a flat tensor is part of."""
    return key.partition(".")[0]


def signals_of(tensors: Tensors) -> frozenset[str]:
    """The signals that flat tensors make up."""
    return frozenset(map(signal, tensors))


def flat(signals: Signals, needs: frozenset[str]) -> Tensors:
    """Signals as tensors by names such as features.0 and qkv.2.1, laid out in memory as they will be if kept."""
    found: Tensors = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            found[name] = value.contiguous(memory_format=layout(value))
        for index, item in enumerate(value if isinstance(value, tuple) else ()):
            add(f"{name}.{index}", item)

    for name in needs:
        add(name, getattr(signals, name))
    return found


def unflat(tensors: Tensors) -> Signals:
    """The inverse of `flat`, in float32."""
    tree: dict[str, Any] = {}
    for key in sorted(tensors, key=lambda key: [int(part) if part.isdigit() else -1 for part in key.split(".")]):
        *path, last = key.split(".")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = tensors[key].float()
    return Signals(**{name: _tuples(value) for name, value in tree.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value.values())) if isinstance(value, dict) else value


def lossless(tensor: Tensor) -> Tensor:
    """The tensor in bf16 if that has the same values: outputs of a network that computes in bf16."""
    half = tensor.bfloat16()
    return half if torch.equal(half.float(), tensor) else tensor
