"""Files whose SHA-256 was checked: an index by size and time of the last change, so that they are not read again."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from pathlib import Path

Seen = tuple[str, int, int, str]
"""A file's path below the store, its bytes, the time of its last change in nanoseconds, and its SHA-256."""


class Verified:
    """The index of a store, STORE/verified.jsonl; a line that is lost or torn costs reading a file once more."""

    def __init__(self, root: Path) -> None:
        """Reads nothing yet.

        Args:
            root: of the store.
        """
        self.root, self.path = root, root / "verified.jsonl"

    @functools.cached_property
    def seen(self) -> set[Seen]:
        """What the index says."""
        found: set[Seen] = set()
        with contextlib.suppress(OSError):
            for line in self.path.read_bytes().splitlines():
                with contextlib.suppress(ValueError, TypeError):
                    path, size, changed, digest = json.loads(line)
                    found.add((path, size, changed, digest))
        return found

    def holds(self, path: Path, digest: str) -> bool:
        """Whether a file has a SHA-256; a file that is not there has none."""
        try:
            status = path.stat()
            seen = (str(path.relative_to(self.root)), status.st_size, status.st_mtime_ns, digest)
            if seen in self.seen:
                return True
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return False
        except OSError:
            return False
        self.seen.add(seen)
        with contextlib.suppress(OSError):  # a store that is only read keeps no index
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                os.write(descriptor, json.dumps(seen).encode() + b"\n")
            finally:
                os.close(descriptor)
        return True
