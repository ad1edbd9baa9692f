from __future__ import annotations

import csv
import json
from typing import Any

import pytest

from kdbench.bench.errors import InputError
from kdbench.results.analysis.comparison import compare
from kdbench.results.analysis.leaderboard import leaderboard
from kdbench.results.pages.board import board_report, columns_of
from kdbench.results.pages.report import FORMATS, render
from kdbench.results.store.plan import LABELS_ALONE, UNLABELLED, Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
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


def test_latency_is_shown_with_its_spread_or_as_not_measured(plan: SweepPlan, finish: Finish, store: RunStore) -> None:
    pair, costs = plan.pairs()[0], [(0.4, 0.3, 0.5), (0.5, 0.45, 0.55), (0.6, 0.4, 0.8), None]
    for seed, quartiles in enumerate(costs):
        result = outcome(0.8)
        del result.cost["latency_ms"]
        if quartiles:
            result.cost.update(zip(("latency_ms", "latency_low_ms", "latency_high_ms"), quartiles, strict=True))
        finish(f"kd-{seed}", result)
        plan.add(Planned(pair, "kd", "seed", seed, f"kd-{seed}"))
    finish("sp-0", result)
    plan.add(Planned(pair, "sp", "seed", 0, "sp-0"))
    rows = {row.method: row for row in leaderboard(plan, store).rows}
    assert rows["kd"].latency_ms == 0.5 and rows["kd"].latency_spread_ms == pytest.approx(0.1)
    assert rows["sp"].latency_ms is None and rows["student"].latency_ms is None
    lines = {line.split("|")[1].strip(): line for line in shown(plan, store, "markdown").splitlines() if "|" in line}
    assert "0.50 ± 0.10" in lines["kd"] and "| – " in lines["sp"] and "–" not in lines["student"]
    assert "– not measured, as the core was not quiet" in shown(plan, store, "markdown")


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
    assert lines[0].startswith(f"pair,given,method,status,reason,seeds,accuracy,{gains}")
    assert lines[0].endswith("setting,accuracy_half_width,gain_student_half_width,gain_kd_half_width")
    first, _, student = csv.DictReader(lines)
    assert float(first["accuracy"]) == pytest.approx(0.86) and first["setting"] == "lr=0.1"
    assert student["gain_student"] == student["gain_student_half_width"] == "" and student["reason"] == ""
    values = json.loads(json.dumps(board_report(leaderboard(full, store)).values))
    assert values["rows"][0]["accuracy"]["mean"] == pytest.approx(0.86) and values["metric"]["name"] == "accuracy"
    assert values["rows"][0]["gain_kd"] is None and values["budget"]["trials"] == 1


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


GIVEN = {"student": "labels alone", "kd": "labels and a teacher", "sp": UNLABELLED, "sp_all": UNLABELLED}


def grouped(full: SweepPlan, store: RunStore, fill: Fill, **changes: Any) -> SweepPlan:
    """The full plan with a baseline of its own for what is given unlabelled images."""
    plan = replanned(full, store, methods=list(GIVEN), given=GIVEN, baselines={UNLABELLED: "sp_all"}, **changes)
    fill("sp_all", [0.80, 0.81, 0.82])
    return plan


def test_rows_stand_with_those_that_are_given_the_same(full: SweepPlan, store: RunStore, fill: Fill) -> None:
    rows = leaderboard(grouped(full, store, fill), store).rows
    assert [(row.given, row.method) for row in rows] == [
        ("labels alone", "student"),
        ("labels and a teacher", "kd"),
        (UNLABELLED, "sp"),
        (UNLABELLED, "sp_all"),
    ]
    assert [row.tied for row in rows] == [False, False, False, False], "kd is better, and of another group"
    sp, sp_all = rows[2:]
    assert sp.gain_baseline and sp.gain_baseline.mean == pytest.approx((0.04 + 0.07 + 0.03) / 3)
    assert sp_all.gain_baseline is None and sp_all.gain_control is not None


def test_a_group_is_a_family_of_tests(full: SweepPlan, store: RunStore, fill: Fill) -> None:
    """Of kd, alone in its group, nothing is corrected; nor anything else by compare."""
    plan = grouped(full, store, fill)
    found = {(each.control, each.method): each for each in compare(plan, store).comparisons}
    assert found["student", "kd"].p_holm == found["student", "kd"].p
    assert found["student", "sp"].p_holm == pytest.approx(2 * found["student", "sp"].p)
    assert ("kd", "sp") not in found and ("sp_all", "sp") in found
    for row in leaderboard(plan, store).rows:
        if ("student", row.method) in found:
            assert row.p_control == found["student", row.method].p_holm


def test_page_has_a_table_for_each_group_and_says_the_rules(full: SweepPlan, store: RunStore, fill: Fill) -> None:
    recipe = {"epochs": 3, "batch_size": 16, "unlabelled_ratio": 3}
    tuning = {"trials": 1, "warm_from": "longer", "warm_trials": 40}
    plan = grouped(full, store, fill, recipe=recipe, tuning=tuning, reasons={"sp_all": "it was made so"})
    text = shown(plan, store, "terminal")
    assert text.count("large -> small, given ") == 3 and "sp_all: it was made so" in text
    said = " ".join(text.split())
    assert "Every batch has 16 labelled images; of methods that are given others too, 3 of those for each" in said
    assert "Each seed has its own split, labels and teachers" in said


def test_updates_are_of_all_networks_that_a_run_takes(plan: SweepPlan, finish: Finish, store: RunStore) -> None:
    for key, updates in (("0123", 70), ("kd-1", 30), ("kd-2", 50)):
        result = outcome(0.8)
        result.cost["updates"] = updates
        finish(key, result)
    pair = plan.pairs()[0]
    plan.add(Planned(pair, "teacher", "teacher", 0, "0123"))
    for seed in (1, 2):
        plan.add(Planned(pair, "kd", "seed", seed, f"kd-{seed}"))
    rows = {row.method: row for row in leaderboard(plan, store).rows}
    assert rows["kd"].updates == 70 + (30 + 50) / 2 and rows["student"].updates is None
    alone = leaderboard(replanned(plan, store, given={"kd": LABELS_ALONE}), store)
    assert {row.method: row.updates for row in alone.rows}["kd"] == 40, "it asks no teacher"


def test_row_below_the_control_says_why(full: SweepPlan, store: RunStore, fill: Fill) -> None:
    fill("low", [0.79, 0.83, 0.80])
    fill("bad", [0.50, 0.52, 0.51])
    plan = replanned(full, store, methods=["student", "low", "bad"], reasons={"bad": "it sees nothing"})
    text = " ".join(shown(plan, store, "terminal").split())
    assert "Below student, but not significantly, after correction: low by 0.3 ± 2.9 (p 0.67)." in text
    assert "bad: it sees nothing" in text


def test_teachers_of_all_seeds_are_one_mean(plan: SweepPlan, finish: Finish, store: RunStore) -> None:
    for seed, score in enumerate((0.9, 0.92, 0.94)):
        finish(f"t{seed}", outcome(score))
        plan.add(Planned(plan.pairs()[0], "teacher", "teacher", seed, f"t{seed}"))
    (teacher,) = leaderboard(plan, store).teachers.values()
    assert teacher.mean == pytest.approx(0.92) and teacher.count == 3
    assert "Teachers: small 92.0 ± 5.0 %." in shown(plan, store, "markdown")
