"""Carries out a suite: every pair's teachers first, then a chain of runs for each method and pair."""

from __future__ import annotations

from collections.abc import Callable

from bench.environment import pick_device
from bench.errors import InputError
from bench.networks.build import check_model
from bench.record import Epoch
from bench.tasks import load, read
from results.analysis.leaderboard import Board, leaderboard
from results.store.plan import Planned, SweepPlan
from results.store.run_store import RunStore, StoredRun
from sweeps.scheduling.compute import way_of
from sweeps.scheduling.driver import Driver
from sweeps.scheduling.projector import Projector
from sweeps.scheduling.study import Chain, Job, chain, storage_at
from sweeps.scheduling.workers import Machine
from sweeps.suites.suite import ResolvedPair, Suite


def sweep(
    suite: Suite,
    store: RunStore,
    machine: Machine,
    report: Callable[[Planned, Epoch | StoredRun], None],
) -> tuple[Board, str]:
    """Carries out a suite, or goes on with one that was interrupted.

    Args:
        suite: what to compare.
        store: where everything is kept.
        machine: what to use.
        report: told of every epoch and of every run that has ended.

    Returns:
        The leaderboard, and a warning if MLflow could not be written.

    Raises:
        InputError: if the suite cannot be carried out, or another sweep is using the store.
    """
    with store.exclusive():
        for pair in suite.pairs:
            for name in (*pair.teachers, pair.student):
                check_model(name)
        fingerprint = read(suite.data, machine.data_dir).fingerprint
        suite = suite.model_copy(update={"data": suite.data.model_copy(update={"fingerprint": fingerprint})})
        data = load(suite.data, machine.data_dir)
        digest = suite.digest(f"{machine.precision} on {pick_device(machine.device).type}")
        plan = SweepPlan.create(store.root, suite.name, digest, suite.record())
        storage = storage_at(f"sqlite:///{store.root / 'optuna.db'}")
        with Projector(store, plan) as projector, Driver(store, plan, machine, projector.add, report) as driver:
            way = way_of(plan, store, data, machine)
            resolved = [suite.resolve(pair, way) for pair in suite.pairs]
            driver.carry_out([_teachers(resolved)])
            studies = [(pair, method) for pair in resolved for method in suite.methods_of(pair.pair)]
            driver.carry_out([chain(suite, pair, method, plan, store, storage) for pair, method in studies])
            board = leaderboard(plan, store)
            projector.finish(board)
        return board, projector.problem


def _teachers(resolved: list[ResolvedPair]) -> Chain:
    """Every pair's teachers, each trained once; without them nothing can be compared."""
    jobs = [
        Job(Planned(each.pair.name, "teacher", "teacher", number, spec.key), spec)
        for each in resolved
        for number, spec in enumerate(each.teachers)
    ]
    for job, run in zip(jobs, (yield jobs), strict=True):
        if run.status != "done":
            raise InputError(f"the teacher of {job.planned.pair} could not be trained: {run.status}: {run.reason}")
