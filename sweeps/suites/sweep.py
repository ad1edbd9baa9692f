"""Carries out a suite: the teachers of every pair's tuning first, then a chain of runs for each method and pair."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import replace

from kdbench.bench.data.images import named
from kdbench.bench.errors import Unfinished
from kdbench.bench.networks.build import check_model
from kdbench.bench.tasks import load, read, task_of
from kdbench.results.analysis.board import Board
from kdbench.results.analysis.leaderboard import leaderboard
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.sweeps.scheduling.calibrate import weights_of
from kdbench.sweeps.scheduling.compute import way_of
from kdbench.sweeps.scheduling.database import database_of
from kdbench.sweeps.scheduling.driver import Driver, News
from kdbench.sweeps.scheduling.forecast import Expected
from kdbench.sweeps.scheduling.projector import Projector
from kdbench.sweeps.scheduling.study import chain, teachers
from kdbench.sweeps.scheduling.workers import Machine
from kdbench.sweeps.suites.suite import Suite
from kdbench.sweeps.weights import doubted, doubting, started, with_checkpoints, with_weights
from kdbench.sweeps.weights import named as model_named


def sweep(
    suite: Suite,
    store: RunStore,
    machine: Machine,
    report: Callable[[Planned, News], None],
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> tuple[Board, str, list[str]]:
    """Carries out a suite, or goes on with one that was interrupted.

    Args:
        suite: what to compare.
        store: where everything is kept.
        machine: what to use.
        report: told of every run that begins, of its epochs, and of its end.
        say: told what models' names mean, and what speaks against a teacher.

    Returns:
        The leaderboard, a warning if MLflow could not be written, and what became of runs that failed.

    Raises:
        InputError: if the suite cannot be carried out, or another sweep is using the store.
        Unfinished: if a teacher of the tuning was given up, without which nothing can be compared.
    """
    with store.exclusive(together=bool(machine.storage)):
        suite, machine = placed(suite, machine)
        data, task, device = load(suite.data, machine.data_dir), task_of(suite.data.task), machine.here
        suite = with_checkpoints(suite, task, data, store)
        digest = suite.digest(machine.how)
        plan = SweepPlan.create(store.root, suite.name, digest, suite.record())
        database, report = database_of(store.root, machine, say), doubting(report, say)
        projector = Projector(store, plan.name, machine.tracking)
        with projector, Driver(store, plan, machine, projector.add, report) as driver:
            way = with_weights(way_of(plan, store, data, machine), lambda model: started(model, data, store, say))
            resolves = [functools.partial(suite.resolve, pair, way) for pair in suite.pairs]
            tuned = [resolve(0) for resolve in resolves]
            for doubt in doubted(task, [model for each in tuned for _, model in each.untrained], data, store, device):
                say(doubt)
            driver.carry_out([teachers(tuned)])
            if driver.given_up:
                raise Unfinished(driver.failures.values())
            calibrate = weights_of(suite, plan, store, data, machine)
            driver.carry_out(
                [
                    chain(suite, resolve, method, plan, store, database, calibrate)
                    for pair, resolve in zip(suite.pairs, resolves, strict=True)
                    for method in suite.methods_of(pair)
                ]
            )
            projector.finish(board := leaderboard(plan, store))
        return board, projector.problem, list(driver.failures.values())


def placed(suite: Suite, machine: Machine) -> tuple[Suite, Machine]:
    """A suite of models that there are, with the fingerprint of its data, and the machine that finds these.

    A folder of images that the suite names by a path is where the machine looks for data.
    """
    for pair in suite.pairs:
        for model in (*pair.teachers, pair.student):
            check_model(model_named(model))
    name, folder = named(suite.data.name, machine.data_dir)
    data = suite.data.model_copy(update={"name": name})
    data = data.model_copy(update={"fingerprint": read(data, folder).fingerprint})
    return suite.model_copy(update={"data": data}), replace(machine, data_dir=folder)


def expected(suite: Suite) -> list[Expected]:
    """The runs that a suite takes, by pair and method, its teachers' first."""
    found = []
    for pair in suite.pairs:
        trained = 0 if pair.teacher_weights else len(pair.teachers) * (1 + suite.seeds)
        found.append(Expected(pair.name, "teacher", trained, suite.teacher_recipe(pair).epochs))
        runs = suite.tuning.trials + suite.seeds
        found += [Expected(pair.name, row, runs, suite.recipe_of(pair, row).epochs) for row in suite.methods_of(pair)]
    return found
