from __future__ import annotations

from pathlib import Path

import pytest

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
def tiny(tmp_path: Path) -> Path:
    """A suite that is swept in seconds."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path
