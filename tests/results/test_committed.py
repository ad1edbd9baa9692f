"""Every committed table is what the committed evidence gives."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from kdbench.results.analysis.leaderboard import leaderboard
from kdbench.results.analysis.statistics import holm
from kdbench.results.pages.board import board_report
from kdbench.results.pages.report import render
from kdbench.results.store.evidence import read_evidence
from kdbench.results.store.files import evidence_folders
from kdbench.results.store.plan import SweepPlan
from kdbench.sweeps.cli import pages
from kdbench.sweeps.cli.common import opened
from kdbench.sweeps.cli.entries import verify
from kdbench.sweeps.cli.pages import ROOT, remade

AGAIN = "is not what its evidence gives: make pages writes it anew"
EVIDENCE = evidence_folders(ROOT / "results" / "evidence")


@pytest.mark.parametrize("page", pages.pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_page_is_made_again_from_its_evidence(page: Path) -> None:
    for path, text in remade(page):
        assert path.read_text() == text, f"{path.relative_to(ROOT)} {AGAIN}"


def test_every_table_of_results_is_made_by_a_page() -> None:
    made = {path for page in pages.pages() for path in [page, *(page.parent / name for name, _ in named(page))]}
    folders = [ROOT / "results" / name for name in ("boards", "leaderboard", "reproduced", "studies")]
    kept = {path for folder in folders for path in folder.iterdir()}
    entries = set((ROOT / "results" / "leaderboard").glob("*.json"))  # of others too, which verify themselves
    others = {path for path in kept - made - entries if path.suffix != ".png"}
    assert {path.name for path in others} == {"README.md", "gpu.sh"}


def named(page: Path) -> list[tuple[str, str]]:
    return pages.FILE.findall(page.read_text())


@pytest.mark.parametrize("folder", EVIDENCE, ids=lambda folder: folder.name)
def test_committed_evidence_is_whole_and_used(folder: Path) -> None:
    evidence = read_evidence(folder)
    assert evidence.runs and {each.key for each in evidence.places} == evidence.runs.keys()
    name = f"--store results/evidence/{folder.name} -->"
    assert any(name in page.read_text() for page in pages.pages())


@pytest.mark.parametrize("path", sorted((ROOT / "results" / "leaderboard").glob("*.json")), ids=lambda path: path.stem)
def test_accepted_entry_verifies_itself(path: Path) -> None:
    report = verify(path, 0, ROOT / "nowhere", "cpu")
    assert report.values["passes"], report.values["checks"]


def test_page_that_is_not_up_to_date_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, evidence = tmp_path / "results" / "page.md", "results/evidence/study_why"
    page.parent.mkdir()
    (tmp_path / "results" / "evidence").symlink_to(ROOT / "results" / "evidence")
    command = f"kdbench status study_why --store {evidence}"
    page.write_text(f"<!-- page.txt: {command} -->\nprose\n<!-- {command} -->\nold\n<!-- end -->\nmore prose\n")
    (tmp_path / "README.md").write_text("nothing to make\n")
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    pages.main()
    counts = (tmp_path / "results" / "page.txt").read_text()
    assert counts.startswith("study_why@8dc87f66: 77 of 77 runs started\n")
    assert page.read_text() == (
        f"<!-- page.txt: {command} -->\nprose\n<!-- {command} -->\n{counts}<!-- end -->\nmore prose\n"
    )
    before = page.stat().st_mtime_ns
    pages.main()
    assert page.stat().st_mtime_ns == before


def test_evidence_is_three_files_for_each_table_and_small() -> None:
    files = [path for folder in EVIDENCE for path in folder.rglob("*") if path.is_file()]
    assert sum(path.suffix != ".safetensors" for path in files) == 3 * len(EVIDENCE)
    assert all(path.stat().st_size < 10_000_000 for path in files)


def test_settings_that_suites_start_from_are_what_the_evidence_has_found() -> None:
    made = list(pages.warm_starts())
    assert made
    for path, text in made:
        assert path.read_text() == text, f"{path.relative_to(ROOT)} {AGAIN}"


def test_no_method_of_the_main_board_is_below_the_student_without_a_reason() -> None:
    store = opened(ROOT / "results" / "evidence" / "digits")
    board = leaderboard(SweepPlan.find(store.root, "digits"), store)
    said = render(board_report(board), "markdown")
    below = [row.method for row in board.rows if row.gain_control and row.gain_control.mean < 0]
    lacking = [method for method in below if f"{method}: " not in said and f"{method} by " not in said]
    assert not lacking, f"{lacking} are below the student: say why in the suite's [reasons]"
    assert all(row.score for row in board.rows) and len(board.rows) > 20


def test_study_of_weights_says_what_its_differences_are() -> None:
    """Its pairs of rows are twelve of those in the file beside it, corrected for one another."""
    text = (ROOT / "results" / "studies" / "weights.md").read_text()
    with (ROOT / "results" / "studies" / "weights.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["control"] == f"{row['method']}_range"]
    corrected = dict(
        zip([(row["method"], row["pair"]) for row in rows], holm([float(row["p"]) for row in rows]), strict=True)
    )
    small = "cifar_resnet8 -> cifar_resnet8_quarter"
    assert len(rows) == 12 and [place for place, p in corrected.items() if p is not None and p < 0.05] == [
        ("at", small),
        ("sp", small),
    ]
    for row in rows:
        said = f"{100 * float(row['difference']):+.1f} ± {100 * float(row['half_width']):.1f}"
        plain = said.removeprefix("+")
        assert (said in text or plain in text) == (float(row["p"]) < 0.05), f"{row['method']} of {row['pair']}: {said}"
    for method in ("at", "sp"):
        assert f"{corrected[method, small]:.3f}" in text
