"""Carries out a suite: the teachers of every pair's tuning first, then a chain of runs for each method and pair."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

from bench.data.images import named
from bench.environment import pick_device
from bench.networks.build import check_model
from bench.record import Epoch
from bench.tasks import load, read
from results.analysis.board import Board
from results.analysis.leaderboard import leaderboard
from results.store.plan import Planned, SweepPlan
from results.store.run_store import RunStore, StoredRun
from sweeps.scheduling.calibrate import weights_of
from sweeps.scheduling.compute import way_of
from sweeps.scheduling.driver import Driver
from sweeps.scheduling.projector import Projector
from sweeps.scheduling.study import chain, storage_at, teachers
from sweeps.scheduling.workers import Machine
from sweeps.suites.suite import Suite


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
    name, folder = named(suite.data.name, machine.data_dir)
    suite = suite.model_copy(update={"data": suite.data.model_copy(update={"name": name})})
    machine = replace(machine, data_dir=folder)
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
            resolves = [functools.partial(suite.resolve, pair, way) for pair in suite.pairs]
            driver.carry_out([teachers([resolve(0) for resolve in resolves])])
            calibrate = weights_of(suite, plan, store, data, machine)
            driver.carry_out(
                [
                    chain(suite, resolve, method, plan, store, storage, calibrate)
                    for pair, resolve in zip(suite.pairs, resolves, strict=True)
                    for method in suite.methods_of(pair)
                ]
            )
            board = leaderboard(plan, store)
            projector.finish(board)
        return board, projector.problem
