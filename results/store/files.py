"""How folders are laid out and read: a run's attempts, its records line by line, its DONE.json; what is evidence."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdbench.bench.errors import InputError

PLAN = "plan.json"
"""The file of a folder of evidence that names the others."""


def sha256(data: bytes) -> str:
    """The hexadecimal SHA-256 digest of data."""
    return hashlib.sha256(data).hexdigest()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file, without a torn last one; none if the file is not there.

    Raises:
        InputError: if a line before the last cannot be read.
    """
    if not path.exists():
        return []
    return list(parsed(path.read_bytes(), path))


def parsed(data: bytes, path: Path) -> Iterator[dict[str, Any]]:
    """The JSON lines that a file has, without a torn last one.

    Raises:
        InputError: if a line before the last cannot be read.
    """
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            yield json.loads(line)
        except ValueError:
            raise InputError(f"{path}, line {number}, is damaged. Remove {path.parent} to have it made anew.") from None


def json_line(value: dict[str, Any]) -> bytes:
    """A value as a line of JSON; numbers that are not finite are written as NaN and Infinity."""
    return json.dumps(value, allow_nan=True).encode() + b"\n"


def attempts_of(folder: Path) -> list[Path]:
    """The attempts in a run's folder, oldest first."""
    found = [path for path in folder.glob("attempt-*") if re.fullmatch(r"attempt-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("attempt-")))


def done_of(folder: Path) -> dict[str, Any] | None:
    """What the DONE.json of a run's folder says; None if the run is not finished.

    Raises:
        InputError: if it is damaged.
    """
    path = folder / "DONE.json"
    try:
        done: dict[str, Any] = json.loads(path.read_bytes())
        whole = re.fullmatch(r"attempt-\d+", done["attempt"]) and isinstance(done["files"], dict)
        whole = whole and isinstance(done.get("left_out", {}), dict)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise InputError(f"{path} is damaged.")
    return done


def evidence_folders(folder: Path) -> list[Path]:
    """The folder itself if it is of one suite, else those in it; none if it holds no evidence."""
    if (folder / PLAN).exists():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/{PLAN}"))
