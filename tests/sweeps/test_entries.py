"""Rows that verify themselves: what an entry holds, and every way in which it can be untrue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from kdbench.results.store.entry import read_entry
from tests.sweeps.commands import Run
from tests.sweeps.conftest import TINY

ROOT = Path(__file__).resolve().parents[2]
ENTRY = ROOT / "results" / "leaderboard" / "digits-at.json"


def edited(path: Path, change: Any) -> Path:
    """An entry in which something was changed, and that was sealed again."""
    entry = read_entry(ENTRY)
    values = entry.model_dump(mode="json")
    change(values)
    path.write_text(type(entry).model_validate(values).text())
    return path


def test_an_entry_holds_what_its_row_follows_from() -> None:
    entry = read_entry(ENTRY)
    (row,) = entry.claims["rows"]
    assert row["method"] == "at" and row["baseline"] == "kd" and row["seeds"] == 5
    assert row["gain_baseline"]["half_width"] > 0
    assert 0 < row["p_baseline"] <= 1 and row["extra_parameters"] == 0 and 0 < row["agreement"] < 1
    assert row["teacher_kl"] > 0 and row["calibration_error"] > 0 and row["gap"]["count"] == 5 and row["seconds"] > 0
    assert list(*entry.claims["seeds"].values()) == ["1", "2", "3", "4", "5"]
    assert {place["method"] for run in entry.outcomes for place in run["places"]} == {"teacher", "student", "kd", "at"}
    assert all(len(digest) == 64 for digest in entry.claims["teachers"].values()) and entry.claims["environments"]


def test_figures_that_older_records_lack_are_empty(kdbench: Run) -> None:
    _, out, _ = kdbench("entries", str(ENTRY.parent), "--format", "markdown")
    head, _, *rows = [line.split("|")[1:-1] for line in out.splitlines() if line.startswith("|")]
    names = [name.strip() for name in head]
    for row in rows:
        cells = dict(zip(names, (cell.strip() for cell in row), strict=True))
        assert cells["train params"] == cells["peak MB"] == "" and cells["extra params"] == "0"


def without_figures(values: dict[str, Any]) -> None:
    for name in ("training_parameters", "peak_memory"):
        del values["claims"]["rows"][0][name]


def invented(values: dict[str, Any]) -> None:
    values["claims"]["rows"][0]["peak_memory"] = 1000


def test_an_entry_claims_no_figure_that_its_records_lack(kdbench: Run, tmp_path: Path) -> None:
    older = str(edited(tmp_path / "older.json", without_figures))
    assert kdbench("verify", older)[0] == 0, "an older kdbench did not know them"
    code, out, _ = kdbench("verify", str(edited(tmp_path / "invented.json", invented)))
    assert code == 1 and "its rows are not what its runs give" in " ".join(out.split())


def claims(values: dict[str, Any]) -> None:
    values["claims"]["rows"][0]["score"]["mean"] += 0.01


def test_what_was_edited_is_found(kdbench: Run, tmp_path: Path) -> None:
    code, out, _ = kdbench("verify", str(edited(tmp_path / "claims.json", claims)), "--json")
    checks = json.loads(out)["checks"]
    assert code == 1 and [each["check"] for each in checks if not each["passes"]] == ["the row follows from the runs"]
    (tmp_path / "sealed.json").write_text(ENTRY.read_text().replace('"method": "at"', '"method": "sp"', 1))
    code, out, _ = kdbench("verify", "sealed.json")
    assert code == 1 and "take it from its author" in out


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["outcomes"][-1]["outcome"]["scores"]["last"].update(epoch=1),
        lambda values: values.update(epochs=values["epochs"][:-8] + "AAAAAAA="),
        lambda values: values["plan"]["suite"].update(seeds=4),
    ],
)
def test_evidence_that_was_edited_is_refused(kdbench: Run, tmp_path: Path, change: Any) -> None:
    code, out, err = kdbench("verify", str(edited(tmp_path / "entry.json", change)))
    assert code == 2 and not out and "torn or was edited" in err and len(err.splitlines()) == 1


def test_what_is_no_entry_is_refused_in_a_line(kdbench: Run, tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text("{}")
    why = str(ROOT / "results" / "evidence" / "study_why")
    for command, said in (
        (["verify", "none.json"], "is no entry of kdbench submit"),
        (["verify", "gone.json"], "cannot be read"),
        (["entries", "."], "is no entry"),
        (["entries", str(ROOT / "docs")], "there is no entry in"),
        (["submit", "digits", "--method", "att", "--store", why], "unknown suite"),
        (["submit", "study_why", "--method", "kdd", "--store", why], "unknown method of study_why"),
    ):
        code, out, err = kdbench(*command)
        assert code == 2 and not out and said in err and len(err.splitlines()) == 1, err


def test_rows_of_different_protocols_share_no_table(kdbench: Run, tmp_path: Path) -> None:
    why = str(ROOT / "results" / "evidence" / "study_why")
    suite = json.loads((Path(why) / "plan.json").read_text())["suite"]
    method = next(name for name in suite["methods"] if name not in ("student", "kd"))
    assert kdbench("submit", "study_why", "--method", method, "--out", "why.json", "--store", why)[0] == 0
    (tmp_path / "at.json").write_text(ENTRY.read_text())
    code, out, err = kdbench("entries", ".", "--format", "markdown")
    assert code == 0, err
    titles = [line for line in out.splitlines() if line.startswith("**") and "@" in line]
    assert len(titles) == len(set(titles)) >= 2 and out.count("| at ") == 1


def test_entries_of_several_pairs_are_ranked_over_them(kdbench: Run, tmp_path: Path) -> None:
    size = str(ROOT / "results" / "evidence" / "study_size")
    assert kdbench("submit", "study_size", "--method", "eskd", "--out", "eskd.json", "--store", size)[0] == 0
    ranks = {row["rank"] for row in read_entry(tmp_path / "eskd.json").claims["rows"]}
    assert len(ranks) == 1 and 1 <= ranks.pop() <= 3
    _, out, _ = kdbench("entries", ".", "--format", "markdown")
    assert "| rank " in out and "rank: mean over the pairs" in out
    assert "rank" not in kdbench("entries", str(ENTRY.parent))[1]


def test_an_entry_that_learned_from_an_authors_checkpoint_is_checked_and_cannot_be_run_again(
    kdbench: Run, tmp_path: Path
) -> None:
    torch.save(timm.create_model("cifar_resnet8", num_classes=10, in_chans=1).state_dict(), tmp_path / "own.pt")
    own = 'teacher = "cifar_resnet8"\nteacher_weights = ["own.pt"]'
    (tmp_path / "own.toml").write_text(TINY.replace('teacher = "cifar_resnet8"', own))
    small = ["--methods", "student,kd", "--epochs", "1", "--trials", "1", "--workers", "2", "--precision", "fp32"]
    code, _, err = kdbench("sweep", "own.toml", *small, "--store", "runs")
    assert code == 0, err
    assert kdbench("submit", "own", "--method", "kd", "--out", "kd.json", "--store", "runs")[0] == 0
    (row,) = read_entry(tmp_path / "kd.json").claims["rows"]
    teacher, student = (
        sum(each.numel() for each in timm.create_model(name, num_classes=10, in_chans=1).parameters())
        for name in ("cifar_resnet8", "cifar_resnet8_quarter")
    )
    assert row["training_parameters"] == teacher, "kd trains no module of its own"
    assert row["peak_memory"] > 4 * (teacher + 3 * student), "the student also has gradients, and its optimizer's state"
    code, out, _ = kdbench("verify", "kd.json")
    assert code == 0 and "all 8 checks pass" in out
    code, _, err = kdbench("verify", "kd.json", "--rerun", "1")
    assert code == 2 and "learns from sha256:" in err and "does not carry" in err
