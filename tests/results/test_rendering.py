"""Tables as text: what is special to a form is escaped there, and shown as it is elsewhere."""

from __future__ import annotations

import pytest

from bench.errors import InputError
from results.pages.rendering import Block, Column, check_form, escaped, render_blocks

COLUMNS = Column("method", left=True), Column("accuracy")
ROWS = [["a*b [c]", "90.0 ± 1.0"], ["d_e*f", "<80 %"]]
BLOCK = Block("toy: large -> small", COLUMNS, ROWS, frozenset({0}), remarks=["d_e: failed: [f] :x:"])


def test_terminal_shows_cells_and_remarks_as_they_are() -> None:
    lines = render_blocks([BLOCK], ["100 [g]"], "terminal").splitlines()
    assert lines[0] == "toy: large -> small" and lines[-2:] == ["d_e: failed: [f] :x:", "100 [g]"]
    assert [line.split() for line in lines[-5:-3]] == [["a*b", "[c]", "90.0", "±", "1.0"], ["d_e*f", "<80", "%"]]
    tight = render_blocks([BLOCK], [], "terminal", tight=True).splitlines()
    assert max(map(len, tight[3:5])) < max(map(len, lines[3:5]))


def test_markdown_escapes_stars_and_has_one_cell_of_a_row_in_bold() -> None:
    text = render_blocks([BLOCK, BLOCK], ["one", "two"], "markdown")
    assert text.count("**toy: large -> small**\n\n| method   |") == 2 and text.endswith(":x:\n\none\ntwo")
    assert r"| a\*b [c] | **90.0 ± 1.0** |" in text and r"| d\_e" not in text
    assert render_blocks([BLOCK], ["one", "two"], "markdown", bullets=True).endswith("\n\n- one\n- two")


def test_latex_escapes_every_cell_in_bold_or_not() -> None:
    text = render_blocks([BLOCK], ["one", "two"], "latex")
    assert r"a*b [c] & \textbf{90.0 $\pm$ 1.0} \\" in text and r"d\_e*f & $<$80 \% \\" in text
    assert r"\caption{toy: large $\rightarrow$ small}" in text and r"\begin{tabular}{lr}" in text
    assert text.endswith("% d_e: failed: [f] :x:\n\n% one\n% two")
    assert escaped("a^2 & #1 $") == r"a\^{}2 \& \#1 \$"


def test_unknown_form_is_refused_with_the_known() -> None:
    with pytest.raises(InputError, match="unknown format 'pdf': there are csv, latex, markdown, terminal"):
        check_form("pdf")
