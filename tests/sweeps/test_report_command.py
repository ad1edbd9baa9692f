"""The command that writes a site: what it is given, what it refuses, and a paper's table as a page."""

from __future__ import annotations

import json
from pathlib import Path

from kdbench.results.store.plan import SweepPlan
from kdbench.sweeps.cli.common import opened
from kdbench.sweeps.cli.report import facts_of_suite
from tests.sweeps.commands import Run

COMMITTED = Path(__file__).resolve().parents[2] / "results" / "evidence"
OMIT = str(COMMITTED / "hinton2015_mnist_omit")


def test_papers_table_is_a_page_with_its_verdicts_and_its_chart(kdbench: Run, tmp_path: Path) -> None:
    code, out, _ = kdbench("report", "--store", OMIT, "--out", "here", "--json")
    said = json.loads(out)
    assert code == 0 and said["pages"] == 2 and said["suites"][0].startswith("hinton2015_mnist_omit@")
    page = (tmp_path / "here" / "hinton2015_mnist_omit" / "index.html").read_text()
    assert "different: better by" in page and '<figure class="plot">' in page
    assert "hinton2015_mnist_omit/index.html" in (tmp_path / "here" / "index.html").read_text()
    assert "window.vegaEmbed" in (tmp_path / "here" / "assets" / "vega.js").read_text()


def test_bad_input_is_one_line(kdbench: Run, tmp_path: Path) -> None:
    code, _, err = kdbench("report", "hinton2015_mnist", "--store", OMIT)
    assert code == 2 and "did you mean hinton2015_mnist_omit?" in err and err.count("\n") == 1
    (tmp_path / "empty").mkdir()
    code, _, err = kdbench("report", "--store", "empty")
    assert code == 2 and "there is no suite in the store empty: run a sweep first" in err
    (tmp_path / "file").write_text("")
    code, _, err = kdbench("report", "--store", OMIT, "--out", "file")
    assert code == 2 and "the folder file cannot be written" in err and (tmp_path / "file").read_text() == ""


def test_rows_are_told_with_their_method_their_ranges_and_what_the_suite_fixes() -> None:
    store = opened(COMMITTED / "segmentation")
    facts = facts_of_suite(SweepPlan.find(store.root, "segmentation"), store)
    assert list(facts.rows) == ["student", "kd", "at", "sp"] and facts.table is None
    pair, row = facts.plan.pairs()[0], facts.rows["at"]
    assert row.method and row.method.id == "at" and "beta" in row.method.equation
    (beta,) = row.tuning[pair].searched
    calibrated = facts.plan.suite.calibrated[pair]["at"]["beta"]
    assert beta.name == "beta" and beta.log and beta.low == calibrated / 30 and beta.high == calibrated * 30
    assert [(each.complete, each.needed, each.shares) for each in row.tuning[pair].importance] == [(2, 10, {})]
