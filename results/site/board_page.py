"""The page of a board: its table, what rows cost, whether they differ, and how they learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdbench.bench.errors import InputError
from kdbench.results.analysis.board import Board
from kdbench.results.analysis.comparison import Compared, compare
from kdbench.results.analysis.front import front_of
from kdbench.results.pages.board import board_report
from kdbench.results.pages.comparison import comparison_report
from kdbench.results.pages.front import front_report
from kdbench.results.site import charts
from kdbench.results.site.card import Found
from kdbench.results.site.charts import Spec
from kdbench.results.site.facts import RowFacts
from kdbench.results.site.front_chart import front_chart
from kdbench.results.site.tables import board_table
from kdbench.results.store.plan import SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.search import kept_search

POINTS = 25
"""Points of a learning curve."""


def board_page(
    plan: SweepPlan,
    board: Board,
    rows: Mapping[str, RowFacts],
    store: RunStore,
    found: Found,
    links: Mapping[str, str],
) -> dict[str, Any]:
    """What the page shows, by name."""
    report, compared, why = board_report(board), None, ""
    search = kept_search(plan.folder)
    front = front_of(plan, store, search) if search else None
    try:
        compared = compare(plan, store)
    except InputError as error:
        why = str(error)
    return {
        "board": board,
        "front": front_report(front) if front else None,
        "front_chart": front_chart(front) if front else None,
        "data": plan.suite.data,
        "table": board_table(board, rows, plan.suite.data.name, links),
        "notes": report.notes,
        "remarks": [(block.title, list(block.remarks)) for block in report.blocks if block.remarks],
        "costs": {pair: _costs(board, pair) for pair in plan.pairs()},
        "curves": {pair: chart for pair in plan.pairs() if (chart := _curves(board, pair, found))},
        "ranks": _ranks(compared) if compared else [],
        "unranked": [each.reason for each in compared.rankings if each.reason] if compared else [why],
    }


def _costs(board: Board, pair: str) -> list[tuple[str, Spec]]:
    """The charts of a pair whose rows have a score, with what is said below each."""
    if not any(row.score for row in board.rows if row.pair == pair):
        return []
    shown = [
        (
            "Training time of all trials and seeds, without teachers'. Named rows: no other is as good for as little.",
            charts.against(board, pair, "seconds", "seconds of training"),
        )
    ]
    if any(row.updates for row in board.rows if row.pair == pair):
        text = "Updates of all networks that one run takes, its teachers' and peers' among them."
        shown.append((text, charts.against(board, pair, "updates", "updates")))
    return [*shown, ("Size of what is deployed, beside the teacher.", charts.against_size(board, pair))]


def _curves(board: Board, pair: str, found: Found) -> Spec | None:
    lines = {
        row.method: line for row in board.rows if row.pair == pair and (line := found.curves.get((pair, row.method)))
    }
    longest = max((max(line) for line in lines.values()), default=0)
    return charts.curves(lines, board.metric, bands=False, stride=max(1, longest // POINTS)) if lines else None


def _ranks(compared: Compared) -> list[tuple[str, Spec, list[str]]]:
    """The title of each ranking, its chart, and its tests in words."""
    ranked = [each for each in compared.rankings if each.ranking]
    blocks = [block for block in comparison_report(compared).blocks if block.columns[1].name == "mean rank"]
    return [
        (block.title, charts.ranks(each.ranking, compared.noun), list(block.remarks))
        for each, block in zip(ranked, blocks, strict=True)
        if each.ranking
    ]
