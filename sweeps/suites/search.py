"""Carries out a search for a student: the teachers, the trials, then the front's students on fresh seeds."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from kdbench.bench.data.splits import Splits
from kdbench.bench.errors import Unfinished
from kdbench.bench.tasks import load, task_of
from kdbench.results.analysis.front import Front, front_of, pareto, trials_of
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.search import Limits, Search, keep_search, kept_search
from kdbench.sweeps.candidates import searched
from kdbench.sweeps.scheduling.calibrate import weights_of
from kdbench.sweeps.scheduling.compute import way_of
from kdbench.sweeps.scheduling.driver import Driver, News
from kdbench.sweeps.scheduling.projector import Projector
from kdbench.sweeps.scheduling.search import Resolve, Space, front_chain, search_chain
from kdbench.sweeps.scheduling.study import teachers
from kdbench.sweeps.scheduling.workers import Machine
from kdbench.sweeps.suites.suite import ResolvedPair, Suite
from kdbench.sweeps.suites.sweep import placed
from kdbench.sweeps.weights import doubted, started, with_checkpoints, with_weights


@dataclass(frozen=True)
class Heard:
    """Who is told what while a search goes on."""

    begun: Callable[[Search], None]
    """Told of the candidates, before any training."""
    chosen: Callable[[int], None]
    """Told how many students are on the front, before they are trained again."""
    report: Callable[[Planned, News], None]
    """Told of every run that begins, of its epochs, and of its end."""
    say: Callable[[str], None]
    """Told what is left out, what models' names mean, and what speaks against a teacher."""


def find_students(
    suite: Suite, limits: Limits, store: RunStore, machine: Machine, heard: Heard
) -> tuple[Front, str, list[str]]:
    """Carries out a search, or goes on with one that was interrupted.

    The first pair's teachers teach students that are searched; trials are the budget of the whole search.

    Returns:
        The front, a warning if MLflow could not be written, and what became of runs that failed.

    Raises:
        InputError: if the suite cannot be carried out, no student is within the limits, or another sweep is using the
            store.
        Unfinished: if a teacher of the search was given up.
    """
    with store.exclusive():
        suite, machine = placed(suite, machine)
        data, task, device = load(suite.data, machine.data_dir), task_of(suite.data.task), machine.here
        suite = with_checkpoints(suite.model_copy(update={"pairs": suite.pairs[:1]}), task, data, store)
        suite = suite.model_copy(update={"name": f"{suite.name}-students"})
        digest = _digest(suite, limits, machine.how)
        search = kept_search(store.root / "suites" / suite.name / digest)
        search = search or searched(limits, task, data, device, heard.say)
        suite = _of_students(suite, search)
        plan = SweepPlan.create(store.root, suite.name, digest, suite.record())
        keep_search(plan.folder, search)
        heard.begun(search)
        with (
            Projector(store, plan.name, machine.tracking) as projector,
            Driver(store, plan, machine, projector.add, heard.report) as driver,
        ):
            resolve = _resolver(suite, plan, store, data, machine, heard.say)
            tuned = resolve(search.candidates[0].name, 0)
            for doubt in doubted(task, [model for _, model in tuned.untrained], data, store, device):
                heard.say(doubt)
            driver.carry_out([teachers([tuned])])
            if driver.given_up:
                raise Unfinished(driver.failures.values())
            calibrate = weights_of(suite, plan, store, data, machine)
            methods = suite.methods_of(suite.pairs[0])
            driver.carry_out([search_chain(Space(suite, search, methods, resolve, calibrate), plan.suite.metric)])
            trials, _ = trials_of(plan, store, search)
            front = pareto(trials, plan.suite.metric.sign)
            heard.chosen(len(front))
            driver.carry_out([front_chain(suite, trial, resolve) for trial in front])
        return front_of(plan, store, search), projector.problem, list(driver.failures.values())


def _digest(suite: Suite, limits: Limits, precision: str) -> str:
    """8 hexadecimal digits of all that decides a search but its seeds."""
    methods = suite.methods_of(suite.pairs[0])
    text = f"{suite.digest(precision)} {suite.pairs[0].teachers} {methods} {limits.model_dump_json()}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _of_students(suite: Suite, search: Search) -> Suite:
    """The suite with a pair for each candidate."""
    (pair,) = suite.pairs
    return suite.model_copy(
        update={"pairs": tuple(pair.model_copy(update={"student": each.name}) for each in search.candidates)}
    )


def _resolver(
    suite: Suite, plan: SweepPlan, store: RunStore, data: Splits, machine: Machine, say: Callable[[str], None]
) -> Resolve:
    """Gives the pair of a student under a seed, each once."""
    way = with_weights(way_of(plan, store, data, machine), lambda model: started(model, data, store, say))
    pairs = {pair.student: pair for pair in suite.pairs}

    @functools.cache
    def resolve(student: str, seed: int) -> ResolvedPair:
        return suite.resolve(pairs[student], way, seed)

    return resolve
