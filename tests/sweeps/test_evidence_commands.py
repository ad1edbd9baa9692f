"""The commands around evidence: what they print, what they read, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdbench.sweeps.cli.common import _imported
from tests.sweeps.commands import Run

COMMITTED = Path(__file__).resolve().parents[2] / "results" / "evidence"
WHY = str(COMMITTED / "study_why")


def test_import_says_what_is_new_and_makes_a_store_that_reads_alike(kdbench: Run, tmp_path: Path) -> None:
    code, out, _ = kdbench("import", WHY, "--store", "runs")
    assert code == 0
    assert out == "study_why@8dc87f66: 78 of its 78 runs are new in the store, with the weights of 0 of 1 teachers.\n"
    code, out, _ = kdbench("import", WHY, "--store", "runs", "--json")
    (again,) = json.loads(out)["imported"]
    assert code == 0 and (again["runs"], again["new"]) == (78, 0)
    for command in (["leaderboard", "study_why"], ["compare", "study_why", "--brief"], ["status", "study_why"]):
        assert kdbench(*command, "--store", "runs") == kdbench(*command, "--store", WHY)
    code, out, _ = kdbench("export", "study_why", "again", "--store", "runs", "--json")
    assert code == 0 and json.loads(out)["left_out"] == []
    for name in ("outcomes.jsonl", "epochs.parquet", "plan.json"):
        assert (tmp_path / "again" / "study_why" / name).read_bytes() == (COMMITTED / "study_why" / name).read_bytes()


def test_store_that_is_made_for_reading_evidence_is_gone_at_the_end(kdbench: Run) -> None:
    assert kdbench("teachers", "--store", WHY)[1].count("weights not exported") == 1
    folder = Path(_imported(Path(WHY)).name)
    assert folder.is_dir()
    _imported.cache_clear()
    assert not folder.exists()


@pytest.mark.parametrize("command", [["sync", "study_why"], ["sweep", "study_why"], ["explain", "4f66ea5a"]])
def test_commands_that_write_refuse_evidence_with_the_way_out(kdbench: Run, command: list[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in COMMITTED.rglob("*")}
    code, out, err = kdbench(*command, "--store", WHY)
    assert code == 2 and not out and f"kdbench import {WHY} --store STORE makes a store of it." in err
    assert {path: path.stat().st_mtime_ns for path in COMMITTED.rglob("*")} == before


def test_brief_takes_no_other_comparison(kdbench: Run) -> None:
    for other in (["--pairs"], ["--against", "kd"], ["--by-year"]):
        code, _, err = kdbench("compare", "study_why", "--brief", *other, "--store", WHY)
        assert code == 2 and "leave out --pairs, --against and the other one" in err
    assert kdbench("leaderboard", "study_why", "--columns", "method,acuracy", "--store", WHY)[0] == 2


def test_by_year_stand_methods_on_equal_terms_alone(kdbench: Run) -> None:
    code, out, _ = kdbench("compare", "modern", "--by-year", "--store", str(COMMITTED / "modern"))
    assert code == 0 and "simkd " in out and "dkd_standardised" in out
    assert not [row for row in ("simkd_longer", "kd+rkd", "student") if row in out], "longer, a sum, and no teacher"
