"""Where runs are carried out: in this process, or in worker processes that one driver feeds."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from bench.environment import pick_device
from bench.errors import InputError
from bench.record import Epoch, Stopped, plain
from bench.spec import Spec
from bench.tasks import load
from bench.teachers.backends import DEFAULT_CACHE, parse_backend
from bench.teachers.cache import TeacherCache
from bench.training.engine import updates
from bench.training.interleave import interleave
from results.store.run_store import CHECKPOINT_SECONDS, RunStore, StoredRun
from sweeps.scheduling.sources import provide

Watch = Callable[[Epoch], bool]
"""Sees an epoch; answers whether the run should go on."""


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


def carry_out(
    spec: Spec,
    store: RunStore,
    data_dir: Path,
    device: torch.device,
    watch: Watch,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    cache: TeacherCache | None = None,
) -> StoredRun:
    """Carries out a run, or goes on with an interrupted one; a finished one is only read.

    Args:
        spec: what to do.
        store: where it is kept.
        data_dir: where data sets lie.
        device: where to compute.
        watch: sees every epoch, those of earlier attempts first.
        checkpoint_seconds: smallest time between checkpoints.
        cache: gives what teachers have said before.

    Raises:
        InputError: if the specification cannot be carried out; the store notes why.
    """
    course = stored(spec, store, data_dir, device, watch, cache or TeacherCache(), checkpoint_seconds)
    (run,) = interleave([course], device)
    if isinstance(run, Exception):
        raise run
    return run


def stored(
    spec: Spec,
    store: RunStore,
    data_dir: Path,
    device: torch.device,
    watch: Watch,
    cache: TeacherCache,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Generator[None, None, StoredRun]:
    """`carry_out`, which pauses after every update so that others may be trained side by side."""
    known = store.get(spec.key)
    if known and known.finished:
        return known

    provide(spec.canonical(), store.root)

    def recorder_watch(epoch: Epoch) -> None:
        if not watch(epoch) and epoch.number < epoch.of:
            raise Stopped(f"pruned after epoch {epoch.number} of {epoch.of}")

    with store.attempt(spec.key, spec.canonical(), recorder_watch, checkpoint_seconds) as attempt:
        try:
            for epoch in attempt.kept:
                recorder_watch(epoch)
            outcome, files = yield from updates(spec, load(spec.data, data_dir), attempt, device, cache)
        except Stopped as reason:
            attempt.end("stopped", str(reason))
        except Exception as error:
            attempt.end("failed", f"{type(error).__name__}: {error}", traceback.format_exc())
            raise
        else:
            attempt.finish(outcome, files)
    run = store.get(spec.key)
    assert run is not None
    return run


class Worker:
    """A process that carries out runs, some side by side, and this process's end of the line to it."""

    def __init__(self, store: Path, machine: Machine) -> None:
        """Starts the worker's process.

        Args:
            store: the run store's folder.
            machine: what all workers together may use; this one takes its share.
        """
        os.environ["OMP_NUM_THREADS"] = str(threads_each(machine.workers))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])  # imported once for all workers; it holds no thread and no CUDA
        self.line, end = context.Pipe()
        self.process = context.Process(target=_serve, args=(end, store, machine), daemon=True)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: the driver decides on Ctrl-C
        self.process.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        end.close()

    def close(self) -> None:
        """Ends the process; a run under way goes on later from its last checkpoint."""
        self.process.terminate()
        self.process.join()
        self.line.close()


def ready(workers: list[Worker]) -> list[Worker]:
    """The workers that have something to say, or have died; waits for at least one."""
    lines: dict[Any, Worker] = {worker.line: worker for worker in workers}
    return [lines[line] for line in wait(list(lines))]


def threads_each(workers: int) -> int:
    """Threads of a worker when so many share the cores."""
    return max(1, (os.cpu_count() or 1) // workers)


def _serve(line: Connection, store_root: Path, machine: Machine) -> None:
    """Body of a worker: specifications come in; epochs and ends go out; each epoch waits for leave to go on."""
    torch.set_num_threads(threads_each(machine.workers))
    store, device = RunStore(store_root), pick_device(machine.device)
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1 / machine.workers, device)
    cache = TeacherCache(parse_backend(machine.cache, store_root / "cache", device))

    def watch(place: int, epoch: Epoch) -> bool:
        try:
            line.send(("epoch", place, plain(epoch)))
            return bool(line.recv())
        except (EOFError, OSError):
            raise SystemExit("the driver is gone") from None

    def told(place: int, spec: Spec) -> Generator[None, None, None]:
        course = stored(spec, store, machine.data_dir, device, functools.partial(watch, place), cache)
        try:
            yield from course
            line.send(("ended", place, ""))
        except InputError as error:
            line.send(("refused", place, str(error)))
        except Exception as error:
            line.send(("failed", place, f"{type(error).__name__}: {error}"))

    while True:
        try:
            specs = [Spec.model_validate_json(text) for text in line.recv()]
        except (EOFError, OSError):
            return
        interleave([told(place, spec) for place, spec in enumerate(specs)], device)
