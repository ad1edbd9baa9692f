"""What `kdbench check` has found, as a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from results.pages.report import Block, Column, Report


@dataclass(frozen=True)
class CheckFacts:
    """A check of a method's contract."""

    check: str
    problem: str
    """What to change; empty if nothing."""


def contract_report(method: str, checks: Sequence[CheckFacts]) -> Report:
    """A line for each check, and what to change.

    Args:
        method: its id.
        checks: in their order.
    """
    columns = [Column(name, left=True, wraps=name == "what to change") for name in ("check", "", "what to change")]
    rows = [[each.check, "FAILS" if each.problem else "passes", each.problem] for each in checks]
    broken = sum(bool(each.problem) for each in checks)
    found = f"{broken} of {len(rows)} checks fail" if broken else f"all {len(rows)} checks pass"
    values = {
        "method": method,
        "passes": not broken,
        "checks": [{"check": each.check, "passes": not each.problem, "problem": each.problem} for each in checks],
    }
    bold = frozenset(index for index, each in enumerate(checks) if each.problem)
    return Report(
        name="check",
        title=method,
        blocks=[Block(f"{method}: {found}", columns, rows, bold)],
        values=values,
    )
