"""A run that can be looked into: entered, trained and scored stage by stage by the engine's own parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from typing import NamedTuple

import torch
from torch import nn

from kdbench.bench.contract.memory import Memory
from kdbench.bench.data.splits import Splits
from kdbench.bench.networks.run_networks import RunNetworks
from kdbench.bench.record import Epoch
from kdbench.bench.spec import Spec
from kdbench.bench.teachers.cache import TeacherCache
from kdbench.bench.training.run_state import RunState
from kdbench.bench.training.scorer import Result, Scorer
from kdbench.bench.training.setup import set_up
from kdbench.bench.training.stage_entry import EnteredStage, enter
from kdbench.bench.training.train_state import TrainState
from kdbench.bench.training.trainer import Trainer
from kdbench.methods.base import Losses, Method, Stage, Step

CPU = torch.device("cpu")


class Seen(NamedTuple):
    """What one call of a stage's loss was given, and what it returned."""

    stage: str
    step: Step
    losses: Losses


class OpenRun:
    """A run whose parts can be seen between updates. It keeps no checkpoint."""

    def __init__(self, spec: Spec, data: Splits, recorder: Memory, cache: TeacherCache | None = None) -> None:
        """Enters the first stage, and trains nothing."""
        self.setup = set_up(spec, data, recorder, CPU, cache or TeacherCache())
        self.state, self.recorder = RunState(), recorder
        self.entered: EnteredStage
        self.enter(0)

    def enter(self, stage: int) -> None:
        """Goes to the start of a stage."""
        self.state.stage, self.state.epoch = stage, 0
        self.entered = enter(self.setup, self.state, stage)

    def updates(self) -> Generator[None, None, None]:
        """What is left of the stage; pauses after every update."""
        yield from self.trainer.train(self._ended, self.scorer.validate)

    def train(self) -> None:
        """Trains what is left of the stage."""
        for _ in self.updates():
            pass

    def all_updates(self) -> Generator[None, None, None]:
        """What is left of the stage, and all later ones; pauses after every update."""
        yield from self.updates()
        for stage in range(self.state.stage + 1, len(self.stages)):
            self.enter(stage)
            yield from self.updates()

    def finish(self) -> Result:
        """Trains what is left of the run, and scores it."""
        for _ in self.all_updates():
            pass
        return self.result()

    def result(self) -> Result:
        """The scores of the students as they are."""
        return self.scorer.result()

    def one_update(self) -> Seen:
        """Trains the stage on one batch; what the first student's loss saw, and its losses."""
        seen = self.watch()
        self.trainer.rehearse()
        return seen[0]

    def watch(self) -> list[Seen]:
        """A list that fills, as the run goes on, with what every loss sees."""
        seen: list[Seen] = []

        def spied(stage: Stage) -> Stage:
            def loss(step: Step) -> Losses:
                losses = stage.loss(step)
                seen.append(Seen(stage.name, step, losses))
                return losses

            return dataclasses.replace(stage, loss=loss)

        self.change(spied)
        return seen

    def change(self, change: Callable[[Stage], Stage]) -> None:
        """Puts another stage in the place of each."""
        plan = dataclasses.replace(self.setup.plan, stages=tuple(map(change, self.stages)))
        self.setup = dataclasses.replace(self.setup, plan=plan)
        self.entered = dataclasses.replace(self.entered, stage=plan.stages[self.state.stage])

    @property
    def trainer(self) -> Trainer:
        """What trains the stage."""
        return Trainer(self.setup, self.state, self.entered)

    @property
    def scorer(self) -> Scorer:
        """What scores the students as they are."""
        return Scorer(self.setup, self.state, self.students)

    @property
    def method(self) -> Method:
        """The run's."""
        return self.setup.method

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All of them, in order."""
        return self.setup.plan.stages

    @property
    def steps(self) -> int:
        """Updates of an epoch."""
        return self.setup.steps

    @property
    def networks(self) -> RunNetworks:
        """Those that were built."""
        return self.setup.networks

    @property
    def students(self) -> list[TrainState]:
        """Those of the stage."""
        return self.entered.students

    @property
    def auxiliary(self) -> nn.ModuleDict:
        """The method's own modules for the student."""
        return self.state.auxiliary["student"]

    def _ended(self, epoch: Epoch) -> None:
        self.recorder.epoch(epoch, bytes)
