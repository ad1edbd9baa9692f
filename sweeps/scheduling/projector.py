"""Brings runs to MLflow while a sweep goes on."""

from __future__ import annotations

import queue
import threading

from results.analysis.board import Board
from results.analysis.reproduction import Reproduction
from results.store.plan import Planned, SweepPlan
from results.store.run_store import RunStore


class Projector:
    """A thread that brings ended runs to MLflow, so that training never waits for it; the store stays the truth."""

    def __init__(self, store: RunStore, plan: SweepPlan) -> None:
        """Starts with an empty queue.

        Args:
            store: the store whose runs are projected.
            plan: the plan that names the experiment.
        """
        self.store, self.plan = store, plan
        self.problem = ""
        self.inbox: queue.Queue[Planned | Board | Reproduction | None] = queue.Queue()
        self.thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Projector:
        """Starts the thread that writes."""
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
