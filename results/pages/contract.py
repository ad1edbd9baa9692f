"""Checks as a report: of a method's contract, or of an entry of a leaderboard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdbench.results.pages.report import Block, Column, Report


@dataclass(frozen=True)
class CheckFacts:
    """A check, and what it has found."""

    check: str
    problem: str
    """What to change; empty if nothing."""


def checks_report(subject: str, checks: Sequence[CheckFacts], kind: str) -> Report:
    """A line for each check, and what to change.

    Args:
        subject: what was checked, as a method's id.
        checks: in their order.
        kind: of what was checked: method or entry.
    """
    last = "what to change" if kind == "method" else "why"
    columns = [Column(name, left=True, wraps=name == last) for name in ("check", "", last)]
    rows = [[each.check, "FAILS" if each.problem else "passes", each.problem] for each in checks]
    broken = sum(bool(each.problem) for each in checks)
    found = f"{broken} of {len(rows)} checks fail" if broken else f"all {len(rows)} checks pass"
    values = {
        kind: subject,
        "passes": not broken,
        "checks": [{"check": each.check, "passes": not each.problem, "problem": each.problem} for each in checks],
    }
    bold = frozenset(index for index, each in enumerate(checks) if each.problem)
    return Report(
        name="check",
        title=subject,
        blocks=[Block(f"{subject}: {found}", columns, rows, bold)],
        values=values,
    )
