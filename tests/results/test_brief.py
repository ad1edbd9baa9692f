"""Tables cut to a few columns, and a suite in one table."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kdbench.bench.errors import InputError
from kdbench.results.analysis.comparison import compare
from kdbench.results.analysis.leaderboard import leaderboard
from kdbench.results.pages.board import board_report
from kdbench.results.pages.brief import brief_report
from kdbench.results.pages.report import render, with_columns
from kdbench.results.store.plan import SweepPlan
from kdbench.results.store.run_store import RunStore
from tests.results.conftest import SUITE


@pytest.fixture
def full(plan: SweepPlan, fill: Callable[..., None]) -> SweepPlan:
    fill("student", [0.80, 0.82, 0.81])
    fill("kd", [0.85, 0.86, 0.87])
    fill("sp", [0.84, 0.88])
    return plan


def test_brief_table_has_scores_gains_and_corrected_tests(full: SweepPlan, store: RunStore) -> None:
    """kd: +0.05 with a deviation of 0.01 is t = 8.66, p = 0.013; of sp's two seeds nothing is said."""
    report = brief_report(leaderboard(full, store), compare(full, store))
    (block,) = report.blocks
    assert block.title == "toy@abcd1234: student small"
    assert block.rows[:2] == [
        ["large", "kd", "86.0 ± 2.5", "+5.0 ± 2.5", "0.013"],
        ["large", "sp", "86.0 ± 25.4", "+5.0 ± 12.7", ""],
    ]
    assert block.rows[2] == ["large", "student", "81.0 ± 2.5", "", ""]
    assert "| large     | kd      | 86.0 ± 2.5      | +5.0 ± 2.5     | 0.013    |" in render(report, "markdown")
    assert report.values["rows"][0]["p Holm"] == "0.013"


def test_brief_has_a_table_for_each_student(store: RunStore, finish: Callable[..., None]) -> None:
    pairs = [{"teacher": "large", "student": "small"}, {"teacher": "large", "note": "early", "student": "tiny"}]
    plan = SweepPlan.create(store.root, "two", "abcd1234", SUITE | {"pairs": pairs})
    report = brief_report(leaderboard(plan, store), compare(plan, store))
    assert [block.title for block in report.blocks] == ["two@abcd1234: student small", "two@abcd1234: student tiny"]
    assert [row[0] for row in report.blocks[1].rows] == ["large early"] * 3


def test_tables_are_cut_to_columns_and_their_order_and_bold_type_kept(full: SweepPlan, store: RunStore) -> None:
    report = board_report(leaderboard(full, store))
    cut = with_columns(report, ["method", "over student", "accuracy"])
    (block,) = cut.blocks
    assert [column.name for column in block.columns] == ["method", "over student", "accuracy"]
    assert list(block.rows[0]) == ["kd", "+5.0 ± 2.5 *", "86.0 ± 2.5"]
    assert "| +5.0 ± 2.5 \\*  | **86.0 ± 2.5**" in render(cut, "markdown") and cut.notes == report.notes
    with pytest.raises(InputError, match="unknown column 'accurracy'.*accuracy"):
        with_columns(report, ["accurracy"])
