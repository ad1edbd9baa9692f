"""Workers as actors of a Ray cluster that is there already.

Ray finds a place for them, tells when they die, and ends them; it retries nothing: the driver does, as everywhere. What
goes on the line is the same as to a process, inside calls of the actor's methods, so that no port of ours is open.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import queue
import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from kdbench.bench.errors import InputError, Unfinished
from kdbench.bench.spec import NUMBERS
from kdbench.bench.training.precision import everywhere
from kdbench.results.store.run_store import RunStore
from kdbench.sweeps.scheduling.far import FarStore, Home
from kdbench.sweeps.scheduling.line import Gone, Message, Worker, packed, unpacked
from kdbench.sweeps.scheduling.logs import log_of, said_in, write_to
from kdbench.sweeps.scheduling.ray_cluster import disconnect, line_of, room_in
from kdbench.sweeps.scheduling.serving import Server, serve
from kdbench.sweeps.scheduling.workers import Cluster, Machine

LOOK = 2.0
"""Seconds between two looks at which nodes a cluster has."""
TELL, HEAR = "tell", "hear"
"""Groups of calls, in each of which one is carried out after another."""


class Carrier:
    """The actor: carries runs out in a thread of its own, and hands messages on in both directions."""

    def __init__(self, mark: str, log: str, machine: Machine) -> None:
        """Begins at once.

        Args:
            mark: a file in the store's folder, seen by those who see the folder.
            log: where standard error goes, if the folder is seen.
            machine: what all workers together may use; this one takes its share.
        """
        self.inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.outbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.mark, self.log, self.machine = Path(mark), Path(log), machine
        threading.Thread(target=self._work, daemon=True).start()

    def tell(self, data: bytes) -> None:
        """Takes what the driver says."""
        self.inbox.put(data)

    def hear(self) -> list[bytes]:
        """What there is to say; waits for something."""
        found = [self.outbox.get()]
        while not self.outbox.empty():
            found.append(self.outbox.get())
        return found

    def send_bytes(self, data: bytes) -> None:
        """See `Wire`."""
        self.outbox.put(data)

    def recv_bytes(self) -> bytes:
        """See `Wire`."""
        return self.inbox.get()

    def _work(self) -> None:
        try:
            server = Server(self)
            server.send("hello", 0, _versions())
            if near := self._near():
                serve(server, near, self.machine, self.machine.data_dir)
            own = everywhere().parent
            data = self.machine.data_dir if self.machine.data_dir.is_dir() else own / "data"
            far = FarStore(server, own / "far")
            serve(server, far, self.machine, data, far.fetch)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def _near(self) -> RunStore | None:
        """The store itself, where its folder is seen and can be written."""
        if not self.mark.exists():
            return None
        write_to(self.log)
        with contextlib.suppress(InputError):
            return RunStore(self.mark.parents[1])
        return None


def _versions() -> dict[str, Any]:
    """What must be equal on the driver and on a node for equal numbers."""
    return {"kdbench": version("kdbench"), "its numbers": NUMBERS, "torch": version("torch")}


class RayWorker(Worker):
    """An actor, and the driver's end of the line to it."""

    def __init__(self, store: RunStore, machine: Machine, cluster: Cluster, mark: Path) -> None:
        """Asks Ray for a place.

        Args:
            store: the run store.
            machine: what all workers together may use.
            cluster: what this one may.
            mark: a file in the store's folder.
        """
        super().__init__()
        self.waiting = True
        self.errors, self.home = log_of(store.root), Home(store)
        wanted = {"num_cpus": cluster.cpus, "num_gpus": cluster.gpus}
        actor = ray.remote(**wanted, max_restarts=0, max_task_retries=0, concurrency_groups={TELL: 1, HEAR: 1})(Carrier)
        self.actor = actor.remote(str(mark), str(self.errors), machine)
        self.heard: deque[bytes] = deque()
        self.hearing = self._hear()

    def send(self, message: Any) -> None:
        """See `Worker`."""
        self._tell(packed(message))

    def receive(self) -> Message:
        """See `Worker`; what it asks of the store is done here, and is a sign of life."""
        message, files = unpacked(self._next())
        kind, place, content = message
        if kind == "hello":
            self.waiting = False
            if content != _versions():
                raise InputError(f"a node of the Ray cluster has {content}, but this machine has {_versions()}.")
        elif kind == "store":
            self._tell(self.home.answer(content, files))
        else:
            return kind, place, content
        return "beat", 0, self.updates

    @functools.cached_property
    def said(self) -> str:
        """See `Worker`; known where the store's folder is shared."""
        return said_in(self.errors)

    def end(self) -> None:
        """Ends the actor, and gives free what it held of the store."""
        with contextlib.suppress(RayError):
            ray.kill(self.actor, no_restart=True)
        self.home.close()
        _ = self.said

    def _hear(self) -> Any:
        return self.actor.hear.options(concurrency_group=HEAR).remote()

    def _tell(self, data: bytes) -> None:
        with contextlib.suppress(RayError):
            self.actor.tell.options(concurrency_group=TELL).remote(data)

    def _next(self) -> bytes:
        if not self.heard:
            try:
                self.heard += ray.get(self.hearing)
            except RayTaskError as error:  # of what we have written ourselves, nothing raises: it cannot be loaded
                raise InputError(f"a node of the Ray cluster cannot run this kdbench: {line_of(error)}") from None
            except RayError as error:
                self.end()
                raise Gone(f"its worker on the Ray cluster is gone: {line_of(error)}{self.said}") from None
            self.hearing = self._hear()
        return self.heard.popleft()


class RayActors:
    """Workers as actors of the cluster that this process has joined."""

    def __init__(self, store: RunStore, machine: Machine) -> None:
        """Starts none yet.

        Args:
            store: the run store.
            machine: what to use; it names the cluster.
        """
        assert machine.cluster is not None
        self.store, self.machine, self.cluster = store, machine, machine.cluster
        self.mark = store.root / "workers" / f"seen-{uuid.uuid4().hex}"
        self.mark.parent.mkdir(exist_ok=True)
        self.mark.touch()
        self.fitting, self.looked, self.had = machine.workers, -math.inf, time.monotonic()

    def room(self) -> int:
        """No more than fit on the nodes that are alive.

        Raises:
            Unfinished: if for long there was none.
        """
        if (now := time.monotonic()) - self.looked > LOOK:
            self.fitting, self.looked = min(self.machine.workers, room_in(self.cluster)), now
            self.had = now if self.fitting else self.had
            if now - self.had > self.machine.patience:
                raise Unfinished([f"the Ray cluster has had no room for a run for {self.machine.patience:g} s"])
        return self.fitting

    def start(self) -> RayWorker:
        """See `Workplace`."""
        return RayWorker(self.store, self.machine, self.cluster, self.mark)

    def ready(self, workers: list[RayWorker], seconds: float) -> list[RayWorker]:
        """See `Workplace`."""
        if not workers:
            time.sleep(seconds)
        if full := [worker for worker in workers if worker.heard]:
            return full
        refs = {worker.hearing: worker for worker in workers}
        if refs:
            ray.wait(list(refs), num_returns=1, timeout=seconds)
            found, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0)
            return [refs[ref] for ref in found]
        return []

    def end(self, workers: Iterable[RayWorker]) -> None:
        """See `Workplace`."""
        for worker in workers:
            worker.end()

    def close(self) -> None:
        """Leaves the cluster."""
        self.mark.unlink(missing_ok=True)
        disconnect()
