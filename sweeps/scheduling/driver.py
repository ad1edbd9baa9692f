"""Carries out a suite: teachers first, then a chain of runs for each method and pair, spread over workers.

One driver owns a store: it alone asks Optuna and writes the plan, and its projector thread alone writes MLflow.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from filelock import FileLock, Timeout

from bench.environment import pick_device
from bench.errors import InputError
from bench.networks.build import check_model
from bench.networks.precision import chosen
from bench.record import Epoch
from bench.spec import ModelSpec, Recipe, Spec
from bench.tasks import load
from results.analysis.leaderboard import Board, leaderboard
from results.analysis.reproduction import Reproduction
from results.store.plan import Planned, SweepPlan
from results.store.run_store import RunStore, StoredRun
from sweeps.scheduling.study import Chain, Job, chain, storage_at
from sweeps.scheduling.workers import Machine, Worker, ready, threads_each
from sweeps.suites.suite import ResolvedPair, Suite

LIVES = 3
"""How often a run is begun whose worker dies, before it is given up."""


@dataclass
class _Batch:
    """Jobs that a chain waits for."""

    chain: Chain
    jobs: list[Job]
    runs: dict[int, StoredRun] = field(default_factory=dict)


Ticket = tuple[_Batch, int]


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
    with only_driver(store):
        for pair in suite.pairs:
            for name in (*pair.teachers, pair.student):
                check_model(name)
        plan = plan_of(suite, store, machine)
        suite = suite.model_copy(update={"data": plan.suite.data})
        storage = storage_at(f"sqlite:///{store.root / 'optuna.db'}")
        with Projector(store, plan) as projector, Driver(store, plan, machine, projector.add, report) as driver:
            resolved = _casts(suite, store, machine)
            driver.carry_out([_teachers(resolved)])
            studies = [(cast, method) for cast in resolved for method in suite.methods_of(cast.pair)]
            driver.carry_out([chain(suite, cast, method, plan, storage) for cast, method in studies])
            board = leaderboard(plan, store)
            projector.finish(board)
        return board, projector.problem


def plan_of(suite: Suite, store: RunStore, machine: Machine) -> SweepPlan:
    """The plan of a suite in a store; reads the data to know their fingerprint."""
    from bench.tasks import read

    fingerprint = read(suite.data, machine.data_dir).fingerprint
    suite = suite.model_copy(update={"data": suite.data.model_copy(update={"fingerprint": fingerprint})})
    load(suite.data, machine.data_dir)
    digest = suite.digest(f"{machine.precision} on {pick_device(machine.device).type}")
    return SweepPlan.create(store.root, suite.name, digest, suite.model_dump(mode="json"))


def _casts(suite: Suite, store: RunStore, machine: Machine) -> list[ResolvedPair]:
    """The suite's pairs, each network with the way in which a worker computes it best."""
    splits, device = load(suite.data, machine.data_dir), pick_device(machine.device)

    def way(model: ModelSpec, recipe: Recipe) -> ModelSpec:
        return chosen(model, splits, recipe, machine.precision, device, store.root / "compute.json")

    threads = torch.get_num_threads()
    torch.set_num_threads(threads_each(machine.workers))
    try:
        return [suite.cast(pair, way) for pair in suite.pairs]
    finally:
        torch.set_num_threads(threads)


def _teachers(resolved: list[ResolvedPair]) -> Chain:
    """Every pair's teachers, each trained once; without them nothing can be compared."""
    jobs = [
        Job(Planned(cast.pair.name, "teacher", "teacher", number, spec.key), spec)
        for cast in resolved
        for number, spec in enumerate(cast.teachers)
    ]
    for job, run in zip(jobs, (yield jobs), strict=True):
        if run.status != "done":
            raise InputError(f"the teacher of {job.planned.pair} could not be trained: {run.status}: {run.reason}")


@contextlib.contextmanager
def only_driver(store: RunStore) -> Iterator[None]:
    """Keeps other drivers from a store.

    Raises:
        InputError: if one is using it.
    """
    lock = FileLock(store.root / "driver.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"another sweep is using {store.root}: wait for it, or give another --store.") from None
    try:
        yield
    finally:
        lock.release()


class Driver:
    """Feeds chains to workers."""

    def __init__(
        self,
        store: RunStore,
        plan: SweepPlan,
        machine: Machine,
        project: Callable[[Planned], None],
        report: Callable[[Planned, Epoch | StoredRun], None],
    ) -> None:
        """Starts without workers.

        Args:
            store: where runs are kept.
            plan: to which every run is added.
            machine: what to use.
            project: told of every run that has ended.
            report: likewise, and of every epoch.
        """
        self.store, self.plan, self.machine, self.project, self.report = store, plan, machine, project, report
        self.known = {(*planned.place, planned.key) for planned in plan.runs()}
        self.queue: deque[Ticket] = deque()
        self.busy: dict[Worker, dict[int, Ticket]] = {}
        self.idle: list[Worker] = []
        self.deaths: dict[str, int] = {}
        self.same: dict[str, list[Ticket]] = {}
        """Of a run that is queued or under way, by key: who else waits for it."""

    def __enter__(self) -> Driver:
        """The driver itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends its workers."""
        for worker in (*self.idle, *self.busy):
            worker.close()

    def carry_out(self, chains: list[Chain]) -> None:
        """Runs every chain to its end."""
        for each in chains:
            self._advance(_Batch(each, []))
        while self.queue or self.busy:
            while self.queue and len(self.busy) < self.machine.workers:
                self._dispatch(self._side_by_side())
            for worker in ready(list(self.busy)):
                self._hear(worker)

    def _advance(self, batch: _Batch) -> None:
        """Takes a chain whose batch is whole to its next batch; runs that the store has are not queued."""
        while len(batch.runs) == len(batch.jobs):
            results = [batch.runs[index] for index in range(len(batch.jobs))]
            try:
                jobs = batch.chain.send(results) if batch.jobs else next(batch.chain)
            except StopIteration:
                return
            batch.jobs, batch.runs = jobs, {}
            for index, job in enumerate(jobs):
                if (*job.planned.place, job.planned.key) not in self.known:
                    self.plan.add(job.planned)
                run = self.store.get(job.spec.key)
                if run and (run.finished or (job.settled and run.status == "stopped")):
                    self._settle(batch, index, run)
                elif job.spec.key in self.same:
                    self.same[job.spec.key].append((batch, index))
                else:
                    self.same[job.spec.key] = []
                    self.queue.append((batch, index))

    def _side_by_side(self) -> list[Ticket]:
        """Takes the next run from the queue, and others that learn from the same teachers about the same views.

        No more than leave work for every worker.
        """
        first = self.queue.popleft()
        if _spec(first).key in self.deaths:  # its worker died: alone, so that it takes no other with it
            return [first]
        most = min(self.machine.together, math.ceil((len(self.queue) + 1) / self.machine.workers))
        shared = _spec(first).views()
        fellows = [
            ticket
            for ticket in self.queue
            if shared and _spec(ticket).views() == shared and _spec(ticket).key not in self.deaths
        ][: most - 1]
        for ticket in fellows:
            self.queue.remove(ticket)
        return [first, *fellows]

    def _dispatch(self, tickets: list[Ticket]) -> None:
        worker = self.idle.pop() if self.idle else Worker(self.store.root, self.machine)
        self.busy[worker] = dict(enumerate(tickets))
        self._tell(worker, [_spec(ticket).canonical() for ticket in tickets])

    def _tell(self, worker: Worker, message: object) -> None:
        """Sends to a worker; one that has died says so when it is next heard."""
        with contextlib.suppress(OSError):
            worker.line.send(message)

    def _hear(self, worker: Worker) -> None:
        try:
            kind, place, content = worker.line.recv()
        except (EOFError, OSError):
            worker.close()
            for ticket in self.busy.pop(worker).values():
                self._bury(ticket)
            return
        batch, index = self.busy[worker][place]
        job = batch.jobs[index]
        if kind == "epoch":
            epoch = Epoch(**content)
            self.report(job.planned, epoch)
            self._tell(worker, job.watch(epoch))
            return
        del self.busy[worker][place]
        if not self.busy[worker]:
            del self.busy[worker]
            self.idle.append(worker)
        if kind == "refused" and job.planned.phase == "teacher":
            raise InputError(content)
        self._end(batch, index)

    def _bury(self, ticket: Ticket) -> None:
        """A worker died: its run goes on in another, or is given up."""
        batch, index = ticket
        spec = batch.jobs[index].spec
        self.deaths[spec.key] = self.deaths.get(spec.key, 0) + 1
        if self.deaths[spec.key] < LIVES:
            self.queue.appendleft(ticket)
            return
        with self.store.attempt(spec.key, spec.canonical(), lambda epoch: None) as attempt:
            attempt.end("failed", f"its worker died {LIVES} times (killed, or out of memory)")
        self._end(batch, index)

    def _end(self, batch: _Batch, index: int) -> None:
        key = batch.jobs[index].spec.key
        run = self.store.get(key)
        assert run is not None
        tickets = [(batch, index), *self.same.pop(key)]
        for each, place in tickets:
            self._settle(each, place, run)
        for each, _ in tickets:
            self._advance(each)

    def _settle(self, batch: _Batch, index: int, run: StoredRun) -> None:
        planned = batch.jobs[index].planned
        batch.runs[index] = run
        self.report(planned, run)
        self.project(planned)


def _spec(ticket: Ticket) -> Spec:
    batch, index = ticket
    return batch.jobs[index].spec


class Projector:
    """A thread that brings ended runs to MLflow, so that training never waits for it; the store stays the truth."""

    def __init__(self, store: RunStore, plan: SweepPlan) -> None:
        """Starts idle.

        Args:
            store: whose runs are projected.
            plan: names the experiment.
        """
        self.store, self.plan = store, plan
        self.problem = ""
        self.inbox: queue.Queue[Planned | Board | Reproduction | None] = queue.Queue()
        self.thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Projector:
        """Starts the thread."""
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Waits for what is queued, unless something went wrong."""
        self.inbox.put(None)
        if not any(exception):
            self.thread.join()

    def add(self, planned: Planned) -> None:
        """Queues a run that has ended."""
        self.inbox.put(planned)

    def finish(self, board: Board, table: Reproduction | None = None) -> None:
        """Queues the comparison table, and a paper's beside ours if the plan is of one."""
        self.inbox.put(board)
        if table:
            self.inbox.put(table)

    def _work(self) -> None:
        try:
            from results.tracking.tracker import Tracker

            tracker = Tracker(self.store, self.plan.name)
            while (item := self.inbox.get()) is not None:
                if isinstance(item, Planned):
                    tracker.run(item)
                elif isinstance(item, Board):
                    tracker.board(item)
                else:
                    tracker.reproduction(item)
        except Exception as error:  # a copy that fails must not end the sweep
            self.problem = f"MLflow was not brought up to date ({type(error).__name__}: {error}); try: kdbench sync"
