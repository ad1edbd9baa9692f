"""How a check says that a method breaks the contract."""

from __future__ import annotations

import math
from typing import Any

import torch

from kdbench.bench.contract.memory import Memory


class Broken(Exception):
    """A method does not keep to the contract; the message says what to change."""


KEPT = "keep what changes in training in auxiliary_modules (buffers too), and nothing on the method or its module"


def rule(kept: bool, otherwise: str) -> None:
    """Checks a rule.

    Raises:
        Broken: if it is not kept.
    """
    if not kept:
        raise Broken(otherwise)


def finite(memory: Memory) -> None:
    """Checks that every loss of a run is a finite number."""
    for epoch in memory.epochs:
        bad = [name for name, value in epoch.losses.items() if not math.isfinite(value)]
        rule(not bad, f"in epoch {epoch.number} {', '.join(bad)} is not finite: guard divisions, logarithms and roots")


def steady(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Checks that two checkpoints are equal to the bit."""
    try:
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    except AssertionError as error:
        text = " ".join(str(error).split())[:200]
        raise Broken(
            f"a run that is stopped leaves another checkpoint than one that goes on ({text}): {KEPT}"
        ) from None
