"""What the tests share: one thread, a sink in memory, the digits, and a tiny pair of networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bench.data import Splits, load
from bench.networks import build
from bench.record import Epoch, Stopped
from bench.spec import DataSpec, ModelSpec

torch.set_num_threads(1)

CPU = torch.device("cpu")
DIGITS = DataSpec(name="digits", train_fraction=0.1, validation=0.25)
NO_FILES = Path("/nonexistent")
"""The digits come with scikit-learn, so their data folder need not exist."""


@dataclass
class MemorySink:
    """A bench.record.Sink in memory."""

    stored: dict[str, bytes]
    """Safetensors files by reference."""
    start: bytes | None = None
    """The checkpoint from which the run goes on."""
    stop_after: int = 0
    """The epoch after which the run is stopped; 0 for never."""
    records: list[Epoch] = field(default_factory=list)
    kept: bytes | None = None

    def checkpoint(self) -> bytes | None:
        return self.start

    def epoch(self, record: Epoch, state: Callable[[], bytes]) -> None:
        self.records.append(record)
        self.kept = state()
        if record.number == self.stop_after:
            raise Stopped(f"after epoch {record.number}")

    def weights(self, reference: str) -> bytes:
        return self.stored[reference]


def untrained(models: Sequence[ModelSpec], data: Splits) -> dict[str, bytes]:
    """The safetensors files of networks from random weights, by the models' references."""
    files = {}
    for number, model in enumerate(models):
        with torch.random.fork_rng():
            torch.manual_seed(number)
            files[model.weights] = safetensors.torch.save(build(model, data).state_dict())
    return files


@pytest.fixture(scope="session")
def digits() -> Splits:
    """A tenth of the digits labelled: 107 images of 8x8 pixels."""
    return load(DIGITS, NO_FILES)
