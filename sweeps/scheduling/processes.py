"""Worker processes on this machine that one driver feeds: what they are told, how they show life, and how they end.

On the line between driver and worker goes JSON. To the worker: lists of specifications, each with the epoch from which
on to ask for leave to go on. From it: (kind, place, content), where a kind is epoch, ended, a `Fault`, or beat:
a sign of life with the number of updates so far.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import itertools
import json
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from kdbench.bench.environment import pick_device
from kdbench.bench.errors import InputError
from kdbench.bench.record import Epoch, plain
from kdbench.bench.spec import Spec
from kdbench.bench.teachers.backends import parse_backend
from kdbench.bench.teachers.cache import TeacherCache
from kdbench.bench.training.interleave import interleave
from kdbench.results.store.run_store import RunStore
from kdbench.sweeps.scheduling.workers import Machine, fault_of, stored, threads_each

BEAT = 1.0
"""Seconds between a worker's signs of life; so soon an orphan ends, too."""
GRACE = 3.0
"""Seconds that workers which are told to end are given before they are killed."""
SAID = 1000
"""Characters of a dead worker's standard error that the reason of a failure shows."""
PR_SET_PDEATHSIG = 1

Message = tuple[str, int, Any]


class Gone(Exception):
    """A worker has died; the message says how, with the end of its standard error."""


class Worker:
    """A process that carries out runs, some side by side, and this process's end of the line to it."""

    numbers = itertools.count()

    def __init__(self, store: Path, machine: Machine) -> None:
        """Starts the worker's process.

        Args:
            store: the run store's folder.
            machine: what all workers together may use; this one takes its share.
        """
        os.environ["OMP_NUM_THREADS"] = str(threads_each(machine.workers))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])  # imported once for all workers; it holds no thread and no CUDA
        self.errors = store / "workers" / f"{os.getpid()}-{next(self.numbers)}.log"
        self.line, end = context.Pipe()
        self.process = context.Process(target=_serve, args=(end, store, machine, self.errors), daemon=True)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: the driver decides on Ctrl-C
        self.process.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        end.close()
        self.silent, self.still, self.updates = 0.0, 0.0, -1
        """Seconds since it was heard, and since it made an update; and how many it had made."""

    def send(self, message: Any) -> None:
        """Sends to the worker; one that has died says so when it is next heard."""
        with contextlib.suppress(OSError):
            self.line.send_bytes(json.dumps(message).encode())

    def recv(self) -> Message:
        """What the worker says; waits for it.

        Raises:
            Gone: if it has died.
        """
        try:
            kind, place, content = json.loads(self.line.recv_bytes())
        except (EOFError, OSError):
            self.process.join(BEAT)
            end([self])
            raise Gone(f"its worker {_how(self.process.exitcode)}{self.said}") from None
        if kind != "beat" or content != self.updates:
            self.still = 0.0
        if kind == "beat":
            self.updates = content
        return kind, place, content

    @functools.cached_property
    def said(self) -> str:
        """What a worker that has ended wrote to its standard error, begin and end, on one line and in brackets."""
        try:
            lines = self.errors.read_text(errors="replace").splitlines()
            self.errors.unlink()
        except OSError:
            return ""
        text = " / ".join(line.strip() for line in lines if line.strip() and not line.startswith("Extension modules"))
        if len(text) > SAID:
            text = f"{text[: SAID // 2]} ... {text[-SAID // 2 :]}"
        return f" ({text})" if text else ""


def ready(workers: list[Worker], seconds: float) -> list[Worker]:
    """The workers that have something to say, or have died; waits so long for one."""
    lines: dict[Any, Worker] = {worker.line: worker for worker in workers}
    if not lines:
        time.sleep(seconds)
    return [lines[line] for line in wait(list(lines), seconds)]


def end(workers: Iterable[Worker]) -> None:
    """Ends processes, also those that do not listen; a run under way goes on later from its last checkpoint."""
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


class _Server:
    """A worker's side of the line."""

    def __init__(self, line: Connection) -> None:
        self.line, self.lock, self.updates = line, threading.Lock(), 0
        self.working = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def send(self, kind: str, place: int, content: Any) -> None:
        """Sends to the driver; without one there is nothing left to do, and locks are given free."""
        try:
            with self.lock:
                self.line.send_bytes(json.dumps((kind, place, content)).encode())
        except OSError:
            os._exit(1)

    def recv(self) -> Any:
        """What the driver says."""
        try:
            return json.loads(self.line.recv_bytes())
        except (EOFError, OSError):
            os._exit(1)

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT)
            self.working.wait()
            self.send("beat", 0, self.updates)

    def watch(self, place: int, asked_from: int | None, epoch: Epoch) -> bool:
        """Shows an epoch, and waits for leave to go on from the epoch on that asks for it."""
        self.send("epoch", place, plain(epoch))
        return bool(self.recv()) if asked_from is not None and epoch.number >= asked_from else True

    def told(self, place: int, course: Generator[None, None, Any]) -> Generator[None, None, None]:
        """A run that says how it has ended."""
        try:
            for _ in course:
                self.updates += 1
                yield
            self.send("ended", place, "")
        except Exception as error:
            self.send(fault_of(error), place, str(error) if isinstance(error, InputError) else repr(error))


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
    """Body of a worker: specifications come in; epochs and ends go out."""
    _end_with_the_driver()
    with contextlib.suppress(OSError):
        errors.parent.mkdir(exist_ok=True)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        faulthandler.enable(2)
    torch.set_num_threads(threads_each(machine.workers))
    store, device = RunStore(store_root), pick_device(machine.device)
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1 / machine.workers, device)
    cache = TeacherCache(parse_backend(machine.cache, store_root / "cache", device))
    server = _Server(line)

    def course(place: int, text: str, asked_from: int | None) -> Generator[None, None, Any]:
        spec, watch = Spec.model_validate_json(text), functools.partial(server.watch, place, asked_from)
        return server.told(place, stored(spec, store, machine.data_dir, device, watch, cache))

    while True:
        told = server.recv()
        server.working.set()
        interleave([course(place, *each) for place, each in enumerate(told)], device)
        server.working.clear()
