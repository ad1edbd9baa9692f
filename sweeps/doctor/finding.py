"""What is found in a store, and the few ways in which it is mended: nothing that is finished and valid is removed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from kdbench.bench.atomic import TEMPORARY, set_aside, write, writer_of

DAMAGED = "damaged"
"""The folder of a store for what was set aside."""


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be."""

    path: Path
    what: str
    """What it means."""
    remedy: str
    """What mending does."""
    mend: Callable[[], object]


def aside(root: Path, path: Path, what: str, then: str) -> Finding:
    """A finding that is set aside in STORE/damaged, where it harms no one.

    Args:
        root: of the store.
        path: of the file or folder.
        what: it means.
        then: follows from setting it aside.
    """
    return Finding(path, what, f"set aside in {DAMAGED}; {then}", lambda: set_aside(path, root / DAMAGED))


def removed(path: Path, what: str) -> Finding:
    """A finding that no one needs."""
    remove = (lambda: shutil.rmtree(path)) if path.is_dir() else (lambda: path.unlink(missing_ok=True))
    return Finding(path, what, "remove it", remove)


def without_lines(path: Path, bad: set[int], what: str, then: str) -> Finding:
    """A finding of lines that cannot be read, by number, 1 the first; also a torn last line is cut."""

    def mend() -> None:
        lines = path.read_bytes().split(b"\n")[:-1]
        kept = [line + b"\n" for number, line in enumerate(lines, start=1) if number not in bad]
        write(path, b"".join(kept))

    return Finding(path, what, f"cut them; {then}", mend)


def leftovers(root: Path) -> Iterator[Finding]:
    """What processes that died have left: half files under temporary names, and what workers said."""
    for path in root.rglob(TEMPORARY):
        if (pid := writer_of(path)) is not None and not psutil.pid_exists(pid):
            yield removed(path, "a file that a process died over")
    for path in root.glob(".probe-*"):
        yield removed(path, "a trial whether the store can be written, by a process that died")
    for path in (root / "workers").glob("*.log"):
        driver = path.name.partition("-")[0]
        if not (driver.isdigit() and psutil.pid_exists(int(driver))):
            yield removed(path, "what a worker of a driver that is gone has said")


def readable(path: Path, read: Callable[[Path], object]) -> bool:
    """Whether a function can read a file."""
    with contextlib.suppress(Exception):
        read(path)
        return True
    return False
