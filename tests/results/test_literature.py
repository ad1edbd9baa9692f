"""The file of published numbers: whole, in range, never an error for an accuracy; and the search through it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from kdbench.bench.errors import InputError
from kdbench.methods import REGISTRY
from kdbench.results.analysis.literature import (
    FOLDER,
    Published,
    conflicting,
    conflicts,
    disputed,
    load,
    others,
    recipe,
    search,
)
from kdbench.results.pages.published import published_report
from kdbench.results.pages.report import render

ROWS = load()
LEAST_ACCURATE = {"mnist": 97, "svhn": 90, "cifar10": 65, "imagenet": 66, "cifar100": 39}
"""Top-1 of the weakest network that is trained on all of the data; a part of it may be worse."""


def test_every_row_is_there() -> None:
    assert len(ROWS) == 2407 and len(set(map(str, ROWS))) == 2407
    assert Counter(row.origin for row in ROWS) == {"first-hand": 1754, "quoted": 387, "reimplementation": 266}
    papers = Counter(row.paper for row in ROWS)
    assert len(papers) == 68
    counts = {"hinton2015": 21, "fitnets2015": 20, "at2017": 52, "fsp2017": 35, "crd2020": 184, "multiexit2019": 352}
    assert {paper: papers[paper] for paper in counts} == counts


def test_papers_and_tables_are_told_in_one_way() -> None:
    assert len({row.paper for row in ROWS}) == len({(row.paper, row.title, row.venue, row.year) for row in ROWS})
    assert len({row.table for row in ROWS}) == len({(row.table, row.protocol) for row in ROWS}) == 101
    for row in ROWS:
        texts = [value for value in row.model_dump().values() if isinstance(value, str)]
        assert all(text == text.strip() and text != "-" and "\n" not in text for text in texts)


def test_every_table_has_its_protocol() -> None:
    heads = re.findall(r"^### (.+)$", (FOLDER / "recipes.md").read_text(encoding="utf-8"), re.MULTILINE)
    listed = {table: head.split(", ")[0] for head in heads for table in head.split(", ")}
    assert listed == {row.table: row.protocol for row in ROWS}
    assert len(heads) == len(set(listed.values())) and sum(len(head.split(", ")) for head in heads) == len(listed)
    assert all(recipe(protocol) for protocol in set(listed.values()))
    assert "| crd+kd | 1 | 1 | 0.8 |" in recipe("crd2020_cifar100_same") and "###" not in recipe("hinton2015_asr")
    with pytest.raises(InputError, match="unknown protocol 'crd2020': did you mean crd2020_cifar100_same"):
        recipe("crd2020")


def test_every_method_is_ours_or_listed_as_not_ours() -> None:
    parts = {part for row in ROWS for part in row.method.split("+")}
    assert not set(others()) & set(REGISTRY)
    assert parts - set(REGISTRY) == set(others())
    unprinted = {"abkd", "ban", "deit", "dgkd", "nkd", "ofa", "rld", "scheduled_kd", "tolerant_teacher", "ttm"}
    unprinted |= {"uskd", "vkd", "wkd"}
    assert set(REGISTRY) - parts == unprinted
    assert all(row.ours == (set(row.method.split("+")) <= set(REGISTRY)) for row in ROWS)
    assert all(others().values())


def test_errors_are_not_accuracies() -> None:
    for row in ROWS:
        least, accuracy = LEAST_ACCURATE.get(row.dataset), row.accuracy()
        if least and accuracy is not None and row.quantity.startswith("accuracy_top1") and not row.part:
            assert accuracy >= least, row
        if row.metric == "error_top1" and row.dataset in LEAST_ACCURATE and not row.part:
            assert row.value < 50, row


def test_sources_of_one_setting_are_points_apart_and_not_errors_of_each_other() -> None:
    for rows in conflicts():
        values = [value for row in rows if (value := row.accuracy()) is not None]
        assert not values or max(values) - min(values) < 15, rows


def test_distilled_students_are_near_the_student_alone() -> None:
    """A column of errors read as accuracies would move by far more."""
    for table in {row.table for row in ROWS}:
        rows = [row for row in ROWS if row.table == table and row.accuracy() is not None]
        alone = {(r.dataset, r.part, r.student, r.quantity): r.accuracy() or 0 for r in rows if r.method == "student"}
        for row in rows:
            base = alone.get((row.dataset, row.part, row.student, row.quantity))
            if base is not None and row.teacher:
                assert abs((row.accuracy() or 0) - base) < 30, row


def test_known_values() -> None:
    mnist = {row.method: row for row in search(table="hinton2015_mnist")}
    assert {name: row.value for name, row in mnist.items()} == {"teacher": 67, "student": 146, "kd": 74}
    assert mnist["kd"].accuracy() == pytest.approx(99.26) and mnist["kd"].unit == "images"
    pair = {
        row.method: row.value for row in search(table="crd2020_cifar100_same", teacher="WRN-40-2", student="WRN-16-2")
    }
    assert (pair["kd"], pair["fitnets"], pair["at"], pair["crd"]) == (74.92, 73.58, 74.08, 75.48)
    assert {row.value for row in search("teacher", table="crd2020_cifar100_same", teacher="WRN-40-2")} == {75.61}
    alone = search("student", table="crd2020_cifar100_same", student="WRN-16-2")
    assert {(row.value, row.ours, row.seeds) for row in alone} == {(73.26, True, None)}
    (at,) = (
        row
        for row in search("at", table="at2017_cifar10", student="WRN-16-1", teacher="WRN-16-2")
        if row.method == "at"
    )
    assert (at.metric, at.value, at.seeds, at.accuracy()) == ("error_top1", 7.93, 5, 92.07)
    (noisy,) = search("noisy_teacher", data="mnist", text="sigma=0.10")
    assert noisy.value == 0.96 and "printed as a share, 0.0096" in noisy.note
    assert {row.spread_kind for row in search(paper="multiexit2019")} == {"ci95"}


def changed(**fields: Any) -> dict[str, Any]:
    return ROWS[0].model_dump() | fields


@pytest.mark.parametrize(
    "fields",
    [
        {"metric": "accuracy_top1", "value": 100.1},
        {"value": -1},
        {"value": float("nan")},
        {"value": 67.5},
        {"value": 10_001},
        {"dataset": "cifar10"},
        {"metric": "rmse", "value": 1.2},
        {"metric": "top1"},
        {"origin": "hearsay"},
        {"spread": 0.1},
        {"spread_kind": "std"},
        {"seeds": 0},
        {"method": "KD"},
        {"year": 1066},
        {"source": ""},
        {"colour": "red"},
    ],
)
def test_schema_refuses(fields: dict[str, Any]) -> None:
    assert Published.model_validate(changed())
    with pytest.raises(ValidationError):
        Published.model_validate(changed(**fields))


def test_conflicts_are_found_across_errors_and_accuracies() -> None:
    (found,) = (
        rows for rows in conflicts() if rows[0].setting()[:6] == ("imagenet", "", "ResNet-34", "ResNet-18", "kd", "")
    )
    values = {row.table: row.accuracy() for row in found}
    assert values["eskd2019_imagenet"] == 69.21 and values["dkd2022_imagenet"] == 71.03
    assert values["mmrazor_imagenet_repro"] == 71.81 and all(map(disputed, found))
    rkd = [
        row.value for rows in conflicts() for row in rows if row.setting()[2:5] == ("WRN-40-2", "ShuffleNetV1", "rkd")
    ]
    assert {72.21, 74.21} <= set(rkd)
    shown = [
        row for rows in conflicts() for row in rows if row.table == "dml2018_vs_kd" and row.dataset == "market1501"
    ]
    assert shown == [], "two networks of one run are no conflict"


def test_equal_values_are_no_conflict() -> None:
    (row,) = search("kd", table="crd2020_cifar100_same", student="wrn_16_2", teacher="wrn_40_2")[:1]
    rest = [each for each in ROWS if each is not row and each.setting() == row.setting()]
    assert {each.paper for each in rest} == {"sskd2020", "dkd2022", "ls2024"}
    assert {each.value for each in rest} == {74.92} and not disputed(row) and conflicting(rest) == ()


def test_conflicting_has_all_rows_of_the_found_settings() -> None:
    found = search("kd", table="eskd2019_imagenet", student="ResNet-18", teacher="ResNet-34")
    rows = conflicting([row for row in found if row.quantity == "accuracy_top1" and not row.variant])
    assert {row.setting()[:6] for row in rows} == {("imagenet", "", "ResNet-34", "ResNet-18", "kd", "")}
    assert {"eskd2019_imagenet", "dkd2022_imagenet", "mmrazor_imagenet_repro"} <= {row.table for row in rows}
    assert all(map(disputed, rows)) and conflicting(search(table="hinton2015_mnist")) == ()


def test_search_meets_every_condition() -> None:
    assert {row.method for row in search("at")} == {"at", "kd+at"} and {row.method for row in search("kd+at")} == {
        "kd+at"
    }
    assert len(search(data="CIFAR-10")) == len(search(data="cifar10")) == 431
    assert search("at", "cifar10", teacher="wrn_16_2") == tuple(
        row for row in search("at") if row.dataset == "cifar10" and row.teacher == "WRN-16-2"
    )
    assert {row.teacher for row in search("dml", teacher="ResNet-32")} == {"peer ResNet-32"}
    assert search("vild", data="mnist") == () and len(search()) == 2407 and len(search(text="median of 5 runs")) == 29


@pytest.mark.parametrize("name", ["method", "data", "paper", "table", "teacher", "student"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="unknown published"):
        search(**{name: "nothing like it"})


def test_shown_rows_keep_source_unit_and_dispute() -> None:
    report = published_report(conflicting(search("kd", "imagenet")))
    assert report.values["found"] == report.values["shown"] > 6
    assert all(row["disputed"] for row in report.values["rows"])
    text = render(report, "markdown")
    assert "30.79 % !" in text and "Vincent-Hoo/Vincent-Hoo.github.io@eea1f3e" in text and "--conflicts" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + report.values["shown"] and {line.count(" | ") for line in rows[2:]} == {8}


def test_every_row_is_a_line_of_csv_and_fits_a_terminal() -> None:
    lines = render(published_report(ROWS), "csv").splitlines()
    assert len(lines) == 2408 and lines[1].endswith(",images,False,False")
    assert all(len(line.rstrip()) <= 80 for line in render(published_report(ROWS[:60]), "terminal", 80).splitlines())


def test_rows_over_the_limit_are_said_and_a_protocol_is_shown() -> None:
    found = search(table="hinton2015_mnist")
    report = published_report(found, 2, found[0].protocol)
    assert (report.values["found"], report.values["shown"]) == (3, 2)
    assert report.notes[0] == "2 of 3 rows: 1 are left out; --limit 0 shows all."
    assert report.notes[-1] == f"Protocol, hinton2015_mnist:\n{recipe('hinton2015_mnist')}"


def test_search_runs_without_torch_and_pandas() -> None:
    code = "import sys; from kdbench.results.analysis.literature import conflicting, search\n"
    code += "from kdbench.results.pages.published import published_report\n"
    code += "from kdbench.results.pages.report import render\n"
    code += "render(published_report(conflicting(search('at')), 5), 'csv')\n"
    code += "assert not {'torch', 'pandas', 'kdbench.methods'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=FOLDER.parents[1])
