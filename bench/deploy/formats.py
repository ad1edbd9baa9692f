"""What every format of an exported student says and does, and all formats by name."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from kdbench.bench.atomic import write
from kdbench.bench.deploy.student import Student
from kdbench.bench.errors import InputError

Answer = Callable[[Tensor], Tensor]
"""Gives logits (N, K) or (N, K, S, S) for pixels (N, C, S, S) uint8."""

CONFIG = "config.json"


class Format(ABC):
    """A way in which a student is written into a folder, and read from it without this package."""

    name: ClassVar[str]
    lines: ClassVar[tuple[str, str, str]]
    """Python that loads it, from within the folder."""
    use: ClassVar[str]
    """How logits come of what these lines made, in one line of Python."""
    takes: ClassVar[str]
    """What `use` is given, as an end of a sentence."""

    def check(self, student: Student) -> None:  # noqa: B027  (most formats take every network)
        """Checks, before anything is written, that this format can hold a student.

        Raises:
            InputError: saying why not, and which format can.
        """

    @abstractmethod
    def write(self, student: Student, folder: Path) -> None:
        """Writes a student's files.

        Raises:
            InputError: if its network turns out not to fit the format.
        """

    @abstractmethod
    def load(self, student: Student, folder: Path) -> Answer:
        """What the files in a folder answer, by the library that reads them.

        Args:
            student: what was written, for what the format leaves to its user.
            folder: where it was written.
        """


def write_config(student: Student, folder: Path) -> None:
    """Writes config.json: architecture, names of the classes, input and normalisation."""
    write(folder / CONFIG, json.dumps(student.config(), indent=1).encode(), durable=False)


def refused(student: Student, name: str, error: Exception) -> InputError:
    """An error that says in one line why a format cannot take a network."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError(f"{student.name} cannot be written as {name} ({type(error).__name__}: {reason}).")


def required(module: str) -> Any:
    """A module of the optional libraries for ONNX.

    Raises:
        InputError: if it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"this format needs {module.partition('.')[0]}: pip install 'kdbench[onnx]'.") from None
