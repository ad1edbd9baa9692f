"""The driver of a store: feeds chains of runs to worker processes, and takes up what a worker that died has left.

One driver owns a store: it alone asks Optuna and writes the plan, and its projector's thread alone writes MLflow.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.errors import InputError
from bench.record import Epoch
from bench.spec import Spec
from results.store.plan import Planned, SweepPlan
from results.store.run_store import RunStore, StoredRun
from sweeps.scheduling.sources import provide
from sweeps.scheduling.study import Chain, Job
from sweeps.scheduling.workers import Machine, Worker, ready

LIVES = 3
"""How often a run is begun, if its worker dies each time, before it is given up."""


@dataclass
class _Batch:
    """Jobs that a chain waits for."""

    chain: Chain
    jobs: list[Job]
    runs: dict[int, StoredRun] = field(default_factory=dict)


Ticket = tuple[_Batch, int]


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
        """Starts no worker yet.

        Args:
            store: where runs are kept.
            plan: to which every run is added.
            machine: what to use.
            project: told of every run that has ended.
            report: told of every epoch and of every run that has ended.
        """
        self.store, self.plan, self.machine, self.project, self.report = store, plan, machine, project, report
        self.known = {(*planned.place, planned.key) for planned in plan.runs()}
        self.queue: deque[Ticket] = deque()
        self.busy: dict[Worker, dict[int, Ticket]] = {}
        self.idle: list[Worker] = []
        self.deaths: dict[str, int] = {}
        self.same: dict[str, list[Ticket]] = {}
        """By the key of a run that is queued or under way: the other tickets that wait for it."""
        self.told: set[tuple[str, str, str, int]] = set()
        """Places whose end was reported: several chains may wait for one, as for a teacher."""

    def __enter__(self) -> Driver:
        """Returns the driver itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the driver's workers."""
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
                if (place := (*job.planned.place, job.planned.key)) not in self.known:
                    self.known.add(place)
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
        specs = [_spec(ticket).canonical() for ticket in tickets]
        provide("".join(specs), self.store.root)
        self._tell(worker, specs)

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
        if planned.place not in self.told:
            self.told.add(planned.place)
            self.report(planned, run)
            self.project(planned)


def _spec(ticket: Ticket) -> Spec:
    batch, index = ticket
    return batch.jobs[index].spec
