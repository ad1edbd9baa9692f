"""Which methods work on which pairs, as a report: a row for each method, a column for each teacher's family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kdbench.results.pages.report import Block, Column, Report, Sheet


class Answer(Protocol):
    """Whether a method works on a pair of families of networks, and why not."""

    @property
    def method(self) -> str:
        """The method's id."""

    @property
    def teacher(self) -> str:
        """The teacher's family."""

    @property
    def student(self) -> str:
        """The student's family."""

    @property
    def reason(self) -> str:
        """Why it does not work; empty if it does."""


def compatibility_report(answers: Sequence[Answer]) -> Report:
    """The students that each method can train under each teacher, and the reasons for the others."""
    teachers = list(dict.fromkeys(answer.teacher for answer in answers))
    rows = [
        [method, *(_students(answers, method, teacher) for teacher in teachers)]
        for method in dict.fromkeys(answer.method for answer in answers)
    ]
    columns = [Column("method", left=True), *(Column(f"from {name}", left=True, wraps=True) for name in teachers)]
    reasons = dict.fromkeys((answer.method, answer.reason) for answer in answers if answer.reason)
    names = ("method", "teacher", "student", "reason")
    values = [{name: getattr(answer, name) for name in names} for answer in answers]
    return Report(
        name="compatibility",
        title="",
        blocks=[Block("", columns, rows)],
        notes=[f"{method}: {reason}" for method, reason in reasons],
        sheet=Sheet(names, values),
        values={"answers": values},
        bullets=True,
    )


def _students(answers: Sequence[Answer], method: str, teacher: str) -> str:
    """The families of students that work, or those that do not if these are fewer."""
    mine = [answer for answer in answers if (answer.method, answer.teacher) == (method, teacher)]
    works = [answer.student for answer in mine if not answer.reason]
    fails = [answer.student for answer in mine if answer.reason]
    if not fails:
        return "all"
    if not works:
        return "none"
    return ", ".join(works) if len(works) <= len(fails) else "all but " + ", ".join(fails)
