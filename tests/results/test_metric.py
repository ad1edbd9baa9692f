"""Other primary metrics than accuracy, and other controls than `student`: what is shown, and which way is better."""

from __future__ import annotations

import csv
import json

import pytest

from kdbench.bench.record import Metric
from kdbench.results.analysis.comparison import compare
from kdbench.results.analysis.leaderboard import leaderboard
from kdbench.results.analysis.targets import targets
from kdbench.results.pages.board import board_report
from kdbench.results.pages.comparison import comparison_report
from kdbench.results.pages.report import render
from kdbench.results.pages.run_summary import run_summary_report
from kdbench.results.store.plan import SweepPlan
from kdbench.results.store.run_store import RunStore
from tests.results.conftest import ERROR, MIOU, Fill, outcome, replanned

RMSE = Metric(name="RMSE", unit="", higher_is_better=False)


@pytest.fixture
def lower(plan: SweepPlan, store: RunStore, fill: Fill) -> SweepPlan:
    """A plan in which kd has the lowest error, and sp ties with it."""
    fill("student", [0.20, 0.18, 0.19], ERROR)
    fill("kd", [0.15, 0.14, 0.13], ERROR)
    fill("sp", [0.16, 0.12, 0.15], ERROR)
    return replanned(plan, store, metric=ERROR.model_dump())


def test_board_of_an_error_is_sorted_tied_and_gains_by_its_sign(lower: SweepPlan, store: RunStore) -> None:
    kd, sp, student = leaderboard(lower, store).rows
    assert [row.method for row in (kd, sp, student)] == ["kd", "sp", "student"]
    assert kd.score is not None and kd.score.mean == pytest.approx(0.14)
    assert kd.gain_control is not None and kd.gain_control.mean == pytest.approx(0.05)
    assert sp.gain_baseline is not None and sp.gain_baseline.mean == pytest.approx(-0.01 / 3)
    assert student.gain_baseline is not None and student.gain_baseline.mean == pytest.approx(-0.05)
    assert (kd.tied, sp.tied, student.tied) == (False, True, False)


def test_page_of_an_error_names_it_and_has_the_lowest_in_bold(lower: SweepPlan, store: RunStore) -> None:
    report = board_report(leaderboard(lower, store))
    text = render(report, "markdown")
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "| error " in lines["method"] and "accuracy" not in text
    assert "**14.0 ± 2.5**" in lines["kd"] and "+5.0 ± 2.5" in lines["kd"] and "**" not in lines["student"]
    assert "Test error in %, last epoch" in text and "lower is better, and a gain is by how much it is lower." in text
    first = next(csv.DictReader(render(report, "csv").splitlines()))
    assert float(first["error"]) == pytest.approx(0.14) and float(first["gain_student"]) == pytest.approx(0.05)


def test_comparison_of_an_error_is_above_zero_where_it_is_lower(lower: SweepPlan, store: RunStore) -> None:
    compared = compare(lower, store, ["student"])
    kd, sp = compared.comparisons
    assert (kd.method, sp.method) == ("kd", "sp") and kd.difference.mean == pytest.approx(0.05)
    assert kd.won == 1 and kd.probability is not None and kd.probability > 0.9
    ranking = compared.rankings[1].ranking
    assert ranking is not None and list(ranking.ranks) == ["kd", "sp", "student"]
    text = render(comparison_report(compared), "markdown")
    assert "control minus method in points of test error, so that above zero is better, last epoch" in text


def test_board_of_miou_is_in_per_cent_under_its_own_name(plan: SweepPlan, store: RunStore, fill: Fill) -> None:
    fill("student", [0.50, 0.51], MIOU)
    fill("kd", [0.55, 0.54], MIOU)
    report = board_report(leaderboard(replanned(plan, store, metric=MIOU.model_dump()), store))
    text = render(report, "markdown")
    assert "| mIoU " in text and "| 54.5 ± 6.4" in text.replace("**", "") and "Test mIoU in %, last epoch" in text
    assert json.loads(json.dumps(report.values))["rows"][0]["mIoU"]["mean"] == pytest.approx(0.545)
    text = render(comparison_report(compare(replanned(plan, store, metric=MIOU.model_dump()), store)), "markdown")
    assert "difference: method minus control in points of test mIoU, last epoch" in text


def test_metric_that_is_no_share_is_printed_as_it_is(plan: SweepPlan, store: RunStore, fill: Fill) -> None:
    fill("student", [0.250], RMSE)
    fill("kd", [0.1239], RMSE)
    plan = replanned(plan, store, metric=RMSE.model_dump())
    text = render(board_report(leaderboard(plan, store)), "markdown")
    assert "**0.124**" in text and "+0.126" in text and "Test RMSE, last epoch" in text and "in points" not in text
    text = render(comparison_report(compare(plan, store, ["student"])), "markdown")
    assert "control minus method in test RMSE, so that above zero is better" in text and "+0.126" in text


def test_gains_are_over_the_suites_own_control_and_baseline(full: SweepPlan, store: RunStore) -> None:
    plan = replanned(full, store, control="kd", baseline="sp")
    report = board_report(leaderboard(plan, store))
    text = render(report, "markdown")
    assert "| over kd " in text and "| over sp " in text and "over student" not in text
    assert {"gain_kd", "gain_sp"} < set(next(csv.DictReader(render(report, "csv").splitlines())))
    assert {each.control for each in compare(plan, store).comparisons} == {"kd", "sp"}


@pytest.mark.parametrize(
    ("metric", "score", "met", "rule"),
    [
        (MIOU, 0.82, True, "at least 90 % of the teacher's mIoU"),
        (MIOU, 0.80, False, "at least 90 % of the teacher's mIoU"),
        (ERROR, 0.99, True, "at most 111 % of the teacher's error"),
        (ERROR, 1.0, True, "at most 111 % of the teacher's error"),
        (ERROR, 1.01, False, "at most 111 % of the teacher's error"),
    ],
)
def test_target_of_the_score_follows_the_metrics_direction(metric: Metric, score: float, met: bool, rule: str) -> None:
    """The teacher's score is 0.9."""
    first = targets(outcome(score, metric=metric))[0]
    assert (first.name, first.rule, first.met) == (metric.name, rule, met)
    assert first.value == pytest.approx(score / 0.9)


def test_run_summary_shows_the_metric(plan: SweepPlan, store: RunStore, fill: Fill) -> None:
    fill("kd", [0.55], MIOU)
    text = render(run_summary_report(store.find("kd-1")))
    assert "test, last epoch (3), student, logits: mIoU 0.5500, agreement 0.8000" in text
    assert "at least 90 % of the teacher's mIoU: not met (0.6111)" in text
