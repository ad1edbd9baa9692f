"""Which methods work on which pairs, as a table: a row for each method, a column for each teacher's family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from bench.errors import unknown

FORMATS = ("terminal", "markdown")


class Answer(Protocol):
    """Whether a method works on a pair of families, and why not."""

    @property
    def method(self) -> str:
        """By id."""

    @property
    def teacher(self) -> str:
        """A family."""

    @property
    def student(self) -> str:
        """A family."""

    @property
    def reason(self) -> str:
        """Empty if it works."""


def compatibility_page(answers: Sequence[Answer], form: str = "terminal") -> str:
    """The students that each method can train under each teacher, and the reasons for the others.

    Args:
        answers: of every method and pair that was tried.
        form: terminal or markdown.

    Raises:
        InputError: for another form.
    """
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    teachers = list(dict.fromkeys(answer.teacher for answer in answers))
    methods = list(dict.fromkeys(answer.method for answer in answers))
    rows = [
        [method, *(_cell([a for a in answers if (a.method, a.teacher) == (method, teacher)]) for teacher in teachers)]
        for method in methods
    ]
    columns = ["method", *(f"from {teacher}" for teacher in teachers)]
    reasons = [
        f"- {method}: {reason}" for method, reason in dict.fromkeys((a.method, a.reason) for a in answers) if reason
    ]
    if form == "markdown":
        return "\n".join([pd.DataFrame(rows, columns=columns).to_markdown(index=False), "", *reasons])
    table = Table(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    console = Console()
    with console.capture() as capture:
        console.print(table)
        for reason in reasons:
            console.print(reason, highlight=False, markup=False)
    return capture.get().rstrip()


def _cell(answers: Sequence[Answer]) -> str:
    """The families that work, or those that do not if these are fewer."""
    works = [answer.student for answer in answers if not answer.reason]
    fails = [answer.student for answer in answers if answer.reason]
    if not fails:
        return "all"
    if not works:
        return "none"
    return ", ".join(works) if len(works) <= len(fails) else "all but " + ", ".join(fails)
