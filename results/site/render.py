"""Text, equations, tables and charts as HTML: everything is escaped that this package did not write itself."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

MATHML = "{http://www.w3.org/1998/Math/MathML}"
ELEMENTS = frozenset(
    f"{MATHML}{name}"
    for name in ("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mfrac", "msqrt", "mroot", "mstyle", "mpadded")
) | frozenset(
    f"{MATHML}{name}"
    for name in ("msub", "msup", "msubsup", "munder", "mover", "munderover", "mtable", "mtr", "mtd", "menclose")
)
"""What an equation is made of."""


@functools.cache
def environment() -> Environment:
    """The templates, which escape all that they are given."""
    made = Environment(
        loader=PackageLoader("kdbench.results.site"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"prose": prose, "equation": equation, "chart": chart}
    return made


def page(template: str, **values: Any) -> str:
    """A page of the site."""
    return environment().get_template(template).render(**values)


def chart(spec: Mapping[str, Any]) -> Markup:
    """A chart as the content of a script element, which no text in it can end; the page's script reads it.

    Its data are packed: the names of columns once, then rows of values.
    """
    sets = {name: _packed(rows) for name, rows in spec.get("datasets", {}).items()}
    text = json.dumps({**spec, "datasets": sets}, separators=(",", ":"), ensure_ascii=False)
    for number, name in enumerate(sets):
        text = text.replace(name, f"d{number}")
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _packed(rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [columns, *([row.get(name) for name in columns] for row in rows)]


def prose(text: str) -> Markup:
    """Paragraphs and lists of a docstring, `names` in the type of code."""
    blocks = []
    for paragraph in filter(str.strip, re.split(r"\n\s*\n", text)):
        first, *items = re.split(r"^\s*- ", paragraph, flags=re.MULTILINE)
        blocks += [Markup("<p>{}</p>").format(_coded(first))] if first.strip() else []
        if items:
            lines = Markup("").join(Markup("<li>{}</li>").format(_coded(item)) for item in items)
            blocks.append(Markup("<ul>{}</ul>").format(lines))
    return Markup("\n").join(blocks)


def _coded(text: str) -> Markup:
    """A text whose parts between backticks are code."""
    parts = " ".join(text.split()).split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else escape(part) for index, part in enumerate(parts)
    )


def equation(latex: str) -> Markup:
    """Lines of LaTeX as MathML; one that cannot be read stays as it is."""
    return Markup("\n").join(_line(line) for line in latex.splitlines() if line.strip())


def _line(latex: str) -> Markup:
    from latex2mathml.converter import convert

    plain = Markup("<code>{}</code>").format(latex)
    try:
        text = convert(latex, display="block").replace("\\_", "_")
        root = ElementTree.fromstring(text)
    except Exception:  # what the LaTeX of a method from outside makes it raise
        return plain
    own = all(each.tag in ELEMENTS and not _active(each) for each in root.iter())
    return Markup(text) if own else plain


def _active(element: ElementTree.Element) -> bool:
    """Whether an element links to something, or acts."""
    return any(name.startswith("on") or "href" in name or "style" in name for name in element.attrib)
