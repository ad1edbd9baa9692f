"""What the tests share: one thread, a recorder in memory, the digits, and teachers from random weights."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable

import pytest
import torch

import kdbench.bench.evaluation.cost
from kdbench.bench.contract.memory import Memory
from kdbench.bench.contract.toy import DATA, toy_data, untrained_file
from kdbench.bench.data.splits import Splits
from kdbench.bench.spec import ModelSpec

MEMORY, ENOUGH = "/dev/shm", 4 * 2**30
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ENOUGH:
    tempfile.tempdir = os.environ["TMPDIR"] = MEMORY  # a fifth of the time went into waiting for a disk

torch.set_num_threads(1)
CACHE = tempfile.TemporaryDirectory(prefix="kdbench-")
os.environ["XDG_CACHE_HOME"] = CACHE.name  # what a machine remembers, for these tests alone

kdbench.bench.evaluation.cost.LATENCY_RUNS = 1  # no test asks for more than a time

__all__ = ["DATA", "Memory"]


@pytest.fixture(scope="session")
def digits() -> Splits:
    """A tenth of the digits labelled: 107 images of 8x8 pixels; they come with scikit-learn and need no folder."""
    return toy_data()


@pytest.fixture(scope="session")
def untrained() -> Callable[[ModelSpec], bytes]:
    """The safetensors file of a network from seeded random weights."""
    return untrained_file
