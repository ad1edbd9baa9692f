"""The driver of a store: feeds chains of runs to workers, and takes up what a worker that died has left.

It asks Optuna and writes the plan, and its projector's thread writes MLflow; workers touch neither.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from kdbench.bench.errors import InputError
from kdbench.bench.record import Epoch
from kdbench.bench.spec import Spec
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.stored_run import StoredRun
from kdbench.sweeps.scheduling.line import Gone, Worker, Workplace
from kdbench.sweeps.scheduling.logs import remove_logs
from kdbench.sweeps.scheduling.sources import provide
from kdbench.sweeps.scheduling.study import Chain, Job
from kdbench.sweeps.scheduling.workers import AGAIN, Machine
from kdbench.sweeps.scheduling.workplaces import workplace_of

LIVES = 3
"""How often a run is begun, if by the machine's fault it ends each time, before it is given up in this sweep."""
PLACE = 30.0
"""Seconds that runs wait for a new worker to find a place while another is idle."""
TICK = 0.5
"""Seconds at most between two looks at whether workers live."""


@dataclass(eq=False)
class _Batch:
    """Jobs that a chain waits for."""

    chain: Chain
    jobs: list[Job]
    runs: dict[int, StoredRun] = field(default_factory=dict)
    given_up: bool = False
    """Whether one of them was: then the chain ends here, and a later sweep takes it up where it was."""


Ticket = tuple[_Batch, int]
News = Epoch | StoredRun | None
"""Of a run: an epoch, its end, or None as it is given to a worker."""


class Driver:
    """Feeds chains to workers."""

    def __init__(
        self,
        store: RunStore,
        plan: SweepPlan,
        machine: Machine,
        project: Callable[[Planned], None],
        report: Callable[[Planned, News], None],
    ) -> None:
        """Starts no worker yet.

        Args:
            store: where runs are kept.
            plan: to which every run is added.
            machine: what to use.
            project: told of every run that has ended.
            report: told of every run that begins, of its epochs, and of its end.
        """
        self.store, self.plan, self.machine, self.project, self.report = store, plan, machine, project, report
        self.workplace: Workplace[Any] = workplace_of(store, machine)
        self.known = {(*planned.place, planned.key) for planned in plan.runs()}
        self.queue: deque[Ticket] = deque()
        self.busy: dict[Worker, dict[int, Ticket]] = {}
        self.idle: list[Worker] = []
        self.later: list[tuple[float, Ticket]] = []
        """What is tried again, and from when by the monotonic clock."""
        self.resting: list[tuple[float, _Batch]] = []
        """Chains that have nothing to carry out now, and from when they are asked again."""
        self.tried: dict[str, int] = {}
        """By key, how often a run has ended by the machine's fault."""
        self.failures: dict[str, str] = {}
        """By key, what became of runs that came to no result."""
        self.given_up = False
        """Whether any was given up, so that what waited for it was not carried out."""
        self.same: dict[str, list[Ticket]] = {}
        """By the key of a run that is queued or under way: the other tickets that wait for it."""
        self.told: set[tuple[str, str, str, int]] = set()
        """Places whose end was reported: several chains may wait for one, as for a teacher."""

    def __enter__(self) -> Driver:
        """Returns the driver itself; what workers of one that was killed have said goes."""
        remove_logs(self.store.root)
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the driver's workers."""
        self.workplace.end([*self.idle, *self.busy])
        self.workplace.close()

    def carry_out(self, chains: list[Chain]) -> None:
        """Runs every chain to its end, or to a run that the machine does not carry out."""
        for each in chains:
            self._advance(_Batch(each, []))
        while self.queue or self.busy or self.later or self.resting:
            self._take_up()
            self._give_back()
            while self.queue and len(self.busy) < self.workplace.room():
                self._dispatch(self._side_by_side())
            self._listen()

    def _take_up(self) -> None:
        """Takes up what is due again; runs that another driver has ended meanwhile need not be carried out."""
        now = time.monotonic()
        due = [ticket for when, ticket in self.later if when <= now]
        rested = [batch for when, batch in self.resting if when <= now]
        self.later = [each for each in self.later if each[0] > now]
        self.resting = [each for each in self.resting if each[0] > now]
        for ticket in due:
            run = self.store.get(_spec(ticket).key)
            if run and (run.pruned or (run.finished and not self.store.damage(run.key))):
                self._end(ticket)
            else:
                self.queue.appendleft(ticket)
        for batch in rested:
            self._advance(batch)

    def _give_back(self) -> None:
        """What has waited long for a place on a cluster goes to workers that have one and nothing to do."""
        for worker in [each for each in self.busy if each.waiting and each.waited > PLACE][: len(self.idle)]:
            self.queue.extendleft(self.busy.pop(worker).values())
            self.workplace.end([worker])

    def _listen(self) -> None:
        """Hears the workers; those that show no sign of life, or make no update, are ended.

        Only time in which this process was awake counts.
        """
        before = time.monotonic()
        heard = self.workplace.ready(list(self.busy), TICK)
        waited = min(time.monotonic() - before, TICK)
        for worker in list(self.busy):
            worker.passed(waited, worker in heard)
            if worker in heard:
                self._hear(worker)
            for seconds, most, what in (
                (worker.silent, self.machine.lease, "gave no sign of life"),
                (worker.still, self.machine.patience, "made no update"),
            ):
                if seconds > most and worker in self.busy:
                    self.workplace.end([worker])
                    self._bury(worker, f"its worker {what} for {most:g} s{worker.said}")

    def _advance(self, batch: _Batch) -> None:
        """Takes a chain whose batch is whole to its next batch; runs that the store has, and whole, are not queued."""
        while len(batch.runs) == len(batch.jobs):
            if batch.given_up:
                batch.chain.close()
                return
            results = [batch.runs[index] for index in range(len(batch.jobs))]
            try:
                jobs = batch.chain.send(results) if batch.jobs else next(batch.chain)
            except StopIteration:
                return
            batch.jobs, batch.runs = jobs, {}
            if not jobs:
                self.resting.append((time.monotonic() + AGAIN, batch))
                return
            for index, job in enumerate(jobs):
                if (place := (*job.planned.place, job.planned.key)) not in self.known:
                    self.known.add(place)
                    self.plan.add(job.planned)
                run = self.store.get(job.spec.key)
                if run and run.finished and self.store.damage(run.key):
                    run = None
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
        if _spec(first).key in self.tried:  # perhaps its worker died: alone, so that it takes no other with it
            return [first]
        most = min(self.machine.together, math.ceil((len(self.queue) + 1) / self.machine.workers))
        shared = _job(first).views
        alike = (
            ticket
            for ticket in (self.queue if shared and most > 1 else ())
            if _job(ticket).views == shared and _spec(ticket).key not in self.tried
        )
        fellows = list(itertools.islice(alike, most - 1))
        for ticket in fellows:
            self.queue.remove(ticket)
        return [first, *fellows]

    def _dispatch(self, tickets: list[Ticket]) -> None:
        worker = self.idle.pop() if self.idle else self.workplace.start()
        worker.begin()
        self.busy[worker] = dict(enumerate(tickets))
        for ticket in tickets:
            self.report(_job(ticket).planned, None)
        provide("".join(_spec(ticket).canonical() for ticket in tickets), self.store.root)
        worker.send([(_spec(ticket).canonical(), _job(ticket).asked_from) for ticket in tickets])

    def _hear(self, worker: Worker) -> None:
        try:
            kind, place, content = worker.recv()
        except Gone as reason:
            self._bury(worker, str(reason))
            return
        if kind == "beat":
            return
        ticket = batch, index = self.busy[worker][place]
        job = batch.jobs[index]
        if kind == "epoch":
            epoch = Epoch(**content)
            self.report(job.planned, epoch)
            goes_on = job.watch(epoch)
            if job.asked_from is not None and epoch.number >= job.asked_from:
                worker.send(goes_on)
            return
        del self.busy[worker][place]
        if not self.busy[worker]:
            del self.busy[worker]
            self.idle.append(worker)
        if kind == "input" and job.planned.phase == "teacher":
            raise InputError(content)
        if kind == "busy":
            self.later.append((time.monotonic() + AGAIN, ticket))
        elif kind == "machine":
            self._try_again(ticket, content)
        else:
            self._end(ticket)

    def _bury(self, worker: Worker, reason: str) -> None:
        """A worker died: its runs go on in another, or are given up."""
        for ticket in self.busy.pop(worker).values():
            self._try_again(ticket, reason)

    def _try_again(self, ticket: Ticket, reason: str) -> None:
        """A run ended by the machine's fault, which is no result: it goes on a little later, or is given up."""
        spec = _spec(ticket)
        self.tried[spec.key] = tried = self.tried.get(spec.key, 0) + 1
        if tried < LIVES:
            self.later.append((time.monotonic() + AGAIN * (tried - 1), ticket))
            return
        reason = f"given up after {LIVES} tries: {reason}"
        with (
            contextlib.suppress(OSError, InputError),
            self.store.attempt(spec.key, spec.canonical(), lambda epoch: None) as attempt,
        ):
            attempt.end("failed", reason)
        self.given_up = True
        for batch, _ in (ticket, *self.same[spec.key]):
            batch.given_up = True
        self._end(ticket, reason)

    def _end(self, ticket: Ticket, reason: str = "") -> None:
        """A run has ended; if it was given up, for a reason."""
        spec = _spec(ticket)
        run = self.store.get(spec.key) or StoredRun(spec.key, spec, "failed", reason, [], None, 0.0, 0.0, [], None)
        if reason:
            run = replace(run, status="failed", reason=reason)
        tickets = [ticket, *self.same.pop(spec.key)]
        for each, place in tickets:
            self._settle(each, place, run)
        for each, _ in tickets:
            self._advance(each)

    def _settle(self, batch: _Batch, index: int, run: StoredRun) -> None:
        planned = batch.jobs[index].planned
        batch.runs[index] = run
        if run.status == "failed":
            place = f"{planned.method} {planned.phase} {planned.number} of {planned.pair}"
            self.failures[run.key] = f"{place} ({run.key}): {run.reason}"
        if planned.place not in self.told:
            self.told.add(planned.place)
            self.report(planned, run)
            self.project(planned)


def _job(ticket: Ticket) -> Job:
    batch, index = ticket
    return batch.jobs[index]


def _spec(ticket: Ticket) -> Spec:
    return _job(ticket).spec
