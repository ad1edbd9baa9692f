"""Between a driver and those who carry runs out: the workers, the places where they work, and what is said on the line.

On the line goes a message of JSON, perhaps with files behind it. To a worker: lists of specifications, each with the
epoch from which on to ask for leave to go on. From it: (kind, place, content), where a kind is epoch, ended, a `Fault`,
or beat: a sign of life with the number of updates so far.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

Message = tuple[str, int, Any]


class Gone(Exception):
    """A worker has died; the message says how, with the end of its standard error."""


class Wire(Protocol):
    """A worker's end of the line; a pipe's end is one."""

    def send_bytes(self, data: bytes) -> None:
        """Sends to the driver; an OSError means that it is gone."""

    def recv_bytes(self) -> bytes:
        """What the driver sends; waits for it. An OSError or EOFError means that it is gone."""


def packed(message: Any, *files: bytes) -> bytes:
    """A message of JSON values, and files, as they go on a line."""
    head = json.dumps([message, [len(file) for file in files]])
    return b"\n".join([head.encode(), b"".join(files)])


def unpacked(data: bytes) -> tuple[Any, list[bytes]]:
    """The message, and the files behind it."""
    start = data.index(b"\n") + 1
    message, sizes = json.loads(data[:start])
    files = []
    for size in sizes:
        files.append(data[start : start + size])
        start += size
    return message, files


@dataclass(frozen=True)
class Share:
    """What one worker may use of the machine that it is on."""

    threads: int
    memory: float
    """Of a GPU's, from 0 to 1."""


class Worker(ABC):
    """The driver's end of the line to one who carries runs out, some side by side."""

    def __init__(self) -> None:
        """Starts with no sign of life."""
        self.silent = self.still = self.waited = 0.0
        """Seconds since it was heard, since it made an update, and for a place to work at."""
        self.updates = -1
        """How many it had made."""
        self.waiting = False
        """Whether it still waits for a place, and so cannot say anything."""

    @abstractmethod
    def send(self, message: Any) -> None:
        """Sends JSON values; one that has died says so when it is next heard."""

    @abstractmethod
    def receive(self) -> Message:
        """What the worker says; waits for it.

        Raises:
            Gone: if it has died.
        """

    @property
    @abstractmethod
    def said(self) -> str:
        """What one that has ended wrote to its standard error, in brackets; empty if that is not known."""

    def recv(self) -> Message:
        """`receive`, which counts as a sign of life, and as an update unless it is a beat without one.

        Raises:
            Gone: if it has died.
        """
        kind, place, content = self.receive()
        if kind != "beat" or content != self.updates:
            self.still = 0.0
        if kind == "beat":
            self.updates = content
        return kind, place, content

    def begin(self) -> None:
        """Something new to do: what it left undone before is forgotten."""
        self.silent = self.still = self.waited = 0.0

    def passed(self, seconds: float, heard: bool) -> None:
        """So much time has passed, in which it was heard or not."""
        if self.waiting:
            self.waited += seconds
            return
        self.still += seconds
        self.silent = 0.0 if heard else self.silent + seconds


W = TypeVar("W", bound=Worker)


class Workplace(Protocol[W]):
    """Where runs are carried out: processes of this machine, or a cluster."""

    def room(self) -> int:
        """How many workers there is room for, now."""

    def start(self) -> W:
        """A new worker."""

    def ready(self, workers: list[W], seconds: float) -> list[W]:
        """Those that have something to say, or have died; waits so long for one."""

    def end(self, workers: Iterable[W]) -> None:
        """Ends workers, also those that do not listen; a run under way goes on later from its last checkpoint."""

    def close(self) -> None:
        """Gives free what the place itself holds."""
