"""Runs that die: a stand-in for training that writes as real runs do, in processes that are killed where a test says.

It imports no torch, so that a process of it starts in milliseconds.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import pathlib
import signal
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from kdbench.results.store.run_store import Busy, RunStore
from tests.results.conftest import SPEC, epoch, outcome

TEXT = json.dumps(SPEC)
EPOCHS = 5


def train(store: RunStore, key: str = "k", size: int = 1) -> None:
    """Carries a run out to its end; its state has a byte for each epoch, so that one left out or repeated is seen.

    Args:
        store: where it is kept.
        key: of the run.
        size: bytes of a checkpoint for each epoch.
    """
    with store.attempt(key, TEXT, lambda _: None, checkpoint_seconds=0) as attempt:
        state = (attempt.checkpoint() or b"")[::size]
        assert len(state) == len(attempt.kept)
        for number in range(len(state) + 1, EPOCHS + 1):
            state += bytes([number])
            attempt.epoch(epoch(number, of=EPOCHS), functools.partial(_saved, state, size))
        attempt.finish(outcome(0.9), {"last": state, "best": state * size})


def _saved(state: bytes, size: int) -> bytes:
    return b"".join(bytes([value]) * size for value in state)


def processes() -> ForkServerContext:
    """Where processes of this module start at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def doomed(root: Path, place: int, after: bool) -> None:
    """Trains, and dies by SIGKILL at the `place`-th call that changes the disk: before or in it, or just after."""
    count = 0

    def deadly(call: Callable[..., Any], torn: Callable[..., Any] | None = None) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == place and not after:
                if torn:
                    torn(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*arguments, **options)
            if count == place:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return called

    def half(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])

    for name in ("replace", "unlink", "mkdir", "touch"):
        setattr(pathlib.Path, name, deadly(getattr(pathlib.Path, name)))
    pathlib.Path.write_bytes = deadly(pathlib.Path.write_bytes, half)  # type: ignore[method-assign]
    os.fsync = deadly(os.fsync)
    os.rmdir = deadly(os.rmdir)
    train(RunStore(root))


def launched(root: Path, keys: list[str], begin: Any, ledger: Path) -> None:
    """Carries out all keys that no one else does; notes those in a ledger."""
    store = RunStore(root)
    begin.wait()
    for key in keys:
        try:
            train(store, key)
        except Busy:
            continue
        with ledger.open("a") as file:
            file.write(f"{key}\n")
