"""What tests of faults saw, as a page: results/faults/README.md is made of figures.json beside it."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import pytest
from tabulate import tabulate

from kdbench.bench.environment import commit, processor

FAULTS = {
    "1, 3": "SIGKILL at 20 random times, with dropout and augmentation; weights and record of an undisturbed run",
    "2": "SIGKILL before, in and after every write, rename and sync of a run",
    "4": "A checkpoint cut at 10 sizes, and 100 flipped bits",
    "5": "A checkpoint that holds an os.system payload",
    "6": "Records with half a line, or NULs, at their end",
    "7": "No space left, at every place where a run writes",
    "8": "8 launchers, one store, 50 equal keys, the same moment",
    "9": "SIGSTOP of a worker past its lease; another takes over",
    "10": "8 processes make a store's databases at once",
    "11": "SIGKILL of the driver with trials under way",
    "12": "SIGINT and SIGTERM",
    "13": "A run that kills its worker each time",
    "14": "A method that raises, diverges, or finds no memory",
    "15": "PostgreSQL restarted and stopped in mid-sweep",
    "16": "The MLflow server killed, hung, refusing",
    "17": "Replies of create_run and log_batch are lost",
    "18": "mlflow.db removed; sync twice",
    "19": "Ray's workers, nodes and driver killed",
    "20": "`<script>`, `../` and the like in names and errors",
    "kills": "50 random SIGKILLs of worker, driver and whole group over a real sweep",
    "data": "The data's folder changes under a running sweep",
    "clock": "The clock jumps",
    "read-only": "A store that can only be read",
    "full disk": "A real sweep on a full disk",
    "bits": "One flipped bit in each kind of file of a store",
}
"""By number or name: what is done. Those of PostgreSQL and Ray have tests of their own."""


@dataclass(frozen=True)
class Seen:
    """A test of a fault that ran, or was skipped."""

    fault: str
    test: str
    outcome: str
    seconds: float
    figures: tuple[str, ...]

    @classmethod
    def of(cls, report: pytest.TestReport, outcome: str) -> Seen:
        """What a test's report says; the reason of one that was skipped is its figure."""
        noted = [json.loads(str(value)) for name, value in report.user_properties if name == "fault"]
        figures = [text for _, text in noted if text]
        if outcome == "skipped" and isinstance(report.longrepr, tuple):
            figures.append(report.longrepr[2])
        fault = next((str(number) for number, _ in noted), "")
        return cls(fault, report.nodeid, outcome, report.duration, tuple(figures))

    @property
    def place(self) -> tuple[int, str]:
        """Where it stands among all."""
        known = list(FAULTS)
        return (known.index(self.fault) if self.fault in known else len(known), self.test)

    def values(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self) | {"seconds": round(self.seconds, 1), "figures": list(self.figures)}


def machine() -> dict[str, Any]:
    """On what, and by what, the tests ran."""
    versions = {name: version(name) for name in ("torch", "optuna", "mlflow")}
    return {
        "hardware": processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[2]),
        "commit": commit(),
        **versions,
    }


def page(values: dict[str, Any]) -> str:
    """The page in markdown, of what figures.json holds."""
    rows = [
        [each["fault"], FAULTS.get(each["fault"], ""), _what(each), each["outcome"], f"{each['seconds']:.1f}"]
        for each in values["tests"]
    ]
    seen = {each["fault"] for each in values["tests"]}
    said = values["machine"]
    lines = [
        "# Faults",
        "",
        "Made by `make test-faults`: what is done to real runs, sweeps and servers, and what became of them. The",
        "numbers are of one run of the tests; those of time depend on what else the machine does.",
        "",
        tabulate(rows, ["fault", "what is done", "what was seen, by which test", "", "seconds"], tablefmt="github"),
        "",
        f"Not among them: {', '.join(name for name in FAULTS if name not in seen) or 'none'}.",
        "",
        f"{said['hardware']}, {said['cores']} cores (load {said['load']}), {said['system']}, Python {said['python']}, "
        f"torch {said['torch']}, Optuna {said['optuna']}, MLflow {said['mlflow']}; commit {said['commit']}.",
        "",
    ]
    return "\n".join(lines)


def _what(test: dict[str, Any]) -> str:
    """A test's figures, and where it is."""
    figures = "; ".join(test["figures"]) or "-"
    return f"{figures} (`{test['test'].removeprefix('tests/')}`)".replace("|", "\\|")
