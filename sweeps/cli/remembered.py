"""Answers that took long are kept, and given again where nothing that decides them has changed; imports little.

What decides an answer is named by the hash of all of it: the sources of kdbench and the versions that it runs with, the
machine, the arguments, and the files of the store and of the data that are read. A kept answer of another hash is none.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kdbench.bench.atomic import write
from kdbench.bench.environment import processor

PACKAGES = ("bench", "methods", "results", "sweeps")
LIBRARIES = ("kdbench", "torch", "timm", "torchvision", "scikit-learn")
SHALLOW = 2
"""Levels of a folder of data that are looked at."""


class Remembered:
    """An answer of a command, in a file of a store."""

    def __init__(self, root: Path, name: str, arguments: Any) -> None:
        """Asks for nothing yet.

        Args:
            root: the store's folder.
            name: of the command, and of what it is about.
            arguments: what it was asked, as JSON values.
        """
        self.path = root / "answers" / f"{name}.json"
        self.asked = [code(), machine(), json.dumps(arguments, sort_keys=True, default=str)]

    def answer(self, state: Iterable[str]) -> Any:
        """The answer that is kept for this state of files; None if there is none."""
        try:
            kept = json.loads(self.path.read_bytes())
            return kept["answer"] if kept["asked"] == self._hash(state) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, state: Iterable[str], answer: Any) -> None:
        """Keeps an answer of JSON values; a store that cannot be written is no error."""
        content = json.dumps({"asked": self._hash(state), "answer": answer}, default=str)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write(self.path, content.encode(), durable=False)
        except OSError:
            return

    def _hash(self, state: Iterable[str]) -> str:
        return hashlib.sha256("\n".join([*self.asked, *state]).encode()).hexdigest()


def code() -> str:
    """The hash of the sources of kdbench, and the versions of what computes."""
    top, digest = Path(__file__).parents[2], hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (top / package).rglob("*") if path.is_file()):
        if path.suffix != ".pyc" and "evidence" not in path.parts:
            digest.update(f"{path.relative_to(top)}\n".encode() + path.read_bytes())
    return f"{digest.hexdigest()} {sys.version} {[version(name) for name in LIBRARIES]}"


def machine() -> str:
    """The processor, its cores, and which GPUs are shown to this process."""
    gpus = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    shown = [os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")]
    return f"{platform.node()} {processor()} {os.cpu_count()} {gpus} {shown}"


def stated(path: Path) -> str:
    """A file's name, size and time; empty if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{path} {found.st_size} {found.st_mtime_ns}"


def state_of_runs(root: Path) -> Iterator[str]:
    """The files of all runs of a store, and its plans, as far as results are made of them."""
    for path in sorted((root / "runs").glob("*/*")):
        if path.name != "lock":
            yield from map(stated, sorted(path.iterdir()) if path.is_dir() else [path])
    for path in sorted((root / "suites").glob("*/*/*")):
        yield f"{path} {hashlib.sha256(path.read_bytes()).hexdigest()}"


def state_of_data(folder: Path, depth: int = SHALLOW) -> Iterator[str]:
    """What lies in a folder of data sets, to a depth of `SHALLOW`."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        yield stated(path)
        if depth > 1:
            yield from state_of_data(path, depth - 1)
