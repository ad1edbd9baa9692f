"""What the tests share: one thread, a recorder in memory, the digits, and teachers from random weights."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

import pytest
import torch

import bench.evaluation.cost
from bench.contract.memory import Memory
from bench.contract.toy import DATA, toy_data, untrained_file
from bench.data.splits import Splits
from bench.spec import ModelSpec

torch.set_num_threads(1)
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="kdbench-")  # what a machine remembers, for these tests alone

bench.evaluation.cost.LATENCY_RUNS = 1  # no test asks for more than a time

__all__ = ["DATA", "Memory"]


@pytest.fixture(scope="session")
def digits() -> Splits:
    """A tenth of the digits labelled: 107 images of 8x8 pixels; they come with scikit-learn and need no folder."""
    return toy_data()


@pytest.fixture(scope="session")
def untrained() -> Callable[[ModelSpec], bytes]:
    """The safetensors file of a network from seeded random weights."""
    return untrained_file
