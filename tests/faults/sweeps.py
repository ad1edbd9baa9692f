"""A real sweep on digits that is killed: a suite of a minute or two, and what of its store must not change."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from kdbench.results.store.files import done_of
from tests.sweeps.test_sweep import begin, finished, numbers, workers_of

SUITE = """
methods = ["student", "kd", "sp"]
seeds = 4

[[pairs]]
teacher = "cifar_resnet8"
student = "cifar_resnet8_quarter"

[data]
name = "digits"
validation = 0.25
train_fraction = 0.2

[recipe]
epochs = 12
batch_size = 32
lr = 0.1
schedule = "cosine"
augment = "crop"

[tuning]
trials = 4

[tuning.search]
lr = { low = 0.03, high = 0.3, log = true }
"""
RUNS = 3 * (4 + 4) + 5
"""With teachers."""


def weights_of(store: Path) -> dict[str, dict[str, str]]:
    """The SHA-256 of every finished run's weights, by key; the records hold times."""
    found = {}
    for key in finished(store):
        done = done_of(store / "runs" / key)
        assert done is not None
        found[key] = {name: digest for name, digest in done["files"].items() if name != "records.jsonl"}
    return found


class Killer:
    """Kills a sweep again and again, and begins it anew, until it is whole."""

    def __init__(self, suite: Path, draw: random.Random, longest: float) -> None:
        """Has killed nothing yet.

        Args:
            suite: what is swept.
            draw: of times and victims.
            longest: seconds between two kills.
        """
        self.suite, self.draw, self.longest = suite, draw, longest
        self.kills: dict[str, int] = {"worker": 0, "driver": 0, "group": 0}

    @property
    def count(self) -> int:
        """Kills so far."""
        return sum(self.kills.values())

    def sweep(self, store: Path, most: int) -> dict[str, Any]:
        """Sweeps into a store, with kills up to so many in all; gives the board."""
        known: dict[str, float] = {}
        process = begin(store, self.suite)
        while True:
            self._let(process, self.draw.uniform(0.0, self.longest) if self.count < most else 600.0)
            now = finished(store)
            assert known.items() <= now.items(), "a finished run was lost, or made again"
            known = now
            if (code := process.poll()) is None:
                process = self._kill(process, store) if self.count < most else process
                continue
            out, err = process.communicate()
            if code == 0:
                board: dict[str, Any] = json.loads(out)
                return board
            assert code == 3 and "given up after 3 tries" in err, err  # three kills of workers at one run
            process = begin(store, self.suite)

    def _let(self, process: subprocess.Popen[str], seconds: float) -> None:
        """Waits so long, or until the sweep has ended."""
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)

    def _kill(self, process: subprocess.Popen[str], store: Path) -> subprocess.Popen[str]:
        """Kills a worker, the driver alone or all, and begins anew at once what that ended."""
        victim = self.draw.choice(list(self.kills))
        if victim == "worker":
            if not (workers := _workers(process)):
                return process
            os.kill(self.draw.choice(workers), signal.SIGKILL)
            self.kills[victim] += 1
            return process
        (os.kill if victim == "driver" else os.killpg)(process.pid, signal.SIGKILL)
        self.kills[victim] += 1
        process.communicate()
        return begin(store, self.suite)


def _workers(process: subprocess.Popen[str]) -> list[int]:
    """Workers of a driver, if it lives and has any."""
    try:
        return workers_of(process.pid)
    except (OSError, ProcessLookupError):
        return []


__all__ = ["RUNS", "SUITE", "Killer", "numbers", "weights_of"]
