"""The files of methods from outside, kept beside the runs of them: FOLDER/methods/SHA256/MODULE.py.

The folder is a store, or one of evidence.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kdbench.bench.atomic import write
from kdbench.bench.errors import InputError
from kdbench.bench.spec import ids_from_outside
from kdbench.results.store.files import sha256

METHODS = "methods"


def keep_source(root: Path, module: str, code: bytes) -> None:
    """Keeps a file under the dotted name of its module."""
    path = root / METHODS / sha256(code) / f"{module}.py"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, code)


def kept_source(root: Path, digest: str) -> Path | None:
    """The path of a file by the beginning of its SHA-256, which is checked; None if it is not kept.

    Raises:
        InputError: if it was edited.
    """
    for path in sorted((root / METHODS).glob(f"{digest}*/*.py")):
        if sha256(path.read_bytes()) != path.parent.name:
            raise InputError(f"{path} is damaged or was edited: remove {path.parent} and name the method's own file.")
        return path
    return None


def copy_sources(specs: Iterable[str], origin: Path, to: Path) -> None:
    """Keeps the files of all methods that specifications name also in another folder."""
    for name in ids_from_outside(" ".join(specs)):
        if path := kept_source(origin, name.rpartition("@")[2]):
            keep_source(to, path.stem, path.read_bytes())
