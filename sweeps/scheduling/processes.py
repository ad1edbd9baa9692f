"""Worker processes on this machine that one driver feeds: how they begin, and how they end."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from kdbench.results.store.run_store import RunStore
from kdbench.sweeps.scheduling.line import Gone, Message, Worker, packed, unpacked
from kdbench.sweeps.scheduling.logs import log_of, said_in, write_to
from kdbench.sweeps.scheduling.serving import BEAT, Server, serve
from kdbench.sweeps.scheduling.workers import Machine

GRACE = 3.0
"""Seconds that workers which are told to end are given before they are killed."""
PR_SET_PDEATHSIG = 1


class LocalWorker(Worker):
    """A process of this machine, and this process's end of the line to it."""

    def __init__(self, store: Path, machine: Machine) -> None:
        """Starts the worker's process.

        Args:
            store: the run store's folder.
            machine: what all workers together may use; this one takes its share.
        """
        super().__init__()
        os.environ["OMP_NUM_THREADS"] = str(machine.share.threads)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])  # imported once for all workers; it holds no thread and no CUDA
        self.errors = log_of(store)
        self.line, end = context.Pipe()
        self.process = context.Process(target=_serve, args=(end, store, machine, self.errors), daemon=True)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: the driver decides on Ctrl-C
        self.process.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        end.close()

    def send(self, message: Any) -> None:
        """See `Worker`."""
        with contextlib.suppress(OSError):
            self.line.send_bytes(packed(message))

    def receive(self) -> Message:
        """See `Worker`."""
        try:
            (kind, place, content), _ = unpacked(self.line.recv_bytes())
            return kind, place, content
        except (EOFError, OSError):
            self.process.join(BEAT)
            _end([self])
            raise Gone(f"its worker {_how(self.process.exitcode)}{self.said}") from None

    @functools.cached_property
    def said(self) -> str:
        """See `Worker`: begin and end, on one line."""
        return said_in(self.errors)


class LocalProcesses:
    """Workers as processes of this machine."""

    def __init__(self, store: Path, machine: Machine) -> None:
        """Starts none yet.

        Args:
            store: the run store's folder.
            machine: what all workers together may use.
        """
        self.store, self.machine = store, machine

    def room(self) -> int:
        """As many as the machine has been given."""
        return self.machine.workers

    def start(self) -> LocalWorker:
        """See `Workplace`."""
        return LocalWorker(self.store, self.machine)

    def ready(self, workers: list[LocalWorker], seconds: float) -> list[LocalWorker]:
        """See `Workplace`."""
        lines: dict[Any, LocalWorker] = {worker.line: worker for worker in workers}
        if not lines:
            time.sleep(seconds)
        return [lines[line] for line in wait(list(lines), seconds)]

    def end(self, workers: Iterable[LocalWorker]) -> None:
        """See `Workplace`."""
        _end(workers)

    def close(self) -> None:
        """Holds nothing."""


def _end(workers: Iterable[LocalWorker]) -> None:
    workers = list(workers)
    for worker in workers:
        worker.process.terminate()
    deadline = time.monotonic() + GRACE
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():  # stopped, or held in the kernel
            worker.process.kill()
            worker.process.join(GRACE)
        worker.line.close()
        _ = worker.said


def _how(code: int | None) -> str:
    """How a process ended."""
    if code is None:
        return "does not end"
    if code < 0:
        memory = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
        return f"was ended by {signal.Signals(-code).name}{memory}"
    return f"ended with exit code {code}"


def _end_with_the_driver() -> None:
    """Has the system kill this process with the server that forked it, as a stopped orphan cannot end by itself.

    The server ends when no one holds the other end of a pipe: the driver, and each worker unless it lets go.
    """
    server: Any = vars(multiprocessing.forkserver)["_forkserver"]
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = None
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _serve(line: Connection, store_root: Path, machine: Machine, errors: Path) -> None:
    """Body of a worker's process."""
    _end_with_the_driver()
    write_to(errors)
    serve(Server(line), RunStore(store_root), machine, machine.data_dir)
