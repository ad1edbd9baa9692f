"""Lists of methods, of tables and of what works together, from plain values."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kdbench.results.pages.compatibility import compatibility_report
from kdbench.results.pages.methods import (
    HyperparameterFacts,
    MethodFacts,
    PaperFacts,
    method_report,
    methods_document,
    methods_report,
)
from kdbench.results.pages.report import render
from kdbench.results.pages.tables import (
    ProtocolFacts,
    SourcedValue,
    TableCost,
    TableFacts,
    protocol_report,
    tables_report,
)

KD = MethodFacts(
    id="kd",
    paper=PaperFacts("Distilling", "Hinton, Vinyals", 2015, "https://kd"),
    knowledge="response",
    needs=[],
    needs_teacher=True,
    hyperparameters=[HyperparameterFacts("alpha", 0.9, "0.1 to 1"), HyperparameterFacts("form", "kl", "")],
    module="Soft answers.",
    about="Loss = alpha * KL.",
)
TABLE = TableFacts(
    table="hinton2015_mnist",
    about="MNIST.",
    paper="hinton2015",
    data="folder:mnist",
    missing=["train.gz"],
    pairs=1,
    numbers=7,
    full=TableCost(21, 49_000_000, 1234.4),
    short=TableCost(21, 1_000_000, None),
    status="not run",
)


@dataclass
class Answer:
    method: str
    teacher: str
    student: str
    reason: str = ""


def test_methods_are_listed_with_what_is_searched() -> None:
    report = methods_report([KD])
    line = render(report).splitlines()[3]
    assert line.split() == ["kd", "Hinton", "2015", "response", "alpha", "(0.9)"]
    (values,) = report.values["methods"]
    assert values["paper"]["year"] == 2015 and "about" not in values
    assert values["hyperparameters"][1] == {"name": "form", "default": "kl", "space": ""}


def test_methods_are_grouped_by_set() -> None:
    report = methods_report([KD, replace(KD, id="dkd", collection="modern"), replace(KD, collection="survey")])
    titles = [block.title for block in report.blocks]
    assert titles == ["The survey's", "Those that today's papers compare with", "From outside"]
    assert [block.rows[0][0] for block in report.blocks] == ["kd", "dkd", "kd"]


def test_method_in_full_has_its_text_before_its_hyperparameters() -> None:
    lines = render(method_report(KD, "kd+kd")).splitlines()
    assert lines[:5] == [
        "kd+kd: Distilling",
        "Hinton, Vinyals (2015) https://kd",
        "knowledge: response; needs: logits alone; teacher: yes",
        "",
        "Loss = alpha * KL.",
    ]
    assert [line.split() for line in lines[-2:]] == [["alpha", "0.9", "0.1", "to", "1"], ["form", "kl", "fixed"]]


def test_document_of_methods_has_a_section_for_each() -> None:
    text = render(methods_document([KD, KD], introduced=True), "markdown")
    assert text.startswith("# The methods\n\nMade by `make docs`") and text.count("## kd\n\nSoft answers.\n\n") == 2
    assert "Hinton, Vinyals (2015): [Distilling](https://kd).\nKnowledge: response. Needs: logits alone.\n" in text
    assert text.endswith("| `alpha` | `0.9` | 0.1 to 1 |\n| `form` | `kl` | fixed |")
    assert render(methods_document([KD], introduced=False), "markdown").startswith("## kd")


def test_equation_stands_above_the_text_a_line_for_each() -> None:
    method = replace(KD, equation="a = b\nc = d")
    assert render(method_report(method, "kd")).splitlines()[3:7] == ["a = b", "c = d", "", "Loss = alpha * KL."]
    text = render(methods_document([method], introduced=False), "markdown")
    assert "```math\na = b\n```\n\n```math\nc = d\n```\n\nLoss = alpha * KL." in text


def test_tables_are_listed_with_both_costs_and_what_is_missing() -> None:
    report = tables_report([TABLE], ".venv/bin/kdbench")
    row = render(report, "markdown").splitlines()[2]
    cells = [text.strip() for text in row.strip("|").split("|")]
    expected = ["hinton2015_mnist", "mnist (missing)", "1", "7", "21", "49M", "1,234 (short 0.0)", "not run", "MNIST."]
    assert cells == expected and ".venv/bin/kdbench tables NAME" in report.notes[0]
    (values,) = report.values["tables"]
    assert values["runs"] == 21 and values["short"]["images"] == 1_000_000 and "full" not in values


def test_protocol_has_the_source_of_every_value() -> None:
    protocol = ProtocolFacts("t", "T.", [SourcedValue("recipe.lr", 0.1, "section 3")], ["2 % are kept."], {"epochs": 1})
    report = protocol_report(protocol)
    lines = render(report).splitlines()
    assert lines[:3] == ["t: T.", "", "recipe.lr = 0.1    [section 3]"]
    assert lines[4:6] == ["Departure: 2 % are kept.", "Short scale: {'epochs': 1}"]
    assert report.values["values"] == [{"value": "recipe.lr", "is": 0.1, "source": "section 3"}]


def test_compatibility_names_the_fewer_of_what_works_and_what_does_not() -> None:
    works = [Answer("kd", "vit", student) for student in ("vit", "resnet", "mixer")]
    fails = [Answer("at", "vit", "vit", "no maps"), Answer("at", "vit", "resnet"), Answer("at", "vit", "mixer")]
    none = [Answer("fsp", "vit", "vit", "no maps")]
    text = render(compatibility_report([*works, *fails, *none]), "markdown")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:5]]
    assert rows == [["kd", "all"], ["at", "all but vit"], ["fsp", "none"]]
    assert text.endswith("\n\n- at: no maps\n- fsp: no maps")
    assert render(compatibility_report(works), "csv").splitlines()[1] == "kd,vit,vit,"
