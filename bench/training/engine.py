"""run(): carries out specifications. It knows stages, students and teachers, and no method or task by name."""

from __future__ import annotations

from collections.abc import Generator

import torch

from kdbench.bench.data.splits import Splits
from kdbench.bench.environment import environment
from kdbench.bench.record import Outcome, Recorder
from kdbench.bench.spec import Spec
from kdbench.bench.teachers.cache import TeacherCache
from kdbench.bench.training.interleave import interleave
from kdbench.bench.training.run_state import Diverged, RunState, load_weights, opened, restored, saved
from kdbench.bench.training.scorer import Result, Scorer
from kdbench.bench.training.setup import Setup, set_up
from kdbench.bench.training.stage_entry import EnteredStage, enter
from kdbench.bench.training.trainer import Trainer
from kdbench.methods.base import Unsupported


def run(
    spec: Spec, data: Splits, recorder: Recorder, device: torch.device, cache: TeacherCache | None = None
) -> Result:
    """Trains and scores what a specification says; goes on from the recorder's checkpoint if there is one.

    Args:
        spec: what to do.
        data: split as the spec says.
        recorder: receives epochs, keeps checkpoints, and gives stored weights.
        device: where to compute.
        cache: gives what teachers have said before.

    Raises:
        Stopped: if the recorder ends the run.
        InputError: if the specification cannot be carried out.
    """
    (result,) = interleave([updates(spec, data, recorder, device, cache or TeacherCache())], device)
    if isinstance(result, Exception):
        raise result
    return result


def updates(
    spec: Spec, data: Splits, recorder: Recorder, device: torch.device, cache: TeacherCache
) -> Generator[None, None, Result]:
    """`run`, which pauses after every update so that others may be trained side by side.

    Those that share a cache and ask the same teachers about the same batches are given the same answers; each ends as
    it would alone.
    """
    try:
        return (yield from _carried_out(set_up(spec, data, recorder, device, cache)))
    except Unsupported as reason:
        return Outcome(status="unsupported", reason=str(reason), environment=environment(device)), {}
    except Diverged as reason:
        return Outcome(status="diverged", reason=str(reason), environment=environment(device)), {}


def rehearse(spec: Spec, data: Splits, recorder: Recorder, device: torch.device) -> None:
    """Makes one update of every stage and scores nothing, to see whether a method works on a pair.

    Raises:
        Unsupported: if it does not; the message names what is missing.
    """
    with torch.random.fork_rng():
        setup, state = set_up(spec, data, recorder, device, TeacherCache()), RunState()
        for state.stage in range(len(setup.plan.stages)):
            Trainer(setup, state, enter(setup, state, state.stage)).rehearse()


def _carried_out(setup: Setup) -> Generator[None, None, Result]:
    """Every stage from where the run is, then its scores."""
    state, entered = _begun(setup)
    yield from _stage(setup, state, entered)
    while state.stage + 1 < len(setup.plan.stages):
        state.stage, state.epoch = state.stage + 1, 0
        entered = enter(setup, state, state.stage)
        yield from _stage(setup, state, entered)
    return Scorer(setup, state, entered.students).result()


def _begun(setup: Setup) -> tuple[RunState, EnteredStage]:
    """The first stage, or where a checkpoint left the run: its stages so far name and build its networks."""
    file = setup.recorder.checkpoint()
    values = None if file is None else opened(file, setup.device)
    if values is None:
        state = RunState()
        return state, enter(setup, state, 0)
    state = restored(values)
    for index in range(state.stage + 1):
        entered = enter(setup, state, index)
    load_weights(values, state, dict(setup.networks.built), entered.students)
    return state, entered


def _stage(setup: Setup, state: RunState, entered: EnteredStage) -> Generator[None, None, None]:
    """Trains a stage to its end."""
    scorer = Scorer(setup, state, entered.students)

    def checkpoint() -> bytes:
        trained = {name: setup.networks.built[name] for name in setup.networks.trained}
        return saved(state, dict(trained), entered.students)

    trainer = Trainer(setup, state, entered)
    yield from trainer.train(lambda epoch: setup.recorder.epoch(epoch, checkpoint), scorer.validate)
