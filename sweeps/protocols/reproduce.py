"""Carries out a protocol: teachers once, then every row's seeds; and sets what they gave beside the paper's table."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

from kdbench.bench.data.images import ImageSplits
from kdbench.bench.data.info import check_data
from kdbench.bench.tasks import load
from kdbench.results.analysis.leaderboard import leaderboard
from kdbench.results.analysis.reproduction import Reproduction, reproduction_of_plan
from kdbench.results.analysis.reproduction import reproduction_of as beside
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.sweeps.protocols.request import TableRequest, row_name
from kdbench.sweeps.scheduling.compute import way_of
from kdbench.sweeps.scheduling.driver import Driver, News
from kdbench.sweeps.scheduling.projector import Projector
from kdbench.sweeps.scheduling.study import Chain, Job
from kdbench.sweeps.scheduling.workers import Machine
from kdbench.sweeps.suites.suite import Way
from kdbench.sweeps.weights import doubting, imported, with_weights


def carry_out(
    request: TableRequest,
    store: RunStore,
    machine: Machine,
    report: Callable[[Planned, News], None],
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> tuple[str, list[str]]:
    """Carries out a request, or goes on with one that was interrupted.

    Args:
        request: what to do.
        store: where everything is kept.
        machine: what to use.
        report: told of every run that begins, of its epochs, and of its end.
        say: told what speaks against a teacher.

    Returns:
        A warning if MLflow could not be written, and what became of runs that failed.

    Raises:
        InputError: if the data are missing, the request cannot be carried out, or another sweep is using the store.
    """
    fingerprint = check_data(request.protocol.data, machine.data_dir)
    data = request.protocol.data.model_copy(update={"fingerprint": fingerprint})
    digest = request.protocol.digest(f"{fingerprint} {machine.how}")
    whole = dataclasses.replace(request, protocol=request.protocol.model_copy(update={"data": data}))
    splits = load(data, machine.data_dir)
    assert isinstance(splits, ImageSplits), "papers' tables are of image classification"
    with store.exclusive():
        plan = SweepPlan.create(store.root, request.protocol.name, digest, request.record())
        with (
            Projector(store, plan.name, machine.tracking) as projector,
            Driver(store, plan, machine, projector.add, doubting(report, say)) as driver,
        ):
            way = with_weights(way_of(plan, store, splits, machine), lambda model: imported(model, splits, store))
            driver.carry_out(_chains(*_jobs(whole, way)))
            projector.finish(leaderboard(plan, store), reproduction_of_plan(plan, store))
    return projector.problem, list(driver.failures.values())


def _jobs(request: TableRequest, way: Way) -> tuple[list[Job], list[list[Job]]]:
    """The teachers, and each row's seeds."""
    pairs = [pair for pair in request.protocol.pairs if pair.name in request.pairs]
    teachers = [
        Job(Planned(pair.name, "teacher", "teacher", number, spec.key), spec)
        for pair in pairs
        for number, spec in enumerate(request.teachers(pair, way))
    ]
    rows = [
        [
            Job(Planned(pair.name, row_name(subset, row), "seed", spec.seed, spec.key), spec)
            for spec in request.specs(pair, subset, row, way)
        ]
        for pair, subset, row in request.rows()
    ]
    return teachers, [row for row in rows if row]


def _chains(teachers: list[Job], rows: list[list[Job]]) -> list[Chain]:
    """What a pair's teacher must come before, a chain a pair; and all that waits for no training."""
    first = {job.planned.pair: job for job in teachers if job.planned.number == 0}
    alone = [job for job in teachers if job.planned.number]
    taught: dict[str, list[Job]] = {pair: [] for pair in first}
    for job in (job for row in rows for job in row):
        (taught.get(job.planned.pair, alone) if job.spec.teachers else alone).append(job)
    return [*(_taught(first[pair], jobs) for pair, jobs in taught.items()), _together(alone)]


def _taught(teacher: Job, jobs: list[Job]) -> Chain:
    """A teacher's training, then, if it came to an end, its students' side by side."""
    (run,) = yield [teacher]
    if run.status == "done" and jobs:
        yield jobs


def _together(jobs: list[Job]) -> Chain:
    """Jobs that may all run side by side."""
    if jobs:
        yield jobs


def plan_of(request: TableRequest, root: Path) -> SweepPlan | None:
    """The plan under which a request was last run, if it ever was: of this protocol, or else of an earlier version."""
    plans = [SweepPlan(path.parent) for path in (root / "suites" / request.protocol.name).glob("*/suite.json")]
    same = [plan for plan in plans if plan.suite.identity == request.protocol.digest()]
    earlier = [plan for plan in plans if plan.suite.scale == request.scale]
    return max(same or earlier, key=lambda plan: plan.last_run, default=None)


def reproduction_of(request: TableRequest, root: Path) -> Reproduction:
    """The table as it stands; runs of an earlier version of its protocol or of kdbench are shown, and said to be so."""
    table, plan = request.table(), plan_of(request, root)
    if plan and plan.suite.identity != request.protocol.digest():
        said = "These runs are of an earlier version of this protocol or of kdbench; the next ones will be made anew."
        table = dataclasses.replace(table, notes=[*table.notes, said])
    return beside(table, plan, RunStore(root, read_only=True) if plan else None)
