"""The plan of a suite: which runs belong to it, written as they are started, so that tables can be made at any time.

STORE/suites/NAME/HASH/suite.json holds the suite as it was run; plan.jsonl, a line for each run. A suite whose protocol
is changed gets another hash, so rows of different protocols never stand in one table.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.atomic import write
from bench.errors import unknown
from results.store.run_store import read_lines

PHASES = ("teacher", "trial", "seed")


@dataclass(frozen=True)
class Planned:
    """A run of a suite."""

    pair: str
    method: str
    phase: str
    """teacher, trial (tuning), or seed (the best setting again)."""
    number: int
    """Of the trial, or the seed."""
    key: str
    setting: dict[str, Any] = field(default_factory=dict)
    """Values of what is searched."""

    @property
    def place(self) -> tuple[str, str, str, int]:
        """Where it stands in the suite."""
        return (self.pair, self.method, self.phase, self.number)


class Plan:
    """A suite's runs, in its folder."""

    def __init__(self, folder: Path) -> None:
        """Opens a plan.

        Args:
            folder: STORE/suites/NAME/HASH.
        """
        self.folder = folder
        self.suite: dict[str, Any] = json.loads((folder / "suite.json").read_text())

    @classmethod
    def create(cls, store: Path, name: str, digest: str, suite: dict[str, Any]) -> Plan:
        """The plan of a suite, made if it is new; `suite` takes the place of what was last run under this protocol.

        A torn last line, of a driver that died, is cut.
        """
        folder = store / "suites" / name / digest
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "suite.json", json.dumps(suite, indent=1).encode())
        lines = folder / "plan.jsonl"
        whole = lines.read_bytes() if lines.exists() else b""
        write(lines, whole[: whole.rfind(b"\n") + 1])
        return cls(folder)

    @classmethod
    def find(cls, store: Path, name: str) -> Plan:
        """The plan of a suite by NAME (the protocol last run) or NAME@HASH.

        Raises:
            InputError: if there is none.
        """
        name, _, digest = name.partition("@")
        name = Path(name).stem
        found = [path.parent for path in (store / "suites").glob(f"*/{digest}*/suite.json")]
        named = [path for path in found if path.parent.name == name]
        if not named:
            raise unknown(
                f"suite in the store {store}", name, {path.parent.name for path in found}, "kdbench sweep --help"
            )
        return max((cls(path) for path in named), key=lambda plan: plan.last_run)

    @property
    def last_run(self) -> float:
        """Seconds since 1970; an exported plan says it itself, as git keeps no times of files."""
        return float(self.suite.get("last_run") or (self.folder / "suite.json").stat().st_mtime)

    @property
    def name(self) -> str:
        """NAME@HASH."""
        return f"{self.folder.parent.name}@{self.folder.name}"

    def add(self, planned: Planned) -> None:
        """Appends a run."""
        with (self.folder / "plan.jsonl").open("ab") as file:
            file.write(json.dumps(asdict(planned)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def started(self) -> list[Planned]:
        """Every run that was ever started under this protocol, once."""
        lines = [Planned(**line) for line in read_lines(self.folder / "plan.jsonl")]
        return list({planned.place: planned for planned in lines}.values())

    def runs(self) -> list[Planned]:
        """Every run that was started, once, of the methods and pairs that the suite now has."""
        methods = {pair: self.methods(pair) for pair in self.pairs()}
        seeds = self.suite["seeds"]
        return [
            planned
            for planned in self.started()
            if planned.pair in methods
            and (planned.phase == "teacher" or planned.method in methods[planned.pair])
            and (planned.phase != "seed" or planned.number <= seeds)
        ]

    def pairs(self) -> list[str]:
        """Names of the pairs, in the suite's order."""
        return [pair_name(pair) for pair in self.suite["pairs"]]

    def methods(self, pair: str) -> list[str]:
        """The methods that are compared on a pair, in the suite's order."""
        own = {pair_name(each): each.get("methods") for each in self.suite["pairs"]}
        return list(own[pair] or self.suite["methods"])

    def expected(self) -> int:
        """Runs of a whole sweep, teachers not counted."""
        runs: int = self.suite["tuning"]["trials"] + self.suite["seeds"]
        return sum(len(self.methods(pair)) for pair in self.pairs()) * runs


def pair_name(pair: dict[str, Any]) -> str:
    """A pair as tables and studies name it."""
    teachers = " + ".join([pair["teacher"], *pair.get("more_teachers", ())])
    return f"{' '.join(filter(None, (teachers, pair.get('note'))))} -> {pair['student']}"
