"""A Ray cluster that is there already: joining and leaving it, and what there is room for."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray  # noqa: E402

from kdbench.bench.errors import InputError  # noqa: E402
from kdbench.sweeps.scheduling.workers import Cluster  # noqa: E402

REACHED = 5.0
"""Seconds in which the head of a cluster must answer."""


def connect(address: str) -> None:
    """Joins a cluster as a driver; signals stay as they were.

    Raises:
        InputError: if there is none.
    """
    disconnect()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _check_reached(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises errors of several kinds, also of its own
        raise InputError(
            f"there is no Ray cluster at {address!r} that can be joined from here ({line_of(error)}): start one by ray "
            "start --head, join it on this machine, or see docs/cluster.md."
        ) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _check_reached(address: str) -> None:
    """Raises an OSError if nothing listens at an address, of which Ray says nothing for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), REACHED).close()


def disconnect() -> None:
    """Leaves a cluster; its actors that this driver has started end."""
    if ray.is_initialized():
        ray.shutdown()


def room_in(cluster: Cluster) -> int:
    """How many runs fit on the nodes that are alive."""
    return sum(_fitting(cluster, node["Resources"]) for node in _nodes())


def check_room(cluster: Cluster) -> int:
    """How many runs fit.

    Raises:
        InputError: if none does.
    """
    if room := room_in(cluster):
        return room
    has = "; ".join(
        f"{node['NodeManagerAddress']}: {_number(node, 'CPU')} CPUs, {_number(node, 'GPU')} GPUs" for node in _nodes()
    )
    raise InputError(
        f"no node of the Ray cluster has {cluster.cpus:g} CPUs and {cluster.gpus:g} GPUs for a run; it has {has}. Give "
        "less by --cpus-per-run and --gpus-per-run."
    )


def has_gpus() -> bool:
    """Whether any node has one."""
    return any(node["Resources"].get("GPU", 0) for node in _nodes())


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _number(node: dict[str, Any], resource: str) -> str:
    return f"{node['Resources'].get(resource, 0):g}"


def _fitting(cluster: Cluster, resources: dict[str, float]) -> int:
    wanted = {"CPU": cluster.cpus, "GPU": cluster.gpus}
    shares = [resources.get(name, 0.0) / amount for name, amount in wanted.items() if amount]
    return math.floor(min(shares) + 1e-6)


def line_of(error: BaseException) -> str:
    """The line of Ray's error that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith("The actor ") and "because" in line]
    return ((telling or lines or [type(error).__name__])[0])[:300]
