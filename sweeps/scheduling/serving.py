"""A worker's side of the line: carries out what it is told, and shows epochs, ends and signs of life."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NoReturn

import torch

from kdbench.bench.environment import pick_device
from kdbench.bench.errors import InputError
from kdbench.bench.record import Epoch, plain
from kdbench.bench.spec import Spec
from kdbench.bench.teachers.backends import parse_backend
from kdbench.bench.teachers.cache import TeacherCache
from kdbench.bench.training.interleave import interleave
from kdbench.sweeps.scheduling.line import Wire, packed, unpacked
from kdbench.sweeps.scheduling.workers import Keeper, Machine, fault_of, stored

BEAT = 1.0
"""Seconds between a worker's signs of life; so soon an orphan ends, too."""


class Server:
    """A worker's side of the line."""

    def __init__(self, wire: Wire) -> None:
        """Starts with signs of life when there is something to do."""
        self.wire, self.lock, self.updates = wire, threading.Lock(), 0
        self.working = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def send(self, kind: str, place: int, content: Any, *files: bytes) -> None:
        """Sends to the driver; without one there is nothing left to do, and locks are given free."""
        try:
            with self.lock:
                self.wire.send_bytes(packed((kind, place, content), *files))
        except OSError:
            os._exit(1)

    def recv(self) -> tuple[Any, list[bytes]]:
        """What the driver says, and the files that it sends."""
        try:
            return unpacked(self.wire.recv_bytes())
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
        return bool(self.recv()[0]) if asked_from is not None and epoch.number >= asked_from else True

    def told(self, place: int, course: Generator[None, None, Any]) -> Generator[None, None, None]:
        """A run that says how it has ended."""
        try:
            for _ in course:
                self.updates += 1
                yield
            self.send("ended", place, "")
        except Exception as error:
            self.send(fault_of(error), place, str(error) if isinstance(error, InputError) else repr(error))


def serve(
    server: Server,
    store: Keeper,
    machine: Machine,
    data_dir: Path,
    fetch: Callable[[str], None] = lambda text: None,
) -> NoReturn:
    """Body of a worker: specifications come in; epochs and ends go out.

    Args:
        server: its side of the line.
        store: where runs are kept, and what is only of use to a worker, as the teachers' answers.
        machine: what all workers together may use; this one takes its share.
        data_dir: where data sets lie, here.
        fetch: brings the methods from outside that a specification names, where they are not at hand.
    """
    torch.set_num_threads(machine.share.threads)
    device = pick_device(machine.device)
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(machine.share.memory, device)
    cache = TeacherCache(parse_backend(machine.cache, store.root / "cache", device))

    def course(place: int, text: str, asked_from: int | None) -> Generator[None, None, Any]:
        spec, watch = Spec.model_validate_json(text), functools.partial(server.watch, place, asked_from)
        fetch(text)
        return server.told(place, stored(spec, store, data_dir, device, watch, cache))

    while True:
        told, _ = server.recv()
        server.working.set()
        interleave([course(place, *each) for place, each in enumerate(told)], device)
        server.working.clear()
