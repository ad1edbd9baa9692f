"""The runs of a store as a report: a line for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from kdbench.results.analysis.runs import RunFacts
from kdbench.results.pages.numbers import printed
from kdbench.results.pages.report import Block, Column, Report, Sheet

SHOWN = 8
"""Characters of a key that are shown."""
COLUMNS = (
    *(Column(name, left=True, needed=True) for name in ("key", "method", "run", "state")),
    Column("score", needed=True),
    Column("when", left=True, needed=True),
    *(Column(name, left=True, wraps=name == "pair") for name in ("suite", "data", "pair")),
)


def runs_report(runs: Sequence[RunFacts], limit: int = 0) -> Report:
    """A line for each run.

    Args:
        runs: in the order of the report.
        limit: the largest number of runs that are shown; 0 is all.
    """
    shown = runs[: limit or None]
    notes = [f"{len(shown)} of {len(runs)} runs." + (" --limit 0 shows all." if len(shown) < len(runs) else "")]
    notes.append("score: of the last epoch, on the test part; v: on validation. One run in full: kdbench show KEY.")
    values = [_values(run) for run in shown]
    return Report(
        name="runs",
        title="runs",
        blocks=[Block("", COLUMNS, [_cells(run) for run in shown])] if shown else [],
        notes=notes,
        sheet=Sheet(list(values[0]) if values else ["key"], values),
        values={"found": len(runs), "runs": values},
        tight=True,
    )


def _cells(run: RunFacts) -> list[str]:
    """A run as texts, by COLUMNS."""
    score = "" if run.score is None or run.metric is None else printed(run.score, run.metric)
    return [
        run.key[:SHOWN],
        run.method,
        f"seed {run.number}" if run.phase == "run" else f"{run.phase} {run.number}",
        run.state,
        f"{score} v" if score and run.part == "validation" else score,
        datetime.fromtimestamp(run.ended).strftime("%Y-%m-%d %H:%M") if run.ended else "",
        run.suite,
        run.data,
        run.pair,
    ]


def _values(run: RunFacts) -> dict[str, Any]:
    """A run as JSON values."""
    return asdict(run) | {"metric": run.metric.name if run.metric else None}
