"""The committed page of faults is made of the figures beside it, and each fault of the list has a test."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.faults.page import FAULTS, page

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "results" / "faults"
ELSEWHERE = {"15", "19"}
"""Of several drivers and several machines."""


def test_committed_page_is_made_of_its_figures() -> None:
    values = json.loads((FOLDER / "figures.json").read_text())
    assert (FOLDER / "README.md").read_text() == page(values)
    assert all(test["outcome"] in ("passed", "skipped") for test in values["tests"])


def test_every_fault_has_a_test() -> None:
    texts = (path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    marked = {name for text in texts for name in re.findall(r"@pytest\.mark\.fault\(\"([^\"]+)\"\)", text)}
    assert FAULTS.keys() - marked <= ELSEWHERE and marked <= FAULTS.keys()
