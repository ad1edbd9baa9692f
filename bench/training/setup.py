"""What is fixed for the whole of one run: its task, data, method, stages and networks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kdbench.bench.configure import method_of
from kdbench.bench.data.batches import steps_per_epoch
from kdbench.bench.data.splits import Splits
from kdbench.bench.networks.build import check_model
from kdbench.bench.networks.run_networks import RunNetworks
from kdbench.bench.record import Recorder
from kdbench.bench.spec import ModelSpec, Spec
from kdbench.bench.tasks import Task, task_of
from kdbench.bench.teachers.cache import TeacherCache
from kdbench.bench.training.stage_plan import StagePlan
from kdbench.methods.base import Method, Net, Signals, Unsupported
from kdbench.methods.rows import count


@dataclass(frozen=True)
class Setup:
    """One run before its first update."""

    spec: Spec
    task: Task
    data: Splits
    method: Method
    plan: StagePlan
    networks: RunNetworks
    recorder: Recorder
    cache: TeacherCache
    device: torch.device
    weights: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each stored file of weights that was loaded, by its reference."""

    @property
    def steps(self) -> int:
        """How many updates an epoch has."""
        return steps_per_epoch(count(self.data.train.inputs), self.spec.recipe.batch_size)

    def headline(self, student: Signals, auxiliary: nn.ModuleDict) -> Tensor:
        """Logits (M, K) of the prediction by which a student is judged."""
        return next(iter(self.method.predictions(student, auxiliary).values()))


def set_up(spec: Spec, data: Splits, recorder: Recorder, device: torch.device, cache: TeacherCache) -> Setup:
    """A run as its specification says.

    Raises:
        Unsupported: if the method cannot learn this task, or from so many teachers.
        InputError: if the specification cannot be carried out.
    """
    task, method = task_of(spec.data.task), method_of(spec)
    task.check(spec.method, method.needed())
    check_teachers(spec, method)
    names = ["teacher" if index == 0 else f"teacher_{index + 1}" for index in range(len(spec.teachers))]
    models = {**dict(zip(names, spec.teachers, strict=True)), "student": spec.student, **assistants(spec, method)}
    weights: dict[str, str] = {}

    def stored(reference: str) -> bytes:
        file = recorder.weights(reference)
        weights[reference] = hashlib.sha256(file).hexdigest()
        return file

    networks = RunNetworks(task, models, data, spec.seed, device, stored, cache.predictions)
    plan = StagePlan.of(method, spec.recipe, tuple(map(Net, names)))
    return Setup(spec, task, data, method, plan, networks, recorder, cache, device, weights)


def assistants(spec: Spec, method: Method) -> dict[str, ModelSpec]:
    """The networks beside student and teachers that a method trains first, computed as the student is.

    Raises:
        InputError: if timm does not know one.
    """
    models = {}
    for model, name in method.assistants().items():
        if name:
            check_model(name)
        other = ModelSpec(name=name, compute=spec.student.compute)
        models[model] = other if name else spec.student
    return models


def check_teachers(spec: Spec, method: Method) -> None:
    """Checks that a method is given as many teachers as it takes.

    Raises:
        Unsupported: if it is not.
    """
    if method.needs_teacher and not spec.teachers:
        raise Unsupported(f"{spec.method} learns from a teacher, and the run has none.")
    if len(spec.teachers) > 1 and not method.several_teachers:
        raise Unsupported(f"{spec.method} takes one teacher, and the run has {len(spec.teachers)}.")
