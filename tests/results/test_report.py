"""Reports as text: what is special to a form is escaped there, and shown as it is elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kdbench.bench.errors import InputError
from kdbench.results.pages.escape import escaped
from kdbench.results.pages.pictures import check_picture
from kdbench.results.pages.report import Block, Column, Report, Sheet, forms_of, render, rows_of, with_columns
from tests.conftest import Figure

COLUMNS = Column("method", left=True), Column("accuracy")
ROWS = [["a*b [c]", "90.0 ± 1.0"], ["d_e*f", "<80 %"]]
BLOCK = Block("toy: large -> small", COLUMNS, ROWS, frozenset({0}), remarks=["d_e: failed: [f] :x:"])
SHEET = Sheet(["name", "value", "half_width"], [{"name": "a, b", "value": 0.5}, {"name": "c", "value": float("nan")}])


def report(*blocks: Block, notes: tuple[str, ...] = ("one", "two"), tight: bool = False) -> Report:
    return Report("toy", "toy", blocks=blocks, notes=notes, tight=tight)


def test_terminal_shows_texts_and_remarks_as_they_are() -> None:
    lines = render(report(BLOCK, notes=("100 [g]",))).splitlines()
    assert lines[0] == "toy: large -> small" and lines[-3:] == ["d_e: failed: [f] :x:", "", "100 [g]"]
    assert [line.split() for line in lines[-6:-4]] == [["a*b", "[c]", "90.0", "±", "1.0"], ["d_e*f", "<80", "%"]]
    tight = render(report(BLOCK, notes=(), tight=True)).splitlines()
    assert max(map(len, tight[3:5])) < max(map(len, lines[3:5]))


def test_terminal_leaves_out_columns_for_which_it_has_no_room() -> None:
    columns = (*COLUMNS, Column("source", left=True, terminal=False))
    block = Block("", columns, [["kd", "90.0", "page 7"]])
    assert "page 7" not in render(report(block)) and "90.0" in render(report(block))
    assert "page 7" in render(report(block), "markdown") and "page 7" in render(report(block), "latex")


def test_terminal_folds_long_texts_of_columns_that_wrap() -> None:
    text = "a_name_that_is_longer_than_the_terminal"
    wrapped = Block("", (Column("name", left=True, wraps=True),), [[text]])
    lines = render(report(wrapped, notes=()), width=20).splitlines()
    assert all(len(line) <= 20 for line in lines) and "".join(line.strip() for line in lines[3:]) == text


def wide(*names: str, needed: tuple[str, ...] = (), rows: int = 2) -> Block:
    columns = [Column(name, left=not index, needed=name in needed) for index, name in enumerate(names)]
    return Block("toy", columns, [[f"{name} {row}" for name in names] for row in range(rows)])


def test_terminal_too_narrow_for_all_columns_leaves_out_some_and_says_which_and_how_to_see_them() -> None:
    names = ("method", "accuracy", "over student", "agreement", "parameters", "seconds")
    page = report(wide(*names, needed=("seconds",)), notes=())
    lines = render(page, width=58).splitlines()
    assert " ".join(lines[2].split()) == "method accuracy over student seconds"
    assert [" ".join(line.split()) for line in lines[4:6]] == [
        " ".join(f"{name} {row}" for name in ("method", "accuracy", "over student", "seconds")) for row in (0, 1)
    ]
    left_out = "Left out, as the terminal is narrow: agreement, parameters."
    end = " ".join(" ".join(lines[-4:]).split())
    assert end.endswith(f"{left_out} --columns NAME,NAME or --format markdown shows them.")
    assert all(len(line) <= 58 for line in lines)
    assert "agreement" not in render(with_columns(page, ["method", "seconds"]), width=58)
    assert "--format csv" in render(replace(page, sheet=SHEET), width=58)
    assert "Left out" not in render(page, width=100) and "Left out" not in render(page, "markdown", width=20)


def test_columns_that_wrap_share_the_room_and_break_between_words() -> None:
    columns = (Column("id", left=True), Column("searched hyperparameters", left=True, wraps=True))
    block = Block("", columns, [["a_long_name", "temperature (4.0), soft_weight (5.0), cosine_weight (1.0)"]])
    lines = render(report(block, notes=()), width=40).splitlines()
    after = next(number for number, line in enumerate(lines) if "──" in line) + 1
    words = [word for line in lines[after:] for word in line.removeprefix("  a_long_name").split()]
    assert " ".join(words) == "temperature (4.0), soft_weight (5.0), cosine_weight (1.0)"
    assert all(len(line) <= 40 for line in lines)


def test_lines_of_a_page_are_broken_between_words_on_a_terminal_alone() -> None:
    page = Report("toy", "toy", text=["  status: " + "word " * 10, "one\ntwo"])
    assert render(page, width=40).splitlines() == [
        "  status: word word word word word word",
        "    word word word word",
        "one",
        "two",
    ]
    assert render(page) == "\n".join(page.text)


def test_columns_that_are_asked_for_are_those_of_every_table_that_has_them() -> None:
    ranks = Block("ranks", (Column("method"), Column("rank")), [["kd", "1"]])
    page = with_columns(report(BLOCK, ranks), ["accuracy"])
    assert [block.title for block in page.blocks] == [BLOCK.title]
    page = with_columns(report(BLOCK, ranks), ["rank", "method"])
    assert [[column.name for column in block.columns] for block in page.blocks] == [["method"], ["rank", "method"]]


def test_markdown_escapes_stars_and_has_one_text_of_a_row_in_bold() -> None:
    text = render(report(BLOCK, BLOCK), "markdown")
    assert text.count("**toy: large -> small**\n\n| method   |") == 2 and text.endswith(":x:\n\none\ntwo")
    assert r"| a\*b [c] | **90.0 ± 1.0** |" in text and r"| d\_e" not in text
    assert r"a\|b" in render(report(Block("", COLUMNS, [["a|b", ""]])), "markdown")
    assert render(replace(report(BLOCK), bullets=True), "markdown").endswith("\n\n- one\n- two")


def test_latex_escapes_every_text_in_bold_or_not() -> None:
    text = render(report(BLOCK), "latex")
    assert r"a*b [c] & \textbf{90.0 $\pm$ 1.0} \\" in text and r"d\_e*f & $<$80 \% \\" in text
    assert r"\caption{toy: large $\rightarrow$ small}" in text and r"\begin{tabular}{lr}" in text
    assert text.endswith("% d_e: failed: [f] :x:\n\n% one\n% two")
    assert render(report(BLOCK, notes=("one\ntwo",)), "latex").endswith("\n\n% one\n% two")
    assert escaped("a^2 & #1 $") == r"a\^{}2 \& \#1 \$"


def test_csv_has_every_number_and_empty_cells_for_none() -> None:
    text = render(replace(report(BLOCK), sheet=SHEET), "csv")
    assert text == 'name,value,half_width\n"a, b",0.5,\nc,,'


def test_lines_alone_are_the_same_in_a_terminal_and_in_markdown() -> None:
    lines = Report("toy", "toy", text=["one " * 60, "[two]"])
    assert render(lines) == render(lines, "markdown") == "\n".join(lines.text)


def test_forms_are_those_that_a_report_has_something_for() -> None:
    assert forms_of(report(BLOCK)) == ("terminal", "markdown", "latex")
    assert forms_of(replace(report(BLOCK), sheet=SHEET)) == ("terminal", "markdown", "latex", "csv")
    assert forms_of(Report("toy", "toy", text=["one"])) == ("terminal", "markdown")
    with pytest.raises(InputError, match="unknown format 'csv': there are latex, markdown, terminal"):
        render(report(BLOCK), "csv")
    with pytest.raises(InputError, match="unknown format 'markdwn': did you mean markdown"):
        render(report(BLOCK), "markdwn")
    with pytest.raises(InputError, match="unknown picture format 'jpg': did you mean png"):
        check_picture("jpg")


def test_rows_are_those_of_all_tables_of_one_kind() -> None:
    ranks = Block("ranks", (Column("method"), Column("rank")), [["kd", "1"]])
    rows = rows_of(report(BLOCK, ranks, replace(BLOCK, title="toy: big -> tiny")))
    assert rows["columns"] == ["table", "method", "accuracy"]
    assert [row[:2] for row in rows["data"]] == [
        ["toy: large -> small", "a*b [c]"],
        ["toy: large -> small", "d_e*f"],
        ["toy: big -> tiny", "a*b [c]"],
        ["toy: big -> tiny", "d_e*f"],
    ]


@pytest.mark.fault("20")
def test_hostile_texts_are_no_tags_columns_or_commands(figure: Figure) -> None:
    hostile = "<img src=x onerror=alert(1)> | \\input{/etc/passwd} $1$\n\\input{x}"
    block = Block(hostile, COLUMNS, [[hostile, "1"]], remarks=[hostile])
    text = render(report(block, notes=(hostile,)), "markdown")
    assert "<img" not in text and text.count("&lt;img") == 4
    assert all(line.count("|") - line.count("\\|") in (0, 3) for line in text.splitlines() if line.startswith("|"))
    latex = render(report(block, notes=(hostile,)), "latex")
    commands = [line for line in latex.splitlines() if "\\input" in line and not line.startswith("%")]
    assert commands == [] and "textbackslash" in latex
    figure("markdown and LaTeX: 0 tags, 0 further columns, 0 commands")
