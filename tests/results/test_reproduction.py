"""Published against ours, on numbers made by hand."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from typing import Any

import pytest

from bench.errors import InputError
from bench.record import Outcome
from results.analysis.literature import Published, load
from results.analysis.paper_table import Table, Wanted
from results.analysis.reproduction import Reproduced, Reproduction, measured, reproduced
from results.analysis.statistics import interval
from results.analysis.verdict import judge, spread_of
from results.pages.report import render
from results.pages.reproduction import reproduction_report
from results.store.plan import Planned
from results.store.run_store import RunStore
from tests.results.conftest import PNG, Finish

PAIR = "MLP 784-1200-1200-10 -> MLP 784-800-800-10"
ROWS = {row.method: row for row in load() if row.table == "hinton2015_mnist"}
KD, STUDENT, TEACHER = ROWS["kd"], ROWS["student"], ROWS["teacher"]
ACCURACY = next(row for row in load() if row.table == "vid2019_cifar10" and row.method == "vid" and not row.part)


def wanted(published: Published | None = KD, **changes: Any) -> Wanted:
    metric = published.metric if published else "test_errors"
    label = published.method if published else "kd T=1"
    return replace(Wanted(PAIR, label, label, metric, published), **changes)


@pytest.mark.parametrize(
    ("values", "verdict", "reason"),
    [
        ([70.0, 75.0, 78.0], "within", ""),
        ([85.0, 86.0, 87.0], "below", "12 more errors"),
        ([60.0, 61.0, 62.0], "above", "13 fewer errors"),
        ([74.0], "not comparable", "one seed, so no interval"),
    ],
)
def test_judge_knows_that_fewer_errors_are_better(values: list[float], verdict: str, reason: str) -> None:
    ours = interval(values)
    assert judge(wanted(), ours) == (verdict, reason)


def test_judge_knows_that_more_accuracy_is_better() -> None:
    ours = interval([91.0, 91.1, 91.2])
    assert judge(wanted(ACCURACY), ours) == ("below", "0.75 points less accuracy")
    ours = interval([92.3, 92.4, 92.5])
    assert judge(wanted(ACCURACY), ours) == ("above", "0.55 points more accuracy")


def test_judge_gives_the_reason_why_not() -> None:
    ours = interval([70.0, 75.0, 78.0])
    assert judge(wanted(), ours, "short scale") == ("not comparable", "short scale")
    assert judge(wanted(None), ours, "short scale") == ("not published", "")


def test_published_spread_makes_intervals_overlap() -> None:
    ours = interval([91.0, 91.1, 91.2])
    said = ACCURACY.model_copy(update={"spread": 0.6, "spread_kind": "ci95"})
    assert judge(wanted(said), ours) == ("within", "the intervals overlap")
    assert spread_of(ACCURACY) == 0.0
    deviation = ACCURACY.model_copy(update={"spread": 0.3, "spread_kind": "std", "seeds": 4})
    assert spread_of(deviation) == pytest.approx(3.182446 * 0.3 / 2)
    assert spread_of(deviation.model_copy(update={"seeds": None})) == 0.3


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
    table = Table("hinton2015_mnist", "", "full", "mnist", statistic, "last", 3, incomparable, wanted)
    return reproduced(table, planned, store)


def table(rows: list[Reproduced], **changes: Any) -> Reproduction:
    whole = Reproduction("hinton2015_mnist", "", "", "full", "mnist", "mean", "last", 3, rows, ["2 % are kept."], ["!"])
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
    assert teacher.value == 7.0 and teacher.difference == -60.0 and teacher.verdict == "above"
    assert student.verdict == "above" and student.reason == "131 fewer errors" and not student.best
    assert kd.best and kd.interval and kd.interval.count == 3 and kd.tied
    assert hot.best and not hot.tied and hot.verdict == "not published" and hot.difference is None
    (median,) = rows_of([wanted(None)], runs, store, "median")
    assert median.value == 8.0


def test_what_was_not_run_or_failed_says_so(store: RunStore, finish: Finish) -> None:
    assert [row.judged for row in rows_of(WANTED, [], None)] == ["not run"] * 4
    finish("bad", Outcome(status="diverged", reason="the loss is nan"))
    planned = [Planned(PAIR, "teacher", "teacher", 0, "bad")]
    teacher, _, kd, _ = rows_of(WANTED, planned, store)
    assert teacher.judged == "not comparable (diverged: the loss is nan)"
    assert kd.judged == "not run (its teacher diverged: the loss is nan)"


def test_seeds_that_were_lost_are_told(store: RunStore, runs: list[Planned], finish: Finish) -> None:
    finish("bad", Outcome(status="diverged", reason="the loss is nan"))
    planned = [each if each.key != "kd2" else replace(each, key="bad") for each in runs]
    (kd,) = rows_of([wanted()], planned, store)
    assert kd.seeds.keys() == {1, 3} and kd.reason == "66 fewer errors; of 3 seeds, 1 diverged"


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
    assert [line["verdict"] for line in lines] == ["above", "not run", "above", "not published"]
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
