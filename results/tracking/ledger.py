"""What MLflow is known to have, so that it is not asked: lines in STORE/projected/ID.jsonl.

ID is drawn when an experiment is first written to and is a tag of it, so that a database that is made anew has another.
A line that is lost or torn costs asking MLflow once.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = "projected"
"""Of a store."""


@dataclass(frozen=True)
class Entry:
    """A run of MLflow's, as it was last written."""

    run_id: str
    state: str = ""
    """What was logged of it; empty if that is not kept."""
    files: str = ""
    """The size and time of the file that ends the run in the store; empty if it has not ended."""
    ended: float = 0.0
    """When the run ended, in seconds since 1970."""


class Ledger:
    """The entries of one experiment."""

    def __init__(self, root: Path, name: str) -> None:
        """Reads what is there.

        Args:
            root: of the store.
            name: the experiment's ID.
        """
        self.path = root / FOLDER / f"{name}.jsonl"
        self.entries: dict[tuple[str, str], Entry] = {}
        with contextlib.suppress(OSError):
            for line in self.path.read_bytes().splitlines():
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    values = json.loads(line)
                    self.entries[values.pop("tag"), values.pop("value")] = Entry(**values)

    def get(self, tag: str, value: str) -> Entry | None:
        """The run that has a tag."""
        return self.entries.get((tag, value))

    def put(self, tag: str, value: str, entry: Entry) -> None:
        """Notes a run; a store that cannot be written is no error."""
        if self.entries.get((tag, value)) == entry:
            return
        self.entries[tag, value] = entry
        line = json.dumps({"tag": tag, "value": value, **asdict(entry)}) + "\n"
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(exist_ok=True)
            with self.path.open("a") as file:
                file.write(line)


def stated(path: Path) -> str:
    """A file's size and time; empty if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"
