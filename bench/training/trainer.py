"""The training loop: stages, epochs, updates. It knows students and teachers, and no method or task by name."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Generator, Iterator

import torch
from torch import Tensor

from kdbench.bench.data.batches import Batch, Batches
from kdbench.bench.networks.signals import differentiation
from kdbench.bench.record import Epoch
from kdbench.bench.seeds import seed_of
from kdbench.bench.teachers.frozen import FrozenTeacher
from kdbench.bench.training.averages import EpochAverages
from kdbench.bench.training.held import Held, parameters_of, signal_tensors, tensors_of
from kdbench.bench.training.run_state import TEACHER_COSTS, Diverged, RunState
from kdbench.bench.training.setup import Setup
from kdbench.bench.training.stage_entry import EnteredStage, frozen_teachers, without
from kdbench.methods.base import Signals, Step
from kdbench.methods.rows import count


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Trains the students of one stage."""

    setup: Setup
    state: RunState
    entered: EnteredStage

    def train(self, ended: Callable[[Epoch], None], validate: Callable[[], float]) -> Generator[None, None, None]:
        """What is left of the stage; pauses after every update.

        Args:
            ended: told of every epoch, once `state` counts it.
            validate: gives the validation score of the students as they are.

        Raises:
            Diverged: if a loss, a weight or a prediction is not finite.
        """
        if self.state.epoch >= self.entered.epochs:
            return
        batches = self.batches()
        while self.state.epoch < self.entered.epochs:
            epoch = yield from self._epoch(batches, validate)
            ended(epoch)

    def rehearse(self) -> None:
        """Makes one update of the stage and counts nothing."""
        batches = self.batches()
        for student in self.entered.students:
            student.train()
        teachers = frozen_teachers(self.setup, self.entered, batches, self.state.number + 1)
        batch = next(batches.epoch(self.setup.spec.seed, 1))
        self._update(batch, tuple(teacher.answer(0, batch) for teacher in teachers), 0)

    def batches(self) -> Batches:
        """The stage's data as it asks for them; what teachers predict for that is counted once, at its start."""
        setup, networks, cost = self.setup, self.setup.networks, self.state.cost
        before = (networks.asked, networks.cached, networks.seconds)
        recipe = setup.spec.recipe
        given = dataclasses.replace(setup.data.train, augment=recipe.augment, additional_ratio=recipe.unlabelled_ratio)
        data = self.entered.stage.data(given, networks)
        if self.state.epoch == 0:
            after = (networks.asked, networks.cached, networks.seconds)
            for name, new, old in zip(TEACHER_COSTS, after, before, strict=True):
                cost[name] += new - old
        cost["training_set"] = max(cost["training_set"], count(data.inputs))
        return setup.task.batches(data, recipe.batch_size, setup.steps, setup.device)

    def _epoch(self, batches: Batches, validate: Callable[[], float]) -> Generator[None, None, Epoch]:
        """One epoch; the time that others take between updates is not counted."""
        setup, state, steps = self.setup, self.state, self.setup.steps
        start, elsewhere, number = time.perf_counter(), 0.0, state.number + 1
        torch.manual_seed(seed_of(setup.spec.seed, "noise", number))
        for student in self.entered.students:
            student.train()
        averages = EpochAverages(setup.task.running(setup.data.train.classes), setup.device)
        teachers = frozen_teachers(setup, self.entered, batches, number)
        for update, batch in enumerate(batches.epoch(setup.spec.seed, number), start=state.epoch * steps):
            taught = tuple(teacher.answer(update % steps, batch) for teacher in teachers)
            with self._counted(batch, teachers, taught, update):
                losses, first = self._update(batch, taught, update)
            averages.add(losses, self._headline(first), batch.targets, len(batch.indices))
            paused = time.perf_counter()
            yield
            elsewhere += time.perf_counter() - paused
        for teacher in teachers:
            teacher.close(update % steps + 1)
        if bad := averages.infinite() or [each for student in self.entered.students for each in student.infinite()]:
            name = self.entered.stage.name
            raise Diverged(f"in epoch {number} of {setup.plan.total} (stage {name}) {', '.join(bad[:5])}.")
        state.number, state.epoch = number, state.epoch + 1
        shown = averages.samples * batches.views
        record = Epoch(
            number=number,
            of=setup.plan.total,
            stage=self.entered.stage.name,
            losses=averages.losses(),
            train=averages.value(),
            validation=validate(),
            learning_rate=self.entered.students[0].learning_rate,
            samples=shown * len(self.entered.students),
            teacher_forwards=shown * len(teachers),
            teacher_cached=sum(max(0, shown - teacher.samples) for teacher in teachers),
            seconds=time.perf_counter() - start - elsewhere,
        )
        self._count(record, sum(teacher.seconds for teacher in teachers))
        return record

    def _count(self, record: Epoch, teacher_seconds: float) -> None:
        cost = self.state.cost
        for name in ("seconds", "samples", "teacher_forwards", "teacher_cached"):
            cost[name] += getattr(record, name)
        cost["teacher_seconds"] += teacher_seconds
        cost["updates"] += self.setup.steps * len(self.entered.students)
        cost["epochs"] = record.number

    @contextlib.contextmanager
    def _counted(
        self, batch: Batch, teachers: list[FrozenTeacher], taught: tuple[Signals, ...], update: int
    ) -> Iterator[None]:
        """Counts what the stage's second update holds, by when optimizers have their state; any other is let be.

        Teachers whose answers are at hand are asked, so that a cache changes no count. What is compiled holds what it
        will, and is not counted.
        """
        built, cost = list(self.setup.networks.built.values()), self.state.cost
        modules = [*built, *self.state.auxiliary.values()]
        if update != min(1, self.entered.epochs * self.setup.steps - 1):
            yield
            return
        cost["held_parameters"] = max(cost.get("held_parameters", 0), parameters_of(modules))
        if any(network.compute.compiled for network in built):
            yield
            return
        state = tensors_of(modules, [student.optimizer for student in self.entered.students])
        with Held([*state, *signal_tensors(taught)]) as held:
            for teacher in teachers:
                teacher.observe(batch.inputs, batch.targets)
            yield
        cost["peak_memory"] = max(cost.get("peak_memory", 0), held.peak)

    def _update(self, batch: Batch, taught: tuple[Signals, ...], update: int) -> tuple[dict[str, Tensor], Signals]:
        """Trains every student on one batch, together or in turn; its losses, and the first student's signals."""
        setup, stage, students = self.setup, self.entered.stage, self.entered.students
        needs = setup.plan.needs_of(stage)
        observe = functools.partial(setup.task.observe, inputs=batch.inputs, targets=batch.targets, needs=needs)
        signals = [observe(student.network, training=True) for student in students]
        fellows = [each.detached() for each in signals] if len(signals) > 1 else []
        everyone = list(range(len(students)))
        turns = [[position] for position in everyone] if stage.options.in_turn else [everyone]
        losses: dict[str, Tensor] = {}
        for turn in turns:
            mine: dict[str, Tensor] = {}
            for position in turn:
                students[position].optimizer.zero_grad(set_to_none=True)
                step = self.step(batch, signals[position], taught + without(fellows, position), position, update)
                mine |= {f"{students[position].net.name}/{name}": value for name, value in stage.loss(step).items()}
            with differentiation(needs):
                torch.stack(list(mine.values())).sum().backward()
            for position in turn:
                students[position].update(update + 1)
                if turn is not turns[-1]:
                    fellows[position] = observe(students[position].network)
            losses |= mine
        return losses, signals[0]

    def step(
        self, batch: Batch, student: Signals, teachers: tuple[Signals, ...], position: int = 0, update: int = 0
    ) -> Step:
        """What the loss of one student sees."""
        auxiliary, hard_loss = self.entered.students[position].auxiliary, self.setup.task.loss
        progress = update / (self.entered.epochs * self.setup.steps)
        return Step(batch.inputs, batch.targets, student, teachers, auxiliary, hard_loss, progress, batch.indices)

    @torch.no_grad()
    def _headline(self, student: Signals) -> Tensor:
        """Logits of the headline on a training batch, without moving the modules that make it."""
        auxiliary = self.entered.students[0].auxiliary.eval()
        logits = self.setup.headline(student, auxiliary)
        auxiliary.train()
        return logits
