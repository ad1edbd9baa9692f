from __future__ import annotations

import csv
import json

import pytest

from bench.errors import InputError
from results.analysis.comparison import compare
from results.analysis.leaderboard import leaderboard
from results.pages.board import board_report, columns_of
from results.pages.report import FORMATS, render
from results.store.plan import Planned, SweepPlan
from results.store.run_store import RunStore
from tests.results.conftest import Fill, Finish, outcome, replanned


def shown(plan: SweepPlan, store: RunStore, form: str) -> str:
    return render(board_report(leaderboard(plan, store)), form)


def test_rows_are_sorted_by_mean_with_paired_gains(full: SweepPlan, store: RunStore) -> None:
    board = leaderboard(full, store)
    assert [row.method for row in board.rows] == ["kd", "sp", "student"]
    kd, sp, student = board.rows
    assert kd.score is not None and kd.score.mean == pytest.approx(0.86)
    # differences to student by seed: 0.05, 0.04, 0.06
    assert kd.gain_control is not None and kd.gain_control.mean == pytest.approx(0.05)
    # standard deviation 0.01, t = 4.302653: 4.302653 * 0.01 / sqrt(3) = 0.02484
    assert kd.gain_control.half_width == pytest.approx(0.0248414, abs=1e-6)
    assert kd.gain_baseline is None and student.gain_control is None
    assert sp.gain_baseline is not None and sp.gain_baseline.mean == pytest.approx((-0.01 + 0.02 - 0.02) / 3)


def test_ties_are_those_that_no_other_row_beats(full: SweepPlan, store: RunStore) -> None:
    tied = {row.method: row.tied for row in leaderboard(full, store).rows}
    assert tied == {"kd": False, "sp": True, "student": False}


def test_gains_are_marked_as_compare_marks_them(full: SweepPlan, store: RunStore) -> None:
    board, compared = leaderboard(full, store), compare(full, store)
    corrected = {(each.control, each.method): each.p_holm for each in compared.comparisons}
    for row in board.rows:
        assert row.p_control == corrected.get(("student", row.method))
        assert row.p_baseline == corrected.get(("kd", row.method))
    text = shown(full, store, "markdown")
    assert r"+5.0 ± 2.5 \*" in text and "Holm 1979" in text and "Hsu 1984" in text


def test_two_seeds_mark_nothing_and_tie_all(full: SweepPlan, store: RunStore) -> None:
    kd, sp, student = leaderboard(replanned(full, store, seeds=2), store).rows
    assert kd.p_control is None and sp.tied and student.tied and " *" not in shown(full, store, "csv")


def test_cost_counts_trials_and_seeds(full: SweepPlan, store: RunStore) -> None:
    row = leaderboard(full, store).rows[0]
    assert (row.trials, row.seeds, row.epochs) == (1, 3, 3)
    assert row.teacher_forwards == 4 * 3 * 100 and row.seconds == pytest.approx(4 * 3 * 0.5)
    assert row.compression == 5.0 and row.agreement == pytest.approx(0.8) and row.setting == {"lr": 0.1}


def test_samples_that_a_teacher_labelled_before_training_count(
    plan: SweepPlan, finish: Finish, store: RunStore
) -> None:
    result = outcome(0.8)
    result.cost["teacher_forwards"] = 999
    finish("kd-1", result)
    plan.add(Planned(plan.pairs()[0], "kd", "seed", 1, "kd-1"))
    rows = {row.method: row for row in leaderboard(plan, store).rows}
    assert rows["kd"].teacher_forwards == 999 and rows["kd"].samples == 80


def test_half_finished_suite_gives_the_rows_that_there_are(plan: SweepPlan, fill: Fill, store: RunStore) -> None:
    fill("kd", [0.85])
    board = leaderboard(plan, store)
    assert [(row.method, row.status) for row in board.rows] == [
        ("kd", "partial"),
        ("student", "pending"),
        ("sp", "pending"),
    ]
    assert board.rows[0].gain_control is None and (board.done, board.expected) == (2, 12)
    for form in FORMATS:
        assert "kd" in shown(plan, store, form)


@pytest.mark.parametrize("status", ["unsupported", "diverged"])
def test_result_without_a_score_shows_its_reason(plan: SweepPlan, finish: Finish, store: RunStore, status: str) -> None:
    finish("s", outcome(0, status=status, reason="because"))
    plan.add(Planned(plan.pairs()[0], "sp", "seed", 1, "s"))
    row = next(row for row in leaderboard(plan, store).rows if row.method == "sp")
    assert (row.status, row.reason, row.score) == (status, "because", None)
    assert all(f"sp: {status}: because" in shown(plan, store, form) for form in ("terminal", "markdown", "latex"))


def test_rows_of_methods_that_left_the_suite_are_not_shown(full: SweepPlan, store: RunStore) -> None:
    board = leaderboard(replanned(full, store, methods=["kd"], seeds=2), store)
    assert [(row.method, row.seeds) for row in board.rows] == [("kd", 2)]


def test_markdown_marks_best_and_ties_in_bold(full: SweepPlan, store: RunStore) -> None:
    lines = shown(full, store, "markdown").splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("|")}
    assert "**86.0 ± 2.5**" in rows["kd"] and "=**" in rows["sp"] and "**" not in rows["student"]


def test_latex_is_a_booktabs_table_with_special_characters_escaped(full: SweepPlan, store: RunStore) -> None:
    text = shown(full, store, "latex")
    assert r"\toprule" in text and r"\textbf{86.0 $\pm$ 2.5}" in text and r"$\rightarrow$" in text
    rows = [line for line in text.splitlines() if line.startswith("kd &")]
    assert len(rows) == 1 and rows[0].count("&") == len(columns_of(leaderboard(full, store))) - 1


def test_csv_and_json_hold_plain_numbers(full: SweepPlan, store: RunStore) -> None:
    lines = shown(full, store, "csv").splitlines()
    gains = "gain_student,gain_kd,p_holm_student,p_holm_kd,tied"
    assert lines[0].startswith(f"pair,method,status,reason,seeds,accuracy,{gains}")
    assert lines[0].endswith("setting,accuracy_half_width,gain_student_half_width,gain_kd_half_width")
    first, _, student = csv.DictReader(lines)
    assert float(first["accuracy"]) == pytest.approx(0.86) and first["setting"] == "lr=0.1"
    assert student["gain_student"] == student["gain_student_half_width"] == "" and student["reason"] == ""
    values = json.loads(json.dumps(board_report(leaderboard(full, store)).values))
    assert values["rows"][0]["accuracy"]["mean"] == pytest.approx(0.86) and values["metric"]["name"] == "accuracy"
    assert values["rows"][0]["gain_kd"] is None and values["budget"] == {"trials": 1, "epochs": 3, "seeds": 3}


def test_notes_say_how_many_labels_each_was_given(full: SweepPlan, store: RunStore) -> None:
    text = shown(replanned(full, store, teacher_fraction=1.0), store, "markdown")
    assert "given 20 % of the training labels, teachers were given 100 %" in text


def test_plan_is_found_by_name_and_cuts_a_torn_line(full: SweepPlan, store: RunStore) -> None:
    assert SweepPlan.find(store.root, "toy").name == "toy@abcd1234"
    count = len(full.runs())
    with (full.folder / "plan.jsonl").open("a") as file:
        file.write('{"pair": "large')
    again = replanned(full, store)
    again.add(Planned(again.pairs()[0], "kd", "seed", 1, "kd-1"))
    assert len(again.runs()) == count
    with pytest.raises(InputError, match="did you mean toy"):
        SweepPlan.find(store.root, "toi")
