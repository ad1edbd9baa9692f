from __future__ import annotations

from pathlib import Path

import pytest

from tests.sweeps import commands
from tests.sweeps.commands import Run

TINY = """
methods = ["student", "kd", "sp"]
seeds = 2

[[pairs]]
teacher = "cifar_resnet8"
student = "cifar_resnet8_quarter"

[data]
name = "digits"
validation = 0.25
train_fraction = 0.1

[recipe]
epochs = 4
batch_size = 32
lr = 0.1
schedule = "cosine"
augment = "crop"

[tuning]
trials = 3

[tuning.search]
lr = { low = 0.03, high = 0.3, log = true }
"""


@pytest.fixture
def kdbench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """The command, run in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return commands.kdbench


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A suite that is swept in seconds."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path
