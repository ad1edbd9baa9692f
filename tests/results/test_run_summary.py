"""What is shown of one run, and of a suite and teachers as they stand."""

from __future__ import annotations

import re

import pytest

from kdbench.bench.errors import InputError
from kdbench.bench.record import Outcome
from kdbench.results.analysis.status import TeacherCost, status_of, teachers_of
from kdbench.results.pages.report import Report, render
from kdbench.results.pages.run_summary import run_summary_report
from kdbench.results.pages.status import status_report, teachers_report
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.tracking.projection import result_numbers
from tests.results.conftest import PNG, Fill, Finish, outcome


def exits(combined: tuple[str, ...]) -> Outcome:
    """The end of a run of two exits and their ensemble."""
    cost = {"parameters": 10, "multiply_adds": 30, "latency_ms": 0.5, "seconds": 1.0}
    predictions = {
        name: {"accuracy": score, "multiply_adds": adds}
        for name, score, adds in (("exit_1", 0.7, 10.0), ("exit_2", 0.8, 30.0), ("ensemble", 0.9, 31.0))
    }
    scores = {which: {"epoch": 1, "validation": {"student": predictions}} for which in ("last", "best")}
    return Outcome(status="done", scores=scores, cost=cost, combined=combined)


def texts(report: Report, picture: str) -> list[str]:
    """What a picture says, from its svg."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", report.pictures[picture]("svg").decode())


def test_summary_shows_scores_size_speed_and_targets(store: RunStore, finish: Finish) -> None:
    finish("abcd", outcome(0.85))
    lines = render(run_summary_report(store.find("abcd"))).splitlines()
    assert lines[0] == "kd: large -> small on digits, 3 epochs, seed 1; temperature=4"
    assert lines[1].startswith("test, last epoch (3), student, logits: accuracy 0.8500, agreement 0.8000")
    assert lines[3:] == [
        "test, teacher: accuracy 0.9000",
        "1,000 parameters (5.0 times fewer); 0.50 ms a sample; 1.5 s of training",
        "Targets: at least 90 % of the teacher's accuracy: met (0.9444); at most 10 % of its parameters: not met "
        "(0.2000); under 50 ms a sample: met (0.5000)",
        f"Run abcd is in {store.root}/runs/abcd",
    ]


def test_summary_says_what_teachers_cost(store: RunStore, finish: Finish) -> None:
    result = outcome(0.85)
    result.cost.update({"teacher_forwards": 3000, "teacher_cached": 2000, "teacher_seconds": 5.0})
    finish("abcd", result)
    said = "Teachers were asked about 3,000 samples and run on 1,000 of them, in 5 s; 2,000 answers were at hand"
    assert f"{said}, about 10 s saved\n" in render(run_summary_report(store.find("abcd")))
    assert TeacherCost() + TeacherCost(1, 1, 0) == TeacherCost(1, 1, 0)


def test_summary_says_how_sure_latency_is_and_what_training_held(store: RunStore, finish: Finish) -> None:
    quiet, busy = outcome(0.85), outcome(0.85)
    quiet.cost.update(
        {"latency_low_ms": 0.4, "latency_high_ms": 0.625, "training_parameters": 5200, "peak_memory": 9e6}
    )
    del busy.cost["latency_ms"]
    finish("abcd", quiet)
    finish("ef01", busy)
    said = render(run_summary_report(store.find("abcd")))
    assert "0.50 ms a sample (quartiles 0.40 to 0.62); 1.5 s of training" in said
    assert "Trained with 5,200 parameters that are not deployed; at most 9,000,000 bytes" in said
    said = render(run_summary_report(store.find("ef01")))
    assert "latency not measured, as the core was not quiet" in said and "under 50 ms a sample: not measured" in said
    assert not [each for each in result_numbers(busy) if each.name.endswith("latency")]


def test_summary_says_what_a_network_went_without(store: RunStore, finish: Finish) -> None:
    finish("abcd", outcome(0.85).model_copy(update={"notes": ("student does not take drop_path_rate",)}))
    assert "\nLeft out: student does not take drop_path_rate\n" in render(run_summary_report(store.find("abcd")))


def test_summary_of_a_run_without_a_result_says_why(store: RunStore, finish: Finish) -> None:
    finish("abcd", outcome(0, status="unsupported", reason="no stages"))
    report = run_summary_report(store.find("abcd"))
    assert render(report).splitlines()[1:] == ["Run abcd: unsupported: no stages"] and report.values["targets"] == []
    with pytest.raises(InputError, match=r"run abcd has no confusion matrix: it is unsupported\."):
        report.pictures["confusion"]("png")
    with pytest.raises(InputError, match=r"run abcd \(kd, unsupported\) has no exits to compare"):
        report.pictures["anytime"]("png")


def test_pictures_show_decisions_and_exits(store: RunStore, finish: Finish) -> None:
    finish("abcd", outcome(0.85))
    report = run_summary_report(store.find("abcd"))
    assert report.pictures["confusion"]("png").startswith(PNG)
    assert {"9", "8", "decision", "class"} <= set(texts(report, "confusion"))
    with pytest.raises(InputError, match="has no exits to compare"):
        report.pictures["anytime"]("png")


def test_predictions_of_several_exits_are_beside_the_curve(store: RunStore, finish: Finish) -> None:
    finish("some", exits(combined=("ensemble",)))
    finish("none", exits(combined=()))
    some, none = (run_summary_report(store.find(key)) for key in ("some", "none"))
    assert {"exit_1", "exit_2", "ensemble", "multiply-adds", "validation accuracy in %"} <= set(texts(some, "anytime"))
    drawn = [report.pictures["anytime"]("svg").decode() for report in (some, none)]
    assert drawn[0].replace("some", "none") != drawn[1], "the ensemble is no point of the curve"


def test_status_counts_runs_and_says_what_failed(plan: SweepPlan, fill: Fill, store: RunStore) -> None:
    fill("kd", [0.8, 0.9])
    pair = plan.pairs()[0]
    plan.add(Planned(pair, "sp", "seed", 1, "gone"))
    with store.attempt("bad", '{"method": "sp", "student": {"name": "s"}, "data": {"name": "d"}}', print) as attempt:
        attempt.end("failed", "its worker died")
    plan.add(Planned(pair, "sp", "trial", 0, "bad"))
    report = status_report(status_of(plan, store))
    assert render(report).splitlines() == [
        "toy@abcd1234: 5 of 12 runs started",
        "  kd: 3 done",
        "  sp: 1 failed, 1 pending",
        "  failed: sp trial (bad): its worker died",
    ]
    failure = {"key": "bad", "method": "sp", "phase": "trial", "status": "failed", "reason": "its worker died"}
    assert report.values["failures"] == [failure]


def test_teachers_are_listed_with_their_score_and_state(store: RunStore, finish: Finish) -> None:
    assert render(teachers_report(teachers_of(store))) == "There are no teachers yet."
    finish("0123", outcome(0.9))
    report = teachers_report(teachers_of(store))
    assert render(report) == "run:0123  large  digits, 3 epochs, test 90.00 %  verified"
    (values,) = report.values["teachers"]
    assert values["test_accuracy"] == 0.9 and values["problem"] == ""
    (store.root / "runs" / "0123" / "attempt-1" / "last.safetensors").write_bytes(b"other")
    assert "verified" not in render(teachers_report(teachers_of(store)))
