"""Files that are whole or not there: written to a temporary name, synced, renamed."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = ".*.tmp"
"""The temporary names, as a pattern: files that stay are of processes that died."""
NUMBERS = itertools.count()


def write(path: Path, data: bytes, durable: bool = True) -> None:
    """Writes a whole file or nothing, in a folder that exists.

    Args:
        path: of the file.
        data: its content.
        durable: whether to wait until the disk holds it; what can be made again may be lost when the power fails.
    """
    with replacing(path, durable) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """A temporary path that takes the place of `path` once it has been written; an error leaves `path` as it was.

    It is another one each time, as libraries remember databases by their paths.
    """
    temporary = path.with_name(f".{path.name}.{next(NUMBERS)}.{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:
            _sync(temporary)
        temporary.replace(path)
        if durable:
            _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Has the disk hold what was written to a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(path: Path, folder: Path) -> Path:
    """Moves a file or a folder into another folder of its disk, under a name that is free there; gives its new path."""
    folder.mkdir(parents=True, exist_ok=True)
    names = (f"{path.name}{number or ''}" for number in itertools.count())
    place = next(folder / name for name in names if not (folder / name).exists())
    path.rename(place)
    return place


def writer_of(temporary: Path) -> int | None:
    """The number of the process that wrote, or writes, a file of a temporary name; None for another name."""
    found = re.fullmatch(r"\..*\.(\d+)\.tmp", temporary.name)
    return int(found[1]) if found else None
