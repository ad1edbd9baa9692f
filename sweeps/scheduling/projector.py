"""Brings runs to MLflow while a sweep goes on."""

from __future__ import annotations

import queue
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from kdbench.bench.errors import reason
from kdbench.results.analysis.board import Board
from kdbench.results.analysis.reproduction import Reproduction
from kdbench.results.store.plan import Planned
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.stored_run import StoredRun

if TYPE_CHECKING:
    from kdbench.results.tracking.tracker import Tracker

TRIES, SOON = 5, 0.1
"""How often something is tried in a row, as a reply may be lost for each request that it takes; and the seconds after
the first try, twice as many after each."""
AGAIN = 1.0
"""Seconds after which what could not be written so is tried again; twice as many each time, up to LONGEST."""
LONGEST = 60.0
GRACE = 30.0
"""Seconds at the end of a sweep in which something that is left must be written, if the last try failed."""

OTHERS = 60.0
"""Seconds in which another sweep that works on the same suite should have written a run."""

Item = Planned | StoredRun | Board | Reproduction


class Projector:
    """A thread that brings ended runs to MLflow, so that training never waits for it; the store stays the truth."""

    def __init__(self, store: RunStore, experiment: str, uri: str = "", database: Path | None = None) -> None:
        """Starts with an empty queue.

        Args:
            store: the store whose runs are projected.
            experiment: its name, as the plan's.
            uri: of a tracking server; by default MLflow's database is in the store.
            database: in place of STORE/mlflow.db.
        """
        self.store, self.to = store, (experiment, uri, database)
        self.error = ""
        """Of the last try, if it failed."""
        self.queued = self.written = 0
        """Items so far; the first is counted by the sweep's thread, the second by this one's."""
        self.ending, self.given_up = threading.Event(), threading.Event()
        self.inbox: queue.Queue[Item] = queue.Queue()
        self.tracker: Tracker | None = None
        self.thread = threading.Thread(target=self._work, daemon=True)

    @property
    def problem(self) -> str:
        """What was not written in the end, and why; empty if all was."""
        left = self.queued - self.written
        why = f" ({self.error})" if self.error else ""
        at = f" --tracking-uri {self.to[1]}" if self.to[1] else ""
        said = f"MLflow was not brought up to date: {left} of {self.queued} runs and pages are not yet there{why}"
        return f"{said}; nothing is lost, and when it answers again: kdbench sync{at}" if left else ""

    def __enter__(self) -> Projector:
        """Starts the thread that writes."""
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Waits for what is queued, unless the sweep was ended; not for long while MLflow cannot be written."""
        self.ending.set()
        written, deadline = -1, 0.0
        while not any(exception) and self.thread.is_alive():
            if self.written != written:
                written, deadline = self.written, time.monotonic() + GRACE
            if self.error and time.monotonic() > deadline:
                break
            self.thread.join(0.1)
        self.given_up.set()
        if not any(exception):
            self.thread.join(LONGEST)  # what it is writing may have an end yet

    def add(self, planned: Planned) -> None:
        """Queues a run that has ended."""
        self._put(planned)

    def single(self, run: StoredRun) -> None:
        """Queues a run that belongs to no suite."""
        self._put(run)

    def finish(self, board: Board, table: Reproduction | None = None) -> None:
        """Queues the comparison table, and a paper's beside ours if the plan is of one."""
        self._put(board)
        if table:
            self._put(table)

    def _put(self, item: Item) -> None:
        self.queued += 1
        self.inbox.put(item)

    def _work(self) -> None:
        pause = AGAIN
        while not (self.given_up.is_set() or (self.ending.is_set() and self.written == self.queued)):
            try:
                item = self.inbox.get(timeout=0.1)
            except queue.Empty:
                continue
            if self._written_at_last(item):
                self.written, pause = self.written + 1, AGAIN
                continue
            self.inbox.put(item)
            self.ending.wait(pause)
            pause = min(LONGEST, 2 * pause)

    def _written_at_last(self, item: Item) -> bool:
        """Tries to write an item, some times in a row."""
        for tried in range(TRIES):
            if self._written(item):
                return True
            if self.given_up.wait(SOON * 2**tried):
                break
        return False

    def _written(self, item: Item) -> bool:
        """Tries to write an item; a copy that fails must not end the sweep, and is tried again."""
        try:
            with FileLock(self.store.root / "projector.lock", timeout=OTHERS):
                self._write(item)
        except Timeout:
            self.error = "another sweep of this store is writing"
            return False
        except Exception as error:  # MLflow raises what its database raised
            self.error = f"{type(error).__name__}: {reason(error)}"
            return False
        self.error = ""
        return True

    def _write(self, item: Item) -> None:
        from kdbench.results.tracking.tracker import Tracker

        self.tracker = self.tracker or Tracker(self.store, *self.to)
        if isinstance(item, Planned):
            self.tracker.run(item)
        elif isinstance(item, StoredRun):
            tags = {"method": item.spec.method, "phase": "run"}
            self.tracker.single(item, f"{item.spec.method}: {item.spec.student.name}", tags)
        elif isinstance(item, Board):
            self.tracker.board(item)
        else:
            self.tracker.reproduction(item)
