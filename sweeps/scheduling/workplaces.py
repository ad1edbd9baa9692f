"""Where the runs of a sweep are carried out: on this machine, or on a Ray cluster."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

from kdbench.bench.errors import InputError
from kdbench.results.store.run_store import RunStore
from kdbench.sweeps.scheduling.line import Workplace
from kdbench.sweeps.scheduling.processes import LocalProcesses
from kdbench.sweeps.scheduling.workers import Machine


def workplace_of(store: RunStore, machine: Machine) -> Workplace[Any]:
    """The place that a machine means; its cluster has been joined."""
    if machine.cluster is None:
        return LocalProcesses(store.root, machine)
    from kdbench.sweeps.scheduling.ray_workers import RayActors

    return RayActors(store, machine)


def ray_cluster() -> ModuleType:
    """What joins a cluster of Ray, which is an optional library.

    Raises:
        InputError: if it is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError("--ray needs Ray, which is not installed here: pip install 'kdbench[ray]'.")
    from kdbench.sweeps.scheduling import ray_cluster

    return ray_cluster
