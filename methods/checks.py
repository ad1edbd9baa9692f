"""Checks of hyperparameters and of shapes; each raises an error that says the rule and the value."""

from __future__ import annotations

import math
from typing import TypeVar

from torch import Tensor

S = TypeVar("S")


def positive(**values: float) -> None:
    """Checks that each named value is a positive number.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive, but got {name}={value}.")


def non_negative(**values: float) -> None:
    """Checks that each named value is zero or a positive number.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must not be negative, but got {name}={value}.")


def fraction(**values: float) -> None:
    """Checks that each named value lies between 0 and 1, both included.

    Raises:
        ValueError: naming the first that does not.
    """
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie between 0 and 1, but got {name}={value}.")


def one_of(choices: tuple[str, ...], **values: str) -> None:
    """Checks that each named value is one of the choices.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, value in values.items():
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, but got {name}={value}.")


def same_shape(first: Tensor, second: Tensor) -> None:
    """Checks that two tensors have one shape.

    Raises:
        ValueError: naming both shapes.
    """
    if first.shape != second.shape:
        raise ValueError(f"shapes must be equal, but got {tuple(first.shape)} and {tuple(second.shape)}.")


def same_batch(first: Tensor, second: Tensor, dims: int) -> None:
    """Checks that two tensors have `dims` dimensions and one batch size.

    Raises:
        ValueError: naming both shapes.
    """
    if first.dim() != dims or second.dim() != dims or first.shape[0] != second.shape[0]:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"expected two tensors of {dims} dimensions and one batch size, but got {shapes}.")


def require(name: str, signal: S | None) -> S:
    """A signal that the method must name in its `needs`.

    Raises:
        TypeError: if it does not, so that nothing was observed.
    """
    if signal is None:
        raise TypeError(f"a method that reads {name} must name it in needs.")
    return signal
