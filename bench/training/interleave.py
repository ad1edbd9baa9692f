"""Advances several generators in turn, each as if it had the random numbers of torch for itself."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def interleave(generators: Sequence[Generator[None, None, T]], device: torch.device) -> list[T | Exception]:
    """Runs each to its next yield, in turn, until all have ended.

    Args:
        generators: which draw random numbers from torch's defaults, on the CPU and on the device.
        device: theirs.

    Returns:
        What each returned, or the exception that it ended by, in their order.
    """
    results: dict[int, T | Exception] = {}
    with torch.random.fork_rng(devices=_gpus(device)):
        states = [_state(device)] * len(generators)
        try:
            while len(results) < len(generators):
                for place, generator in enumerate(generators):
                    if place in results:
                        continue
                    _take(states[place], device)
                    try:
                        next(generator)
                    except StopIteration as end:
                        results[place] = end.value
                    except Exception as error:  # the others go on
                        results[place] = error
                    states[place] = _state(device)
        finally:
            for generator in generators:  # those that an interrupt leaves give free what they hold
                generator.close()
    return [results[place] for place in range(len(generators))]


def _gpus(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _state(device: torch.device) -> list[Any]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(gpu) for gpu in _gpus(device))]


def _take(state: list[Any], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    for gpu, theirs in zip(_gpus(device), state[1:], strict=True):
        torch.cuda.set_rng_state(theirs, gpu)
