"""What is said of the concepts that students learned, on numbers made by hand."""

from __future__ import annotations

from kdbench.results.analysis.explanation import Explained
from kdbench.results.pages.explanation import explanation_report
from kdbench.results.pages.report import render
from tests.results.conftest import PNG, explained


def test_page_says_what_was_expected_and_seen() -> None:
    rows = [explained("student", 5.0, 2.0), explained("kd", 7.0, None), explained("sp", 4.0, 1.5)]
    page = " ".join(render(explanation_report(rows)).split())
    assert "N_fg: higher is expected of distillation (hypothesis 1: more concepts): " in page
    assert "seen in kd kd000000; not seen in sp sp000000." in page
    assert "unknown in kd kd000000; seen in sp sp000000." in page
    assert "87.5 %" in page and "none" in page and "an approximation of the paper's object boxes" in page
    alone = render(explanation_report([explained("student", 5.0, 2.0), explained("student", 6.0, 2.0)]))
    assert "seen in" not in alone and "is expected" in alone


def test_runs_are_compared_with_the_control_whatever_its_name() -> None:
    control = explained("alone", 5.0, 2.0).model_copy(update={"control": True})
    page = render(explanation_report([control, explained("kd", 7.0, None)]))
    assert "seen in kd kd000000." in page and "seen in alone" not in page
    assert "seen in" not in render(explanation_report([explained("kd", 7.0, None), explained("sp", 4.0, 1.5)]))


def test_page_says_when_distances_say_little() -> None:
    said = "100 % of the images had most concepts at the first snapshot"
    assert said in render(explanation_report([explained("kd", 1, 1, 1.0)]))


def test_csv_has_every_number_of_a_run() -> None:
    head, line = render(explanation_report([explained("kd", 7.0, None)]), "csv").splitlines()
    values = dict(zip(head.split(","), line.split(","), strict=True))
    assert (values["n_fg"], values["n_bg"], values["d_mean"], values["score"]) == ("7.0", "3.0", "", "0.875")


def test_explanation_kept_by_an_earlier_version_is_read() -> None:
    row = explained("kd", 7.0, None)
    kept = row.model_dump(mode="json", exclude={"score", "metric"}) | {"test_accuracy": 0.875}
    assert Explained.model_validate(kept) == row


def test_plot_draws_every_run() -> None:
    report = explanation_report([explained("student", 5.0, 2.0), explained("kd", 7.0, None)])
    assert report.pictures["concepts"]("png").startswith(PNG)
    assert report.pictures["concepts"]("svg").count(b">kd kd000000<") == 1
