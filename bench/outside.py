"""Methods, networks, data sets and tasks that are no part of this package: of a file, a module or an installed package.

A file is code, and is executed when it is named and not before. A method of one has the id CLASS@HASH, of the file's
SHA-256, so that runs of it have another key once the file is edited. The file is all of it: what it imports must be
installed.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

from kdbench.bench.errors import InputError, unknown
from kdbench.methods.base import Method
from kdbench.methods.registry import OF_SOURCE, OUTSIDE, REGISTRY

FILE = re.compile(r"(?P<path>.+\.py)(?::(?P<cls>\w+))?")
MODULE = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<cls>\w+)")
OPERAND = re.compile(r"[^+*(),=\s]+")
"""A name within a composition."""


@dataclass(frozen=True)
class Source:
    """The file of a method from outside."""

    module: str
    """Its dotted name; of a file that is in no package its stem."""
    code: bytes
    origin: str
    """Where it was read, for messages."""

    @property
    def sha256(self) -> str:
        """The digest of the file."""
        return hashlib.sha256(self.code).hexdigest()

    @property
    def digest(self) -> str:
        """The beginning of it that ids have."""
        return self.sha256[:8]


SOURCES: dict[str, Source] = {}
"""What was loaded, by `Source.digest`."""


def method_id(name: str, folder: Path | None = None) -> str:
    """The id of a method by what a user calls it; one from outside is loaded for that.

    Args:
        name: an id; PATH.py, of a file with one method; PATH.py:CLASS; package.module:CLASS; what an installed package
            calls it by an entry point of the group kdbench.methods; or a composition of these.
        folder: where a relative path starts; by default the working directory.

    Raises:
        InputError: if there is no such file, module or class, if it is no method, or cannot be executed.
    """
    folder = folder or Path()
    if (file := FILE.fullmatch(name)) and ("(" not in name and "+" not in name or (folder / file["path"]).is_file()):
        return _chosen(_file(file["path"], folder), file["cls"] or "", name)
    if module := MODULE.fullmatch(name):
        return _chosen(_module(module["module"]), module["cls"], name)
    if entry := brought("methods").get(name):
        if name in REGISTRY:
            raise InputError(f"an installed package calls {entry.value} {name}, as a built-in method: uninstall it.")
        return method_id(entry.value)
    if set("+*(") & set(name):
        return OPERAND.sub(lambda operand: _operand(operand[0], folder), name)
    return name


def _operand(name: str, folder: Path) -> str:
    """A name in a composition; what is no reference, as a weight, stays as it is."""
    known = FILE.fullmatch(name) or MODULE.fullmatch(name) or name in brought("methods")
    return method_id(name, folder) if known else name


@functools.cache
def brought(group: str) -> dict[str, EntryPoint]:
    """What installed packages bring of a kind, as "networks", by name."""
    return {each.name: each for each in importlib.metadata.entry_points(group=f"kdbench.{group}")}


def loaded(group: str, name: str) -> Any:
    """What an installed package brings by a name.

    Raises:
        InputError: if it cannot be imported.
    """
    entry = brought(group)[name]
    try:
        return entry.load()
    except Exception as error:  # what the package's own code raises
        raise InputError(f"{name} is {entry.value} of an installed package, which fails: {error!r}") from None


def _file(path: str, folder: Path) -> Source:
    place = (folder / Path(path).expanduser()).resolve()
    if not place.is_file():
        raise unknown(f"file of {place.parent}", place.name, [each.name for each in place.parent.glob("*.py")])
    return Source(place.stem, place.read_bytes(), str(place))


def _module(name: str) -> Source:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        raise InputError(f"there is no module {name}: {error}. Install its package, or name a file.") from None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise InputError(f"there is no module {name} of Python: install its package, or name a file.")
    return Source(name, Path(spec.origin).read_bytes(), spec.origin)


def _chosen(source: Source, cls: str, name: str) -> str:
    """The id of a class of a source, or of its only method."""
    module = load(source)
    found = _methods(source.digest)
    if not cls and len(found) != 1:
        names = " or ".join(f"{source.origin}:{each}" for each in found)
        rule = f"it has {len(found)}: name one, as {names}" if found else "it has none: put @method above a Method"
        raise InputError(f"{name} names a file of one method, and {rule}.")
    cls = cls or found[0]
    if cls in found:
        return f"{cls}{OF_SOURCE}{source.digest}"
    there = getattr(module, cls, None)
    if there is None:
        raise unknown(f"method of {source.origin}", cls, found)
    if not (isinstance(there, type) and issubclass(there, Method)):
        raise InputError(
            f"{cls} of {source.origin} is no method: let it inherit kdbench.methods.base.Method, below @method."
        )
    raise InputError(f"{cls} of {source.origin} is not registered: put @method above its class.")


def _methods(digest: str) -> list[str]:
    """Classes of the methods that a source has."""
    return [cls.__name__ for name, cls in OUTSIDE.items() if name.endswith(f"{OF_SOURCE}{digest}")]


def load(source: Source) -> ModuleType:
    """Executes a source, once, so that its methods are found by their ids.

    Raises:
        InputError: naming the file's line that cannot be read or raises, or a class that is called as a built-in one.
    """
    name = f"{source.module}{OF_SOURCE}{source.digest}"
    if source.digest in SOURCES:
        return sys.modules[name if name in sys.modules else _twin(source.digest)]
    module = ModuleType(name)
    module.__file__, module.__package__ = source.origin, source.module.rpartition(".")[0]
    sys.modules[name] = module
    try:
        exec(compile(source.code, source.origin, "exec"), module.__dict__)
        _check_names(source)
    except (Exception, SystemExit) as error:  # what the user's own code raises
        del sys.modules[name]
        for each in _methods(source.digest):
            del OUTSIDE[f"{each}{OF_SOURCE}{source.digest}"]
        if isinstance(error, InputError):
            raise
        raise InputError(_where(error, source)) from None
    SOURCES[source.digest] = source
    return module


def _twin(digest: str) -> str:
    """The module that was loaded from another file of the same content."""
    return f"{SOURCES[digest].module}{OF_SOURCE}{digest}"


def _check_names(source: Source) -> None:
    for cls in _methods(source.digest):
        if cls.lower() in REGISTRY:
            raise InputError(
                f"class {cls} of {source.origin} has the name of the built-in method {cls.lower()}: give it another, "
                "so that tables tell them apart."
            )


def _where(error: BaseException, source: Source) -> str:
    """An error of a user's file as one line, with the line of the file that it comes from."""
    if isinstance(error, SyntaxError):
        return f"{source.origin}:{error.lineno}: {error.msg}."
    mine = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == source.origin]
    place = f"{source.origin}:{mine[-1].lineno}" if mine else source.origin
    hint = " A method is one file: what it imports must be installed." if isinstance(error, ImportError) else ""
    return f"{place}: {type(error).__name__}: {' '.join(str(error).split())}{hint}"


def sources_of(names: Iterable[str]) -> list[Source]:
    """The sources of methods by their ids; of those that were loaded."""
    digests = dict.fromkeys(name.rpartition(OF_SOURCE)[2] for name in names)
    return [SOURCES[digest] for digest in digests if digest in SOURCES]
