"""What the tests of options share: tiny networks, specifications, runs, and steps made by hand."""

from __future__ import annotations

from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import kdbench.bench.training.engine
from kdbench.bench.configure import configure
from kdbench.bench.data.images import ImageSplits
from kdbench.bench.data.splits import Splits
from kdbench.bench.networks.build import build
from kdbench.bench.record import Outcome
from kdbench.bench.spec import Compute, ModelSpec, Recipe, Spec
from kdbench.bench.tasks import task_of
from kdbench.bench.teachers.cache import TeacherCache
from kdbench.methods.base import Losses, Signals, Step
from tests.conftest import DATA, Memory
from tests.harness import CPU, OpenRun

LARGE, SMALL = ModelSpec(name="cifar_resnet8"), ModelSpec(name="cifar_resnet8_quarter")
CNN = (SMALL, LARGE)
"""Student, teacher."""
WEIGHTS: dict[object, bytes] = {}
"""Files of teachers, each built once."""


def vit(depth: int = 2, width: int = 24, heads: int = 2, patch: int = 4) -> ModelSpec:
    """On digits of 8x8 pixels: a class token and, with patches of 4, four more."""
    args = {"patch_size": patch, "embed_dim": width, "num_heads": heads, "depth": depth}
    return ModelSpec(name="vit_tiny_patch16_224", args=args)


def spec_of(
    method: str, *models: ModelSpec, recipe: dict[str, Any] | None = None, seed: int = 1, **params: Any
) -> Spec:
    """A specification for these models: the student, then its teachers."""
    student, *teachers = models
    return Spec(
        method=method,
        params=configure(method, params).hyperparameters(),
        student=student,
        teachers=tuple(model.model_copy(update={"weights": f"run:t{i}"}) for i, model in enumerate(teachers)),
        data=DATA,
        recipe=Recipe(**{"epochs": 1, "batch_size": 32, "lr": 0.02, "augment": "none", **(recipe or {})}),
        seed=seed,
    )


def memory_of(spec: Spec, digits: Splits, weights_seed: int = 0, **recorder: Any) -> Memory:
    """A recorder that has the teachers' weights, random ones that differ from teacher to teacher."""
    assert isinstance(digits, ImageSplits)
    stored = {}
    for index, model in enumerate(spec.teachers):
        plain = model.model_copy(update={"weights": "scratch", "compute": Compute()})
        about = (digits.mean, digits.std, digits.size, digits.train.classes)
        if (name := (plain.model_dump_json(), weights_seed + index, about)) not in WEIGHTS:
            with torch.random.fork_rng():
                torch.manual_seed(weights_seed + index)
                WEIGHTS[name] = safetensors.torch.save(build(plain, digits).state_dict())
        stored[f"run:t{index}"] = WEIGHTS[name]
    return Memory(stored, **recorder)


def carried_out(spec: Spec, digits: Splits, **recorder: Any) -> tuple[Outcome, dict[str, bytes], Memory]:
    """The whole run."""
    memory = memory_of(spec, digits, **recorder)
    outcome, files = kdbench.bench.training.engine.run(spec, digits, memory, CPU)
    return outcome, files, memory


def started(spec: Spec, digits: Splits, cache: TeacherCache | None = None, **recorder: Any) -> OpenRun:
    """A run that has entered its first stage and trained nothing."""
    return OpenRun(spec, digits, memory_of(spec, digits, **recorder), cache)


def step_of(student: Signals, *teachers: Signals, labels: Tensor | None = None, progress: float = 0.0) -> Step:
    """A step made by hand; all images are of class 0 without labels."""
    labels = torch.zeros(len(student.logits), dtype=torch.long) if labels is None else labels
    images, hard_loss = torch.zeros(len(labels), 1, 8, 8), task_of("image").loss
    return Step(images, labels, student, teachers, nn.ModuleDict(), hard_loss, progress)


def signals(seed: int, *channels: int, batch: int = 6, classes: int = 5) -> Signals:
    """Random logits, and a random map of 4x4 for each number of channels."""
    draws = torch.Generator().manual_seed(seed)
    maps = tuple(torch.randn(batch, width, 4, 4, generator=draws) for width in channels)
    return Signals(torch.randn(batch, classes, generator=draws), maps)


def values(losses: Losses) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in losses.items()}
