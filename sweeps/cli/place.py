"""Where and how a command computes, as its options say it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from kdbench.bench.environment import command
from kdbench.bench.errors import InputError

if TYPE_CHECKING:
    from kdbench.sweeps.scheduling.workers import Machine

DEFAULT_CACHE = "disk:8"
STORE = "runs"
LEASE, PATIENCE = 60.0, 3600.0
SHORTEST_LEASE = 5.0
"""Seconds: workers show life each second, and may be late on a busy machine."""
Paths = str | Path


class Where(TypedDict, total=False):
    """Where and how to compute; everything has a default."""

    store: Paths
    """The folder of all that is kept: by default runs."""
    device: str
    """auto, cpu, cuda, cuda:1, ..."""
    precision: str
    """auto, fp32, bf16 or measured; of a sweep by default the suite's."""
    cache: str
    """Of teachers' answers: off, disk:8, memory:2, device:4 (GiB)."""
    data_dir: Paths
    """The folder of data sets: by default STORE/data."""
    workers: int
    """Processes: by default one a core on a CPU, one on a GPU."""
    mlflow: bool
    """Whether a single run is logged to MLflow: by default yes."""
    tracking_uri: str
    """Of an mlflow server: by default the database STORE/mlflow.db."""
    lease: float
    """Seconds without a sign of life after which a worker is ended: by default 60."""
    patience: float
    """The same without an update, of a worker that lives: by default 3600."""


@dataclass(frozen=True)
class Place:
    """What the options of commands that compute have in common; texts are not yet checked."""

    store: Path
    device: str = "auto"
    precision: str = "auto"
    cache: str = DEFAULT_CACHE
    """Where teachers' answers are kept: off, or a backend and its GiB, as disk:8."""
    data_dir: Path | None = None
    workers: int = 0
    """Processes; 0 is one a core on a CPU, one on a GPU."""
    tracking: str = ""
    """The address of an MLflow server; by default MLflow's database is in the store."""
    lease: float = LEASE
    patience: float = PATIENCE
    """See Machine."""
    ray: str = ""
    """The Ray cluster that carries runs out, auto or its address; empty for this machine."""
    cpus_per_run: float | None = None
    gpus_per_run: float | None = None
    """Of a node of the cluster; by default 1 CPU, and 1 GPU if the cluster has any."""
    storage: str = ""
    """The PostgreSQL database with which several sweeps work on one suite; empty for a file of the store."""

    @property
    def data(self) -> Path:
        """The folder of data sets."""
        return (self.data_dir or self.store / "data").expanduser().resolve()

    def machine(self) -> Machine:
        """The machine of a sweep.

        Raises:
            InputError: if there is no such device, precision or cache, or a number or address is none.
        """
        from kdbench.bench.training.precision import check_precision

        check_precision(self.precision)
        self._check_watch()
        storage = self._database() if self.storage else ""
        machine = self._cluster() if self.ray else self._this_machine()
        return replace(machine, lease=self.lease, patience=self.patience, tracking=self.tracking, storage=storage)

    def _this_machine(self) -> Machine:
        """Worker processes here."""
        from kdbench.bench.environment import pick_device
        from kdbench.bench.teachers.backends import parse_backend
        from kdbench.sweeps.scheduling.workers import Machine

        if self.cpus_per_run is not None or self.gpus_per_run is not None:
            raise InputError("--cpus-per-run and --gpus-per-run are of a Ray cluster: give it by --ray, or leave them.")
        device = pick_device(self.device)
        parse_backend(self.cache, self.store, device)
        count = self.workers or (1 if device.type == "cuda" else os.cpu_count() or 1)
        return Machine(self.data, str(device), self.precision, count, cache=self.cache)

    def _check_watch(self) -> None:
        """Checks where MLflow is, and for how long a silent worker is waited for."""
        from kdbench.results.tracking.place import check_uri

        check_uri(self.tracking)
        if not (self.lease >= SHORTEST_LEASE and self.patience > 0):  # not a number is none of both
            raise InputError(
                f"--lease is at least {SHORTEST_LEASE:g} s, as workers show life each second, and --patience above 0, "
                f"but got {self.lease:g} and {self.patience:g}."
            )

    def _database(self) -> str:
        """The address of the database, checked."""
        from kdbench.sweeps.scheduling.database import checked

        return checked(self.storage)

    def _cluster(self) -> Machine:
        """The Ray cluster, joined, and found to have room for a run."""
        import torch

        from kdbench.bench.teachers.backends import parse_backend
        from kdbench.sweeps.scheduling.workers import Cluster, Machine
        from kdbench.sweeps.scheduling.workplaces import ray_cluster

        if self.precision == "measured" or self.device not in ("auto", "cpu"):
            raise InputError(
                "on a Ray cluster the device is chosen by --gpus-per-run, and the precision is auto, fp32 or bf16, but "
                f"got --device {self.device} --precision {self.precision}."
            )
        if "://" in self.ray:
            raise InputError(
                "--ray takes auto, or the HOST:PORT of the head of a cluster that this machine has joined, but got "
                f"{self.ray!r}."
            )
        backend = ray_cluster()
        backend.connect(self.ray)
        gpus = self.gpus_per_run
        if gpus is None:
            gpus = 1.0 if self.device == "auto" and backend.has_gpus() else 0.0
        device = "cuda" if gpus else "cpu"
        parse_backend(self.cache, self.store, torch.device(device))
        cluster = Cluster(self.ray, 1.0 if self.cpus_per_run is None else self.cpus_per_run, gpus)
        room = backend.check_room(cluster)
        return Machine(
            self.data, device, self.precision, min(self.workers or room, room), cache=self.cache, cluster=cluster
        )


def where_mlflow_is(root: Path, uri: str) -> str:
    """How what was logged is looked at."""
    return uri or f"{command('mlflow')} ui --backend-store-uri sqlite:///{root / 'mlflow.db'}"


def place_of(where: Where, precision: str) -> Place:
    """The place that functions are given by name, with a precision unless they say one."""
    folder = where.get("data_dir")
    return Place(
        Path(where.get("store", STORE)),
        where.get("device", "auto"),
        where.get("precision", precision),
        where.get("cache", DEFAULT_CACHE),
        Path(folder) if folder else None,
        where.get("workers", 0),
        where.get("tracking_uri", ""),
        where.get("lease", LEASE),
        where.get("patience", PATIENCE),
    )
