"""Where runs are carried out: in this process, or in worker processes that one driver feeds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from bench.data import load
from bench.engine import run
from bench.environment import pick_device
from bench.errors import InputError
from bench.record import Epoch, Stopped, plain
from bench.spec import Spec
from results.store import CHECKPOINT_SECONDS, RunStore, StoredRun

Watch = Callable[[Epoch], bool]
"""Sees an epoch; answers whether the run should go on."""


def carry_out(
    spec: Spec,
    store: RunStore,
    data_dir: Path,
    device: torch.device,
    watch: Watch,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> StoredRun:
    """Carries out a run, or goes on with an interrupted one; a finished one is only read.

    Args:
        spec: what to do.
        store: where it is kept.
        data_dir: where data sets lie.
        device: where to compute.
        watch: sees every epoch, those of earlier attempts first.
        checkpoint_seconds: smallest time between checkpoints.

    Raises:
        InputError: if the specification cannot be carried out; the store notes why.
    """
    known = store.get(spec.key)
    if known and known.finished:
        return known

    def sink_watch(epoch: Epoch) -> None:
        if not watch(epoch) and epoch.number < epoch.of:
            raise Stopped(f"pruned after epoch {epoch.number} of {epoch.of}")

    with store.attempt(spec.key, spec.canonical(), sink_watch, checkpoint_seconds) as attempt:
        try:
            for epoch in attempt.kept:
                sink_watch(epoch)
            outcome, files = run(spec, load(spec.data, data_dir), attempt, device)
        except Stopped as reason:
            attempt.end("stopped", str(reason))
        except Exception as error:
            attempt.end("failed", f"{type(error).__name__}: {error}", traceback.format_exc())
            raise
        else:
            attempt.finish(outcome, files)
    stored = store.get(spec.key)
    assert stored is not None
    return stored


class Worker:
    """A process that carries out one run at a time, and this process's end of the line to it."""

    def __init__(self, store: Path, data_dir: Path, device: str, threads: int) -> None:
        """Starts the process.

        Args:
            store: the run store's folder.
            data_dir: where data sets lie.
            device: name of the device.
            threads: that torch may use.
        """
        os.environ["OMP_NUM_THREADS"] = str(threads)
        context = multiprocessing.get_context("spawn")
        self.line, end = context.Pipe()
        self.process = context.Process(target=_serve, args=(end, store, data_dir, device, threads), daemon=True)
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
    """Those that have something to say, or have died; waits for one."""
    lines: dict[Any, Worker] = {worker.line: worker for worker in workers}
    return [lines[line] for line in wait(list(lines))]


def threads_each(workers: int) -> int:
    """Threads of a worker when so many share the cores."""
    return max(1, (os.cpu_count() or 1) // workers)


def _serve(line: Connection, store_root: Path, data_dir: Path, device: str, threads: int) -> None:
    """Body of a worker: specifications come in; epochs and ends go out; each epoch waits for leave to go on."""
    torch.set_num_threads(threads)
    store, chosen = RunStore(store_root), pick_device(device)

    def watch(epoch: Epoch) -> bool:
        try:
            line.send(("epoch", plain(epoch)))
            return bool(line.recv())
        except (EOFError, OSError):
            raise SystemExit("the driver is gone") from None

    while True:
        try:
            spec = Spec.model_validate_json(line.recv())
        except (EOFError, OSError):
            return
        try:
            carry_out(spec, store, data_dir, chosen, watch)
        except InputError as error:
            line.send(("refused", str(error)))
        except Exception as error:
            line.send(("failed", f"{type(error).__name__}: {error}"))
        else:
            line.send(("ended", ""))
