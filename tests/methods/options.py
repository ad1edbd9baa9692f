"""What the tests of options share: tiny networks, a run that is about to train, and a record of what its losses see."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import bench.training.engine
from bench.configure import configure
from bench.data.batches import Batch
from bench.data.splits import Splits
from bench.networks.build import build
from bench.record import Outcome
from bench.spec import ModelSpec, Recipe, Spec
from bench.teachers.cache import TeacherCache
from bench.teachers.frozen import FrozenTeacher
from methods.base import Losses, Signals, Stage, Step
from tests.conftest import DATA, Memory

CPU = torch.device("cpu")
LARGE, SMALL = ModelSpec(name="cifar_resnet8"), ModelSpec(name="cifar_resnet8_quarter")
CNN = (SMALL, LARGE)
"""Student, teacher."""


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
    stored = {}
    for index, model in enumerate(spec.teachers):
        with torch.random.fork_rng():
            torch.manual_seed(weights_seed + index)
            network = build(model.model_copy(update={"weights": "scratch"}), digits)
        stored[f"run:t{index}"] = safetensors.torch.save(network.state_dict())
    return Memory(stored, **recorder)


def through(updates: Generator[None, None, Any]) -> Any:
    """What a run or a stage returns after its last update."""
    while True:
        try:
            next(updates)
        except StopIteration as end:
            return end.value


def carried_out(spec: Spec, digits: Splits, **recorder: Any) -> tuple[Outcome, dict[str, bytes], Memory]:
    """The whole run."""
    memory = memory_of(spec, digits, **recorder)
    outcome, files = bench.training.engine.run(spec, digits, memory, CPU)
    return outcome, files, memory


def started(spec: Spec, digits: Splits, **recorder: Any) -> Any:
    """A run that has entered its first stage and trained nothing."""
    run = bench.training.engine._Run(spec, digits, memory_of(spec, digits, **recorder), CPU, TeacherCache())
    run.trainees = run._enter(0)
    return run


def watched(run: Any) -> list[tuple[str, Step, Losses]]:
    """A list that fills, as the run goes on, with every stage's name, step and losses."""
    seen: list[tuple[str, Step, Losses]] = []

    def spied(stage: Stage) -> Stage:
        def loss(step: Step) -> Losses:
            losses = stage.loss(step)
            seen.append((stage.name, step, losses))
            return losses

        return dataclasses.replace(stage, loss=loss)

    run.stages = [spied(stage) for stage in run.stages]
    return seen


def one_step(run: Any, digits: Splits, count: int = 32) -> tuple[Step, Losses]:
    """Trains the first stage on one batch; what the first student's loss saw, and its losses."""
    seen, stage = watched(run), 0
    for trainee in run.trainees:
        trainee.train()
    batch = Batch(digits.train.images[:count] / 255, digits.train.labels[:count], torch.arange(count))
    teachers = [FrozenTeacher(run.networks.teacher(net), run.needs, None) for net in run.stages[stage].teachers]
    run._step(run.stages[stage], batch, teachers, 0)
    return seen[0][1:]


def step_of(
    student: Signals, *teachers: Signals, labels: Tensor | None = None, progress: float = 0.0, epoch: float = 0.0
) -> Step:
    """A step made by hand; all images are of class 0 without labels."""
    labels = torch.zeros(len(student.logits), dtype=torch.long) if labels is None else labels
    return Step(torch.zeros(len(labels), 1, 8, 8), labels, student, teachers, nn.ModuleDict(), progress, epoch)


def signals(seed: int, *channels: int, batch: int = 6, classes: int = 5) -> Signals:
    """Random logits, and a random map of 4x4 for each number of channels."""
    draws = torch.Generator().manual_seed(seed)
    maps = tuple(torch.randn(batch, width, 4, 4, generator=draws) for width in channels)
    return Signals(torch.randn(batch, classes, generator=draws), maps)


def values(losses: Losses) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in losses.items()}
