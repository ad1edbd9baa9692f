"""What training holds: the most bytes of tensors within one update, and the parameters of all networks and modules."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdbench.methods.base import Signals


class Held(TorchDispatchMode):
    """Counts the bytes of living tensors while it is entered; it computes nothing and so moves no number.

    What a kernel takes for itself and gives back is not seen; so one count is of every kind of device.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        """Starts from what is held before."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        """Bytes, now and at most."""
        self._known: dict[int, weakref.ref[Any]] = {}
        for tensor in tensors:
            self._add(tensor, tensor.numel() * tensor.element_size())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carries an operation out, and counts what is new in its results."""
        results = func(*args, **(kwargs or {}))
        for each in tree_leaves(results):
            if isinstance(each, Tensor):
                self._add(each, each.untyped_storage().nbytes())
        return results

    def _add(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return

        def gone(_: object) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def tensors_of(modules: Iterable[nn.Module], optimizers: Iterable[torch.optim.Optimizer]) -> list[Tensor]:
    """Weights, buffers and gradients of modules, and what optimizers remember of them."""
    weights = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    grads = [weight.grad for weight in weights if weight.grad is not None]
    states = [value for each in optimizers for state in each.state.values() for value in state.values()]
    return [*weights, *grads, *(value for value in states if isinstance(value, Tensor))]


def parameters_of(modules: Iterable[nn.Module]) -> int:
    """How many parameters modules have together, one that two share counted once."""
    return sum({id(each): each.numel() for module in modules for each in module.parameters()}.values())


def signal_tensors(signals: Iterable[Signals]) -> list[Tensor]:
    """The tensors of signals."""
    return [leaf for each in signals for leaf in tree_leaves(vars(each)) if isinstance(leaf, Tensor)]
