"""The calibrated weight of a loss term: that with which it pulls on the student as hard as the task's own loss.

A raw weight means nothing on other data, networks or batches: a mean over the positions of an attention map weighs a
map of 8x8 sixteen times one of 32x32. The calibrated weight is |grad of the task's loss| / |grad of the term at weight
1|, norms over all of the student's parameters before training, each the mean over some batches.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from statistics import fmean

import torch
from torch import Tensor

from kdbench.bench.configure import method_of, nested
from kdbench.bench.data.splits import Splits
from kdbench.bench.networks.signals import differentiation
from kdbench.bench.record import Recorder
from kdbench.bench.spec import Spec
from kdbench.bench.teachers.cache import TeacherCache
from kdbench.bench.training.run_state import RunState
from kdbench.bench.training.setup import set_up
from kdbench.bench.training.stage_entry import enter, frozen_teachers
from kdbench.bench.training.trainer import Trainer
from kdbench.methods.base import Step

BATCHES = 8
"""How many batches norms are the mean over."""
TASK = ""
"""Stands for the task's own loss among the names of terms."""


def calibrated(spec: Spec, data: Splits, recorder: Recorder, device: torch.device) -> dict[str, float]:
    """The calibrated value of each loss weight of a run's method, to two digits, by the names of the hyperparameters.

    One whose terms have no gradient before training is left out.

    Args:
        spec: the run; its weights do not matter, all else does.
        data: split as the spec says.
        recorder: gives stored weights.
        device: where to compute.

    Raises:
        Unsupported: if the method does not work on the pair.
        InputError: if the specification cannot be carried out.
    """
    weights = method_of(spec).loss_weights()
    if not weights:
        return {}
    params = spec.params | nested(dict.fromkeys(weights, 1.0))
    wanted = set(itertools.chain(*weights.values()))
    norms: dict[str, list[float]] = defaultdict(list)
    with torch.random.fork_rng():
        unit = spec.model_copy(update={"params": params})
        setup, state = set_up(unit, data, recorder, device, TeacherCache()), RunState()
        for state.stage in range(len(setup.plan.stages)):
            trainer = Trainer(setup, state, enter(setup, state, state.stage))
            for step in _first_steps(trainer):
                for name, norm in _norms(trainer, step, wanted).items():
                    norms[name].append(norm)
    values = {}
    for name, terms in weights.items():
        pull = sum(fmean(norms[term]) for term in terms if norms.get(term))
        value = fmean(norms[TASK]) / pull if pull else math.inf
        if math.isfinite(value) and value > 0:
            values[name] = float(f"{value:.2g}")
    return values


def _first_steps(trainer: Trainer) -> Iterator[Step]:
    """What the first student's loss sees of the first batches of a stage."""
    setup, entered, batches = trainer.setup, trainer.entered, trainer.batches()
    needs = setup.plan.needs_of(entered.stage)
    for student in entered.students:
        student.train()
    torch.manual_seed(setup.spec.seed)
    teachers = frozen_teachers(setup, entered, batches, 1)
    for place, batch in enumerate(itertools.islice(batches.epoch(setup.spec.seed, 1), BATCHES)):
        taught = tuple(teacher.answer(place, batch) for teacher in teachers)
        observe = functools.partial(setup.task.observe, inputs=batch.inputs, targets=batch.targets, needs=needs)
        first, *fellows = [observe(student.network, training=True) for student in entered.students]
        step = trainer.step(batch, first, taught + tuple(fellow.detached() for fellow in fellows))
        yield dataclasses.replace(step, progress=setup.method.calibrated_at())


def _norms(trainer: Trainer, step: Step, wanted: set[str]) -> dict[str, float]:
    """The norm of the gradient on the student of each wanted term of its loss, and of the task's own loss."""
    setup, stage = trainer.setup, trainer.entered.stage
    parameters = [each for each in trainer.entered.students[0].network.parameters() if each.requires_grad]
    with differentiation(setup.plan.needs_of(stage)):
        losses = {name: loss for name, loss in stage.loss(step).items() if name in wanted and loss.requires_grad}
        if not losses:
            return {}
        losses[TASK] = torch.stack(list(setup.method.fine_tuning_loss(step).values())).sum()
        return {
            name: _norm(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))
            for name, loss in losses.items()
        }


def _norm(gradients: tuple[Tensor | None, ...]) -> float:
    squares = [gradient.double().square().sum() for gradient in gradients if gradient is not None]
    return math.sqrt(float(sum(squares)))
