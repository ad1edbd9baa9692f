"""The body of `kdbench check`."""

from __future__ import annotations

from rich.console import Console
from rich.progress import track

from kdbench.bench.configure import configure
from kdbench.bench.contract.checks import CHECKS, check
from kdbench.bench.outside import method_id
from kdbench.results.pages.contract import CheckFacts, checks_report
from kdbench.results.pages.report import Report


def report_of_check(name: str) -> Report:
    """Checks a method by what a user calls it.

    Raises:
        InputError: if there is no such method, or its file cannot be executed.
    """
    found = method_id(name)
    configure(found, {})
    console = Console(stderr=True)
    verdicts = track(check(found), found, len(CHECKS), console=console, disable=not console.is_terminal)
    return checks_report(found, [CheckFacts(each.check, each.problem) for each in verdicts], "method")
