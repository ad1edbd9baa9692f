"""What users wrote, as HTML: it is shown, and does nothing."""

from __future__ import annotations

import json

from kdbench.results.site.build import slug
from kdbench.results.site.render import chart, equation, prose

HOSTILE = "</script><script>alert(1)</script>"


def test_chart_ends_no_script_and_is_read_as_it_was() -> None:
    spec = {
        "description": HOSTILE,
        "datasets": {"data-1": [{"row": HOSTILE, "x": 1.5}, {"row": "b"}]},
        "data": "data-1",
    }
    text = chart(spec)
    assert "<" not in text and "&" not in text
    read = json.loads(text)
    assert read["description"] == HOSTILE and read["data"] == "d0"
    assert read["datasets"] == {"d0": [["row", "x"], [HOSTILE, 1.5], ["b", None]]}


def test_docstring_has_paragraphs_lists_and_code() -> None:
    text = prose("Loss = a * `b`.\n\nChoices:\n- one\n  line\n- <two>\n")
    assert text == (
        "<p>Loss = a * <code>b</code>.</p>\n<p>Choices:</p>\n<ul><li>one line</li><li>&lt;two&gt;</li></ul>"
    )


def test_equation_is_mathml_a_line_each() -> None:
    text = equation("a_1 = \\text{hard\\_weight}\nb")
    assert text.count("<math ") == 2 and "<msub>" in text and "<mtext>hard_weight</mtext>" in text


def test_equation_that_is_none_stays_text() -> None:
    for latex in (r"\text{<img src=x onerror=alert(1)>}", r"\href{javascript:alert(1)}{x}", "\\frac{", HOSTILE):
        assert not [bad for bad in ("<img", "<script", "href=") if bad in equation(latex)]
    assert equation(r"\text{<img>}") == r"<code>\text{&lt;img&gt;}</code>"


def test_names_of_files_are_safe_and_differ() -> None:
    assert slug("kd+0.5-at") == "kd+0.5-at" and slug("digits@072be5f2").startswith("digits-072be5f2-")
    assert "/" not in slug("../../etc/passwd") and not slug("../x").startswith(".")
    assert slug("index") != "index" and slug("a b") != slug("a-b") and slug("<") != slug(">")
