"""Pairs of timm's own families at 32x32, by a method on logits and one on features."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from kdbench.bench.compatibility import FAMILIES, compatibility
from kdbench.bench.configure import configure
from kdbench.bench.data.splits import Splits
from kdbench.bench.networks.build import build
from kdbench.bench.spec import DataSpec, ModelSpec, Recipe, Spec
from kdbench.bench.tasks import load
from kdbench.bench.training.engine import run
from kdbench.methods import REGISTRY
from tests.conftest import Memory

pytestmark = pytest.mark.slow
DATA = DataSpec(name="digits", image_size=32, validation=0.05, test=0.05, train_fraction=0.05)
PAIRS = [
    ("resnet26", "resnet10t"),
    ("efficientnet_lite0", "mobilenetv3_small_050"),
    ("convnext_atto", "convnext_atto"),
    ("vit_tiny_patch16_224", "vit_tiny_patch16_224"),
    ("resnet10t", "vit_tiny_patch16_224"),
    ("vit_tiny_patch16_224", "mobilenetv3_small_050"),
]


@pytest.fixture(scope="module")
def large_digits() -> Splits:
    return load(DATA, Path("."))


@pytest.mark.parametrize("method", ["kd", "sp"])
@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_timm_pair_trains(large_digits: Splits, teacher: str, student: str, method: str) -> None:
    torch.manual_seed(0)
    weights = safetensors.torch.save(build(ModelSpec(name=teacher), large_digits).state_dict())
    spec = Spec(
        method=method,
        params=configure(method, {}).hyperparameters(),
        student=ModelSpec(name=student),
        teachers=(ModelSpec(name=teacher, weights="run:t"),),
        data=DATA,
        recipe=Recipe(epochs=2, batch_size=16, lr=0.01, augment="crop"),
    )
    recorder = Memory({"run:t": weights})
    outcome, _ = run(spec, large_digits, recorder, torch.device("cpu"))
    assert outcome.status == "done", outcome.reason
    assert recorder.epochs[1].losses["student/ce"] < 10 and outcome.headline("last", "test") is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_works_on_a_family_or_names_what_is_missing(family: str) -> None:
    reasons = {each.method: each.reason for each in compatibility(sorted(REGISTRY), [family], [family])}
    attention, head_map = {"distilbert", "minilm", "tinybert"}, {"cat_kd", "simkd", "srrl"}
    expected = {
        "convnext": attention | head_map | {"ofd"},
        "vit": head_map | {"ofd"},
        "swin": (attention - {"minilm"}) | {"ofd"},
        "mixer": (attention - {"distilbert"}) | {"ofd"},
        "mobilenetv3": attention | head_map | {"at_grad"},
    }
    refused = {method for method, reason in reasons.items() if reason}
    assert refused == expected.get(family, attention) | {"deit"}, "which needs a student with two heads"
