from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from bench.errors import InputError
from results.analysis.leaderboard import leaderboard
from results.pages.board import COLUMNS, frame, plain, render
from results.pages.rendering import FORMATS
from results.store.plan import Planned, SweepPlan
from results.store.run_store import RunStore
from tests.results.conftest import outcome

Fill = Callable[..., None]


@pytest.fixture
def full(plan: SweepPlan, fill: Fill) -> SweepPlan:
    fill("student", [0.80, 0.82, 0.81])
    fill("kd", [0.85, 0.86, 0.87])
    fill("sp", [0.84, 0.88, 0.85])
    return plan


def test_rows_are_sorted_by_mean_with_paired_gains(full: SweepPlan, store: RunStore) -> None:
    board = leaderboard(full, store)
    assert [row.method for row in board.rows] == ["kd", "sp", "student"]
    kd, sp, student = board.rows
    assert kd.accuracy is not None and kd.accuracy.mean == pytest.approx(0.86)
    # differences to student by seed: 0.05, 0.04, 0.06
    assert kd.gain_student is not None and kd.gain_student.mean == pytest.approx(0.05)
    # standard deviation 0.01, t = 4.302653: 4.302653 * 0.01 / sqrt(3) = 0.02484
    assert kd.gain_student.half_width == pytest.approx(0.0248414, abs=1e-6)
    assert kd.gain_kd is None and student.gain_student is None
    assert sp.gain_kd is not None and sp.gain_kd.mean == pytest.approx((-0.01 + 0.02 - 0.02) / 3)


def test_ties_are_those_whose_paired_interval_includes_zero(full: SweepPlan, store: RunStore) -> None:
    tied = {row.method: row.tied for row in leaderboard(full, store).rows}
    assert tied == {"kd": False, "sp": True, "student": False}


def test_cost_counts_trials_and_seeds(full: SweepPlan, store: RunStore) -> None:
    row = leaderboard(full, store).rows[0]
    assert (row.trials, row.seeds, row.epochs) == (1, 3, 3)
    assert row.teacher_forwards == 4 * 3 * 100 and row.seconds == pytest.approx(4 * 3 * 0.5)
    assert row.compression == 5.0 and row.agreement == pytest.approx(0.8) and row.setting == {"lr": 0.1}


def test_images_that_a_teacher_labelled_before_training_count(
    plan: SweepPlan, finish: Callable[..., None], store: RunStore
) -> None:
    result = outcome(0.8)
    result.cost["teacher_forwards"] = 999
    finish("kd-1", result)
    plan.add(Planned(plan.pairs()[0], "kd", "seed", 1, "kd-1"))
    rows = {row.method: row for row in leaderboard(plan, store).rows}
    assert rows["kd"].teacher_forwards == 999 and rows["kd"].images == 80


def test_half_finished_suite_gives_the_rows_that_there_are(plan: SweepPlan, fill: Fill, store: RunStore) -> None:
    fill("kd", [0.85])
    board = leaderboard(plan, store)
    assert [(row.method, row.status) for row in board.rows] == [
        ("kd", "partial"),
        ("student", "pending"),
        ("sp", "pending"),
    ]
    assert board.rows[0].gain_student is None and (board.done, board.expected) == (2, 12)
    for form in FORMATS:
        assert "kd" in render(board, form)


@pytest.mark.parametrize("status", ["unsupported", "diverged"])
def test_result_without_a_number_shows_its_reason(
    plan: SweepPlan, finish: Callable[..., None], store: RunStore, status: str
) -> None:
    finish("s", outcome(0, status=status, reason="because"))
    plan.add(Planned(plan.pairs()[0], "sp", "seed", 1, "s"))
    board = leaderboard(plan, store)
    row = next(row for row in board.rows if row.method == "sp")
    assert (row.status, row.reason, row.accuracy) == (status, "because", None)
    assert "because" in render(board, "terminal") and "because" in render(board, "markdown")


def test_rows_of_methods_that_left_the_suite_are_not_shown(full: SweepPlan, store: RunStore) -> None:
    suite = full.suite.values() | {"methods": ["kd"], "seeds": 2}
    board = leaderboard(SweepPlan.create(store.root, "toy", "abcd1234", suite), store)
    assert [(row.method, row.seeds) for row in board.rows] == [("kd", 2)]


def test_markdown_marks_best_and_ties_in_bold(full: SweepPlan, store: RunStore) -> None:
    lines = render(leaderboard(full, store), "markdown").splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("|")}
    assert "**86.0 ± 2.5**" in rows["kd"] and "=**" in rows["sp"] and "**" not in rows["student"]


def test_latex_is_a_booktabs_table_with_special_characters_escaped(full: SweepPlan, store: RunStore) -> None:
    text = render(leaderboard(full, store), "latex")
    assert r"\toprule" in text and r"\textbf{86.0 $\pm$ 2.5}" in text and r"$\rightarrow$" in text
    rows = [line for line in text.splitlines() if line.startswith("kd &")]
    assert len(rows) == 1 and rows[0].count("&") == len(COLUMNS) - 1


def test_csv_and_json_hold_plain_numbers(full: SweepPlan, store: RunStore) -> None:
    board = leaderboard(full, store)
    table = frame(board)
    assert table.loc[0, "accuracy"] == pytest.approx(0.86) and len(table) == 3
    assert json.loads(json.dumps(plain(board)))["rows"][0]["accuracy"]["mean"] == pytest.approx(0.86)
    assert render(board, "csv").splitlines()[0].startswith("pair,method,status")


def test_notes_say_how_many_labels_each_was_given(full: SweepPlan, store: RunStore) -> None:
    suite = full.suite.values() | {"teacher_fraction": 1.0}
    board = leaderboard(SweepPlan.create(store.root, "toy", "abcd1234", suite), store)
    assert "given 20 % of the training labels, teachers were given 100 %" in render(board, "markdown")


def test_unknown_format_lists_the_near_ones(full: SweepPlan, store: RunStore) -> None:
    with pytest.raises(InputError, match="markdown"):
        render(leaderboard(full, store), "markdwn")


def test_plan_is_found_by_name_and_cuts_a_torn_line(full: SweepPlan, store: RunStore) -> None:
    assert SweepPlan.find(store.root, "toy").name == "toy@abcd1234"
    count = len(full.runs())
    with (full.folder / "plan.jsonl").open("a") as file:
        file.write('{"pair": "large')
    again = SweepPlan.create(store.root, "toy", "abcd1234", full.suite.values())
    again.add(Planned(again.pairs()[0], "kd", "seed", 1, "kd-1"))
    assert len(again.runs()) == count
    with pytest.raises(InputError, match="did you mean toy"):
        SweepPlan.find(store.root, "toi")
