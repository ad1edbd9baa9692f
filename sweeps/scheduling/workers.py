"""How a run is carried out in this process, what a sweep may use for it, and whose fault it is if a run ends badly."""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch

from kdbench.bench.data.splits import Splits
from kdbench.bench.environment import pick_device
from kdbench.bench.errors import InputError
from kdbench.bench.record import Epoch, Outcome, Recorder, Stopped
from kdbench.bench.spec import Spec
from kdbench.bench.tasks import load
from kdbench.bench.teachers.backends import DEFAULT_CACHE
from kdbench.bench.teachers.cache import TeacherCache
from kdbench.bench.training.engine import updates
from kdbench.bench.training.interleave import interleave
from kdbench.results.store.run_store import CHECKPOINT_SECONDS, Busy, RunStore
from kdbench.results.store.stored_run import Damaged, StoredRun
from kdbench.sweeps.scheduling.line import Share
from kdbench.sweeps.scheduling.sources import provide

Fault = Literal["busy", "machine", "input", "method"]
"""Whose a bad end is. Another process has the run: it is waited for. The machine's (files, data, memory, damaged
weights): tried again, and no result. The input's: no such run can be carried out. The method's: it is told as a
failure."""

AGAIN = 1.0
"""Seconds after which a run that another process carries out is asked for again."""

Watch = Callable[[Epoch], bool]
"""Sees an epoch; answers whether the run should go on."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and what a run takes of it."""

    address: str
    """auto, or the HOST:PORT of its head."""
    cpus: float = 1.0
    gpus: float = 0.0

    @property
    def share(self) -> Share:
        """What a worker may use of the node that it is on."""
        return Share(max(1, int(self.cpus)), min(1.0, self.gpus) or 1.0)


@dataclass(frozen=True)
class Machine:
    """What a sweep may use."""

    data_dir: Path
    device: str
    precision: str
    """auto, measured, fp32 or bf16: how networks are computed unless the plan says it."""
    workers: int
    together: int = 4
    """Runs that a worker may train side by side if they share teachers and views."""
    cache: str = DEFAULT_CACHE
    """Where teachers' answers are kept: off, or a backend and its GiB, as disk:8."""
    lease: float = 60.0
    """Seconds without a sign of life after which a worker is ended and its runs go on in another."""
    patience: float = 3600.0
    """The same without an update, of a worker that lives."""
    tracking: str = ""
    """The address of an MLflow server; by default MLflow's database is in the store."""
    cluster: Cluster | None = None
    """Where workers are, if not on this machine."""
    storage: str = ""
    """The address of Optuna's database, if several drivers share one; by default a file of the store."""

    @property
    def share(self) -> Share:
        """What one worker may use of the machine that it is on."""
        return self.cluster.share if self.cluster else Share(threads_each(self.workers), 1 / self.workers)

    @property
    def here(self) -> torch.device:
        """Where the driver computes what it needs itself: as the workers do, or on its CPU if it lacks their device."""
        lacking = torch.device(self.device).type == "cuda" and not torch.cuda.is_available()
        return torch.device("cpu") if self.cluster and lacking else pick_device(self.device)

    @property
    def how(self) -> str:
        """By which precision, and on which kind of device: part of what a suite's runs have in common."""
        return f"{self.precision} on {torch.device(self.device).type}"


def carry_out(
    spec: Spec,
    store: RunStore,
    data_dir: Path,
    device: torch.device,
    watch: Watch,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    cache: TeacherCache | None = None,
    waits: Callable[[str], None] = lambda reason: None,
) -> StoredRun:
    """Carries out a run, or goes on with an interrupted one; a finished one is only read.

    One that another process carries out is waited for.

    Args:
        spec: what to do.
        store: where it is kept.
        data_dir: where data sets lie.
        device: where to compute.
        watch: sees every epoch, those of earlier attempts first.
        checkpoint_seconds: smallest time between checkpoints.
        cache: gives what teachers have said before.
        waits: told once what is waited for.

    Raises:
        InputError: if the specification cannot be carried out; the store notes why.
    """
    told, cache = False, cache or TeacherCache()
    while True:
        (error,) = interleave([stored(spec, store, data_dir, device, watch, cache, checkpoint_seconds)], device)
        if not isinstance(error, Exception):
            run = store.get(spec.key)
            assert run is not None
            return run
        if fault_of(error) != "busy":
            raise error
        if not told:
            waits(str(error))
        told = True
        time.sleep(AGAIN)


class Try(Recorder, Protocol):
    """One try at a run, which is given free at its end; `Attempt` is one."""

    kept: list[Epoch]
    """Epochs that an earlier try did and this one need not."""

    def __enter__(self) -> Try:
        """The try itself."""

    def __exit__(self, *exception: object) -> None:
        """Gives the run free."""

    def end(self, event: str, reason: str, detail: str = "") -> None:
        """Notes why it ended without a result: "failed" or "stopped"."""

    def finish(self, outcome: Outcome, files: dict[str, bytes]) -> None:
        """Publishes the result."""


class Keeper(Protocol):
    """What a worker needs of a store; `RunStore` is one."""

    @property
    def root(self) -> Path:
        """A folder of its own, where the teachers' answers and methods from outside are kept."""

    def holds(self, key: str) -> bool:
        """Whether a run is finished, and whole."""

    def attempt(self, key: str, spec: str, watch: Callable[[Epoch], None], checkpoint_seconds: float) -> Try:
        """Starts a try at a run.

        Raises:
            Busy: if another process is at this run, or has just finished it.
        """


def stored(
    spec: Spec,
    store: Keeper,
    data_dir: Path,
    device: torch.device,
    watch: Watch,
    cache: TeacherCache,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Generator[None, None, None]:
    """`carry_out`, which pauses after every update so that others may be trained side by side.

    Raises:
        Busy: if another process is at this run.
    """
    if store.holds(spec.key):
        return
    provide(spec.canonical(), store.root)

    def recorder_watch(epoch: Epoch) -> None:
        if not watch(epoch) and epoch.number < epoch.of:
            raise Stopped(f"pruned after epoch {epoch.number} of {epoch.of}")

    with store.attempt(spec.key, spec.canonical(), recorder_watch, checkpoint_seconds) as attempt:
        try:
            for epoch in attempt.kept:
                recorder_watch(epoch)
            outcome, files = yield from updates(spec, _loaded(spec, data_dir), attempt, device, cache)
        except Stopped as reason:
            attempt.end("stopped", str(reason))
        except (Exception, SystemExit) as error:
            with contextlib.suppress(OSError):  # a full disk has no room for the reason either
                attempt.end("failed", f"{type(error).__name__}: {error}", traceback.format_exc())
            if isinstance(error, SystemExit):
                raise RuntimeError(f"the run called sys.exit({error.code!r})") from error
            raise
        else:
            attempt.finish(outcome, files)


class Unread(InputError):
    """Data that could be read when the run was planned are gone, or are others now."""


def _loaded(spec: Spec, data_dir: Path) -> Splits:
    try:
        return load(spec.data, data_dir)
    except InputError as error:
        raise Unread(str(error)) from None


def fault_of(error: BaseException) -> Fault:
    """Whose fault it is that a run ended by an exception."""
    if isinstance(error, Busy):
        return "busy"
    if isinstance(error, Damaged | Unread | OSError | MemoryError | torch.OutOfMemoryError):
        return "machine"
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):  # torch's, of a CPU
        return "machine"
    return "input" if isinstance(error, InputError) else "method"


def threads_each(workers: int) -> int:
    """Threads of a worker when so many share the cores."""
    return max(1, (os.cpu_count() or 1) // workers)
