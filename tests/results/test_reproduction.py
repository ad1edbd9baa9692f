"""Published against ours, on numbers made by hand."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from typing import Any

import pytest

from kdbench.bench.errors import InputError
from kdbench.bench.record import Outcome
from kdbench.results.analysis.literature import Published, load
from kdbench.results.analysis.paper_table import Table, Wanted
from kdbench.results.analysis.reproduced import Reproduced, orders
from kdbench.results.analysis.reproduction import Reproduction, measured, reproduced
from kdbench.results.pages.report import render
from kdbench.results.pages.reproduction import reproduction_report
from kdbench.results.store.plan import Planned
from kdbench.results.store.run_store import RunStore
from tests.results.conftest import PNG, Finish

PAIR = "MLP 784-1200-1200-10 -> MLP 784-800-800-10"
ROWS = {row.method: row for row in load() if row.table == "hinton2015_mnist"}
KD, STUDENT, TEACHER = ROWS["kd"], ROWS["student"], ROWS["teacher"]
MARGINS = {"test_errors": 10.0}


def wanted(published: Published | None = KD, **changes: Any) -> Wanted:
    metric = published.metric if published else "test_errors"
    label = published.method if published else "kd T=1"
    alone = label == "student"
    return replace(Wanted(PAIR, label, label, metric, published, network="small", alone=alone), **changes)


def score(errors: int, on_threes: int = 0, corrected: int = 0) -> Outcome:
    """The end of a run with so many errors of 100 images, 10 of them of class 3."""
    logits = {"accuracy": 1 - errors / 100, "accuracy_omitted": 1 - on_threes / 10, "top5": 1.0}
    test = {"student": {"logits": logits, "bias_corrected": {"accuracy": 1 - corrected / 100}}, "student.peer_1": {}}
    scores = {epoch: {"epoch": 1, "validation": test, "test": test} for epoch in ("last", "best")}
    confusion = [[10 if row == column else 0 for column in range(10)] for row in range(10)]
    return Outcome(status="done", scores=scores, confusion=confusion)


@pytest.fixture
def runs(store: RunStore, finish: Finish) -> list[Planned]:
    planned = []
    for method, errors in {"teacher": [6, 7, 8], "student": [14, 15, 16], "kd": [7, 8, 9], "kd T=1": [7, 8, 8]}.items():
        phase = "teacher" if method == "teacher" else "seed"
        for number, count in enumerate(errors, start=1):
            key = f"{method.replace(' ', '')}{number}"
            finish(key, score(count, 3, 5))
            planned.append(Planned(PAIR, method, phase, number, key))
    return planned


WANTED = [wanted(TEACHER, phase="teacher"), wanted(STUDENT), wanted(), wanted(None)]


def rows_of(
    wanted: list[Wanted],
    planned: list[Planned],
    store: RunStore | None,
    statistic: str = "mean",
    incomparable: str = "",
) -> list[Reproduced]:
    table = Table("hinton2015_mnist", "", "full", "mnist", statistic, "last", 3, incomparable, MARGINS, wanted)
    return reproduced(table, planned, store)


def table(rows: list[Reproduced], **changes: Any) -> Reproduction:
    said = (orders(rows), ["2 % are kept."], ["!"])
    whole = Reproduction("hinton2015_mnist", "", "", "full", "mnist", "mean", "last", 3, MARGINS, rows, *said)
    return replace(whole, **changes)


def page(found: Reproduction, form: str = "terminal") -> str:
    return render(reproduction_report(found), form)


def plot(found: Reproduction) -> bytes:
    return reproduction_report(found).pictures["reproduction"]("png")


def test_measured_counts_errors_of_all_and_of_classes(store: RunStore, runs: list[Planned]) -> None:
    run = store.get("kd1")
    assert run is not None
    assert measured(wanted(), run, "last") == 7.0
    assert measured(wanted(share="accuracy_omitted", classes=(3,)), run, "last") == 3.0
    assert measured(wanted(prediction="bias_corrected"), run, "last") == 5.0
    assert measured(wanted(student="student.peer_1"), run, "last") is None
    assert measured(wanted(metric="error_top1"), run, "best") == pytest.approx(7.0)
    assert measured(wanted(metric="accuracy_top5"), run, "last") == pytest.approx(100.0)


def test_measured_takes_the_prediction_that_is_best_on_validation(store: RunStore, finish: Finish) -> None:
    shares = {"stage_1": (0.6, 0.5), "stage_2": (0.8, 0.4), "last": (0.7, 0.9)}
    parts = {
        part: {"student": {name: {"accuracy": 0.0, "top5": pair[i]} for name, pair in shares.items()}}
        for i, part in enumerate(("validation", "test"))
    }
    finish("exits", Outcome(status="done", scores={"best": {"epoch": 1, **parts}}))
    run = store.get("exits")
    assert run is not None

    def best_of(*names: str) -> float | None:
        return measured(wanted(metric="accuracy_top5", best_of=names), run, "best")

    assert best_of("stage_1") == pytest.approx(50.0)
    assert best_of("stage_1", "stage_2") == best_of("stage_1", "stage_2", "last") == pytest.approx(40.0)
    assert best_of("stage_1", "last") == pytest.approx(90.0) and best_of("stage_9") is None


def test_rows_hold_mean_interval_difference_and_the_best(store: RunStore, runs: list[Planned]) -> None:
    teacher, student, kd, hot = rows_of(WANTED, runs, store)
    assert teacher.value == 7.0 and teacher.judgement.difference == -60.0 and not teacher.gain
    assert str(student.judgement) == "different: better by 131 errors" and not student.best and not student.gain
    # of one unit a seed: predictive interval t(0.975, 2) sqrt(1 + 1/3) = 4.302653 * 1.154701
    assert student.judgement.half_width == pytest.approx(4.968274, abs=1e-5)
    assert kd.best and kd.interval and kd.interval.count == 3 and kd.tied
    assert hot.best and not hot.tied and str(hot.judgement) == "not published" and hot.judgement.difference is None
    (median,) = rows_of([wanted(None)], runs, store, "median")
    assert median.value == 8.0


def test_holm_is_over_all_numbers_that_can_be_compared(store: RunStore, runs: list[Planned]) -> None:
    teacher, student, kd = (row.judgement for row in rows_of(WANTED[:3], runs, store))
    # t = d / sqrt(4 / 3) of 60, 131 and 66, with 2 degrees of freedom p = 1 - t / sqrt(2 + t^2)
    of_teacher, of_student, of_kd = (1 - t / (2 + t**2) ** 0.5 for t in (d / (4 / 3) ** 0.5 for d in (60, 131, 66)))
    assert student.p_different == pytest.approx(3 * of_student) and kd.p_different == pytest.approx(2 * of_kd)
    assert teacher.p_different == pytest.approx(max(of_teacher, 2 * of_kd))
    selected = replace(WANTED[1], incomparable="chosen on the test part")
    teacher, student, kd = (row.judgement for row in rows_of([WANTED[0], selected, WANTED[2]], runs, store))
    assert str(student) == "not comparable: chosen on the test part" and student.p_different is None
    assert kd.p_different == pytest.approx(2 * of_kd)


def test_gain_is_over_its_own_student_paired_by_seed(store: RunStore, runs: list[Planned]) -> None:
    _, _, kd, hot = rows_of(WANTED, runs, store)
    assert kd.gain is not None and hot.gain is not None
    # 14 - 7, 15 - 8, 16 - 9; the paper's is 146 - 74
    assert kd.gain.ours.mean == 7.0 and kd.gain.ours.half_width == 0.0 and kd.gain.published == 72
    assert str(kd.gain.judgement) == "different: worse by 65 errors"
    assert hot.gain.ours.mean == pytest.approx(15 - 23 / 3)
    assert hot.gain.published is None and str(hot.gain.judgement) == "not published"
    # the two published numbers are draws of one run each: variances 1 and 1; ours adds none
    assert kd.gain.judgement.half_width == pytest.approx(4.302653 * 2**0.5, abs=1e-5)
    elsewhere = [replace(WANTED[1], pair="other pair"), wanted(network="large"), wanted(part="10 %")]
    assert [row.gain for row in rows_of(elsewhere, runs, store)] == [None] * 3


def test_student_of_another_pair_is_taken_where_the_own_has_none(store: RunStore, runs: list[Planned]) -> None:
    moved = [replace(each, pair="other pair") if each.method == "student" else each for each in runs]
    student, kd = rows_of([replace(WANTED[1], pair="other pair"), wanted()], moved, store)
    assert kd.gain is not None and kd.gain.ours.mean == 7.0 and student.value == 15.0


def test_order_ranks_the_rows_of_one_student(store: RunStore, runs: list[Planned]) -> None:
    hot = wanted(KD.model_copy(update={"value": 70.0}), row="kd T=1")
    rows = rows_of([*WANTED[:3], hot], runs, store)
    (found,) = orders(rows)
    # kd T=1 ties with kd for two seeds: 2 of 3 pairs over sqrt(3 * 2); on the third it is better: all in order
    assert (found.over, found.rows) == ("small", 3)
    assert found.tau.mean == pytest.approx((2 * 2 / 6**0.5 + 1) / 3)
    again = [*rows, *(replace(row, wanted=replace(row.wanted, pair="other pair")) for row in rows[1:2])]
    assert orders(again) == [found], "a student alone is ranked once"
    two = [*rows, *(replace(row, wanted=replace(row.wanted, part="10 %")) for row in rows)]
    assert [each.over for each in orders(two)] == ["small", "small, 10 %", ""]
    assert orders(rows[:3]) == []


def test_short_scale_shows_gains_and_order_and_judges_no_size(store: RunStore, runs: list[Planned]) -> None:
    hot = wanted(KD.model_copy(update={"value": 70.0}), row="kd T=1")
    rows = rows_of([*WANTED[:3], hot], runs, store, incomparable="short scale")
    assert {str(row.judgement) for row in rows} == {"not comparable: short scale"}
    text = page(table(rows, scale="short"))
    assert "gain over its own student" in text and "+7 ± 0.0" in text and "Order of small: Kendall's tau 0.88" in text


def test_what_was_not_run_or_failed_says_so(store: RunStore, finish: Finish) -> None:
    assert [str(row.judgement) for row in rows_of(WANTED, [], None)] == ["not run"] * 4
    finish("bad", Outcome(status="diverged", reason="the loss is nan"))
    planned = [Planned(PAIR, "teacher", "teacher", 0, "bad")]
    teacher, _, kd, _ = rows_of(WANTED, planned, store)
    assert str(teacher.judgement) == "not comparable: diverged: the loss is nan"
    assert str(kd.judgement) == "not run: its teacher diverged: the loss is nan"


def test_seeds_that_were_lost_are_told(store: RunStore, runs: list[Planned], finish: Finish) -> None:
    finish("bad", Outcome(status="diverged", reason="the loss is nan"))
    planned = [each if each.key != "kd2" else replace(each, key="bad") for each in runs]
    (kd,) = rows_of([wanted()], planned, store)
    assert kd.seeds.keys() == {1, 3} and kd.judgement.reason == "fewer than 3 seeds; of 3 seeds, 1 diverged"


def test_other_predictions_are_not_ranked_with_the_headline(store: RunStore, runs: list[Planned]) -> None:
    corrected = wanted(None, row="student", prediction="bias_corrected")
    student, kd, other = rows_of([wanted(STUDENT), wanted(), corrected], runs, store)
    assert other.value == 5.0 < (kd.value or 0) and kd.best and not other.best and not student.best


def test_page_has_every_format_and_a_half_finished_table(store: RunStore, runs: list[Planned]) -> None:
    half = [planned for planned in runs if planned.method != "student"]
    found = table(rows_of(WANTED, half, store))
    text = page(found)
    assert "74 [1]" in text and "not run" in text and "Unfinished: 3 of 4 numbers." in text
    assert "[1] first-hand, of hinton2015 (2015): Zyazz" in text and "Departure: 2 % are kept." in text
    assert "**8 ± 2.5 =**" in page(found, "markdown")
    latex = page(found, "latex")
    assert r"\toprule" in latex and r"\textbf{8 $\pm$ 2.5 =}" in latex and r"hinton2015\_mnist" in latex
    lines = list(csv.DictReader(page(found, "csv").splitlines()))
    assert [line["verdict"] for line in lines] == ["different", "not run", "different", "not published"]
    assert lines[3]["published"] == lines[3]["difference"] == "" and lines[1]["published"] == "146.0"
    values = json.loads(json.dumps(reproduction_report(found).values))
    assert values["rows"][2]["published"]["value"] == 74.0 and values["rows"][2]["seeds"] == {"1": 7, "2": 8, "3": 9}
    assert plot(found).startswith(PNG)
    with pytest.raises(InputError, match="unknown format 'pdf'"):
        page(found, "pdf")


def test_short_scale_is_always_said() -> None:
    short = table(rows_of(WANTED, [], None, incomparable="short scale"), scale="short")
    assert "short scale, mnist" in page(short)
    with pytest.raises(InputError, match="nothing to plot"):
        plot(short)
