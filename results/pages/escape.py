"""Texts in forms where some characters do something: names and errors come from users."""

from __future__ import annotations

import re

LATEX = {char: f"\\{char}" for char in "_%&#${}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\^{}",
    "±": r"$\pm$",
    "<": "$<$",
    "→": r"$\rightarrow$",
}


def escaped(text: str) -> str:
    """A text as LaTeX prints it."""
    return "".join(LATEX.get(char, char) for char in text.replace("->", "→"))


def plain(text: str) -> str:
    """A text without what a browser, shown markdown, would take for a tag."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)


def marked(text: str, first: str, others: str) -> str:
    """A text whose lines begin with marks, so that in a comment none is a command."""
    return first + re.sub(r"\r\n?|\n", f"\n{others}", text)
