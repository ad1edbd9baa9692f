"""What the tests share: one thread, a recorder in memory, the digits, and teachers from random weights."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import safetensors.torch
import torch

import bench.evaluation.cost
from bench.data.splits import Splits
from bench.networks.build import build
from bench.record import Epoch, Stopped
from bench.spec import DataSpec, ModelSpec
from bench.tasks import load

torch.set_num_threads(1)
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="kdbench-")  # what a machine remembers, for these tests alone

bench.evaluation.cost.LATENCY_RUNS = 1  # no test asks for more than a time

DATA = DataSpec(name="digits", train_fraction=0.1, validation=0.25)


@dataclass
class Memory:
    """A bench.record.Recorder in memory."""

    stored: dict[str, bytes]
    """Safetensors files by reference."""
    resume: bytes | None = None
    """The checkpoint from which the run goes on."""
    stop_after: int = 0
    """The epoch after which the run is stopped; 0 for never."""
    keep_all: bool = False
    """Whether checkpoints of all epochs are kept, or only the last one."""
    epochs: list[Epoch] = field(default_factory=list)
    states: dict[int, bytes] = field(default_factory=dict)
    """Checkpoints by the number of their epoch."""

    def checkpoint(self) -> bytes | None:
        return self.resume

    def epoch(self, record: Epoch, state: Callable[[], bytes]) -> None:
        self.epochs.append(record)
        if self.keep_all or record.number in (self.stop_after, record.of):
            self.states[record.number] = state()
        if record.number == self.stop_after:
            raise Stopped(f"after epoch {record.number}")

    @property
    def state(self) -> bytes:
        """The last checkpoint."""
        return self.states[max(self.states)]

    def weights(self, reference: str) -> bytes:
        return self.stored[reference]


@pytest.fixture(scope="session")
def digits() -> Splits:
    """A tenth of the digits labelled: 107 images of 8x8 pixels; they come with scikit-learn and need no folder."""
    return load(DATA, Path("/nonexistent"))


@pytest.fixture(scope="session")
def untrained(digits: Splits) -> Callable[[ModelSpec], bytes]:
    """The safetensors file of a network from seeded random weights."""

    @functools.cache
    def file(model: str) -> bytes:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            state = build(ModelSpec.model_validate_json(model), digits).state_dict()
            return safetensors.torch.save({name: tensor.contiguous() for name, tensor in state.items()})

    return lambda model: file(model.model_dump_json())
