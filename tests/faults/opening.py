"""Processes that open a store's databases at the same moment."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from kdbench.bench.errors import InputError
from kdbench.results.store.run_store import RunStore
from kdbench.results.tracking.experiment import Experiment
from kdbench.sweeps.scheduling.database import Database


def opening_processes() -> ForkServerContext:
    """Where processes of this module start at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def opens(root: Path, begin: Any) -> None:
    """Makes or opens both; Optuna's as drivers do, who wait for each other."""
    begin.wait()
    store, waiting = RunStore(root), True
    while waiting:
        try:
            with store.exclusive():
                Database(f"sqlite:///{root / 'optuna.db'}")
                waiting = False
        except InputError as error:
            assert "another sweep is using" in str(error), error
            time.sleep(0.02)
    Experiment(root, "toy")
