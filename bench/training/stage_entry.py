"""The start of a stage: its networks, the method's own modules sized by a probe, and fresh optimizers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from kdbench.bench.data.batches import Batches, on
from kdbench.bench.networks.signals import GRADIENTS
from kdbench.bench.seeds import seed_of
from kdbench.bench.teachers.frozen import FrozenTeacher
from kdbench.bench.training.run_state import RunState
from kdbench.bench.training.setup import Setup
from kdbench.bench.training.train_state import TrainState
from kdbench.methods.base import Net, Signals, Stage
from kdbench.methods.rows import Rows, take

PROBED = 2
"""Samples that networks are asked about before a stage."""
T = TypeVar("T")


@dataclass(frozen=True)
class EnteredStage:
    """A stage whose students can be updated."""

    stage: Stage
    epochs: int
    students: list[TrainState]
    probes: dict[Net, Signals]
    """Signals of its frozen teachers for two samples."""
    identities: dict[Net, str]
    """What names all that decides a frozen teacher's answers; empty for a network of this run's own making."""


def enter(setup: Setup, state: RunState, index: int) -> EnteredStage:
    """Builds what a stage trains, and prepares it.

    Raises:
        Unsupported: if a network lacks what the method needs.
    """
    stage, networks, recipe = setup.plan.stages[index], setup.networks, setup.spec.recipe
    students = [networks.student(net) for net in stage.students]
    teachers = [networks.teacher(net) for net in stage.teachers]
    inputs, targets = _probe(setup)
    probes = [
        setup.task.observe(network.eval(), inputs, targets, setup.plan.needs) for network in (*students, *teachers)
    ]
    of_students, of_teachers = probes[: len(students)], tuple(probes[len(students) :])
    for position, net in enumerate(stage.students):
        if net.name not in state.auxiliary:
            torch.manual_seed(seed_of(setup.spec.seed, "extras", net.name))  # an older word; another moves every draw
            others = of_teachers + without(of_students, position)
            modules = setup.method.modules_of_data(of_students[position], others, setup.data.train)
            state.auxiliary[net.name] = modules.to(setup.device)
    stage.options.prepare(networks)
    identities = {net: networks.identity(net) for net in stage.teachers}
    clip_norm = stage.options.clip_norm or recipe.clip_norm
    recipe = recipe.model_copy(update={"lr": recipe.lr * stage.options.lr, "clip_norm": clip_norm})
    epochs = setup.plan.epochs[index]
    started = [
        TrainState.start(net, network, state.auxiliary[net.name], recipe, epochs * setup.steps)
        for net, network in zip(stage.students, students, strict=True)
    ]
    return EnteredStage(stage, epochs, started, dict(zip(stage.teachers, of_teachers, strict=True)), identities)


def frozen_teachers(setup: Setup, entered: EnteredStage, batches: Batches, number: int) -> list[FrozenTeacher]:
    """The stage's teachers for the run's epoch `number`."""
    needs = setup.plan.needs_of(entered.stage)
    teachers = []
    for net in entered.stage.teachers:
        network, outputs = setup.networks.teacher(net), None
        identity, probe = entered.identities[net], entered.probes[net]
        if identity and not needs & GRADIENTS:
            name = identity + " ".join(sorted(needs)) * network.compute.compiled  # each is a pass with its own bits
            epoch = (setup.spec.seed, number)
            outputs = setup.cache.outputs(name, batches, setup.task.prepared, epoch, entered.epochs, needs, probe)
        observe = partial(setup.task.observe, network, needs=needs)
        teachers.append(FrozenTeacher(observe, needs, outputs, probe))
    return teachers


def without(items: list[T], position: int) -> tuple[T, ...]:
    """The items in their order, without the one at a position."""
    return (*items[:position], *items[position + 1 :])


def _probe(setup: Setup) -> tuple[Rows, Rows]:
    """The first samples of the training part as networks take them, with their targets."""
    first = slice(0, PROBED)
    inputs = setup.task.prepared(take(setup.data.train.inputs, first), setup.device)
    targets = setup.data.train.targets
    return inputs, on(setup.device, take(targets, first))
