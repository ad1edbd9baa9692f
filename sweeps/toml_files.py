"""TOML files that come with kdbench, and a user's own, as they are written."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from kdbench.bench.errors import InputError


def read_toml(path: Any, what: str) -> dict[str, Any]:
    """The values of a file.

    Args:
        path: of the file, or a resource of a package.
        what: the file is, for errors, as "suite mine.toml".

    Raises:
        InputError: if it cannot be read, is no UTF-8, or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        line, byte = error.object[: error.start].count(b"\n") + 1, error.object[error.start]
        raise InputError(
            f"{what} is not UTF-8, as TOML is: line {line} has byte 0x{byte:02x}. Save it as UTF-8."
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{what} is not TOML: {error}") from None
    except OSError as error:
        raise InputError(f"{what} cannot be read: {error}") from None


def folder_beside(path: str, name: str) -> str:
    """The folder that a file names by a path, which is relative to the file; other names as they are."""
    folder = (Path(path).parent / Path(name).expanduser()).resolve()
    return str(folder) if "/" in name or folder.is_dir() else name
