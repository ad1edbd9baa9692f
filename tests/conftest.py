"""What the tests share: one thread, a recorder in memory, the digits, random teachers, and figures of faults.

A test of a fault is marked `fault(NUMBER)`, its place in the list of results/faults, and says by `figure` what it saw;
with --faults FOLDER the figures are written there as figures.json and README.md.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import kdbench.bench.evaluation.cost
from kdbench.bench.contract.memory import Memory
from kdbench.bench.contract.toy import DATA, toy_data, untrained_file
from kdbench.bench.data.splits import Splits
from kdbench.bench.spec import ModelSpec

MEMORY, ENOUGH = "/dev/shm", 4 * 2**30
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ENOUGH:
    tempfile.tempdir = os.environ["TMPDIR"] = MEMORY  # a fifth of the time went into waiting for a disk

torch.set_num_threads(1)
CACHE = tempfile.TemporaryDirectory(prefix="kdbench-")
os.environ["XDG_CACHE_HOME"] = CACHE.name  # what a machine remembers, for these tests alone

kdbench.bench.evaluation.cost.LATENCY_RUNS = 1  # no test asks for more than a time

__all__ = ["DATA", "Memory"]

FAULT = "fault"
Figure = Callable[[str], None]
"""Notes what a test of a fault saw, in words with numbers."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Has every test leave torch's threads as they were: in more, other tests have other last bits."""
    yield
    assert torch.get_num_threads() == 1


@pytest.fixture(scope="session")
def digits() -> Splits:
    """A tenth of the digits labelled: 107 images of 8x8 pixels; they come with scikit-learn and need no folder."""
    return toy_data()


@pytest.fixture(scope="session")
def untrained() -> Callable[[ModelSpec], bytes]:
    """The safetensors file of a network from seeded random weights."""
    return untrained_file


@pytest.fixture
def figure(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Figure:
    """Of a test that is marked as one of a fault."""
    marker = request.node.get_closest_marker(FAULT)
    assert marker is not None

    def note(text: str) -> None:
        record_property(FAULT, json.dumps([*marker.args, text]))

    return note


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Has the report of a fault's test name the fault, also if it is skipped."""
    for item in items:
        if marker := item.get_closest_marker(FAULT):
            item.user_properties.append((FAULT, json.dumps([*marker.args, ""])))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", metavar="FOLDER", help="writes the figures of tests of faults there")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints the figures of tests of faults, and writes them if that was asked for."""
    from tests.faults.page import Seen, machine, page

    found: list[Seen] = []
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, ()):
            if FAULT in report.keywords and (report.when == "call" or outcome != "passed"):
                found.append(Seen.of(report, outcome))
    figures = sorted(found, key=lambda seen: seen.place)
    for seen in figures:
        for text in seen.figures:
            terminalreporter.write_line(f"fault {seen.fault}: {text}")
    if folder := config.getoption("--faults"):
        values = {"machine": machine(), "tests": [seen.values() for seen in figures]}
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "figures.json").write_text(json.dumps(values, indent=1) + "\n")
        (Path(folder) / "README.md").write_text(page(values))
