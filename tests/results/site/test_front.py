"""A search for a student on the site: its front as a chart and a table above the board."""

from __future__ import annotations

from pathlib import Path

import altair as alt
import pytest

from kdbench.results.analysis.front import front_of
from kdbench.results.site import build as site
from kdbench.results.site.build import build
from kdbench.results.site.facts import SuiteFacts
from kdbench.results.site.front_chart import front_chart
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.search import Candidate, Limits, Search, keep_search
from tests.results.conftest import Finish, outcome, replanned

SMALL, LARGE = (
    Candidate(name=name, parameters=count, latency_ms=ms, latency_low=ms, latency_high=ms, latency_quiet=quiet)
    for name, count, ms, quiet in (("small", 1000, 0.5, True), ("large", 9000, 2.0, False))
)


@pytest.fixture(autouse=True)
def _no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundling the plotting library takes seconds, and no page here is drawn."""
    monkeypatch.setattr(site, "_assets", lambda: [("site.js", b"")])


@pytest.fixture
def searched(plan: SweepPlan, store: RunStore, finish: Finish) -> SweepPlan:
    """Two trials of the small student and one of the large, of which two are on the front; one was trained again."""
    pairs = [{"teacher": "large", "student": name, "methods": ["kd"]} for name in ("small", "large")]
    plan = replanned(plan, store, pairs=pairs, methods=["kd"])
    for number, (student, worth) in enumerate((("small", 0.6), ("small", 0.5), ("large", 0.8))):
        finish(f"trial-{number}", outcome(0.1, validation=worth))
        plan.add(Planned(f"large -> {student}", "kd", "trial", number, f"trial-{number}", {"temperature": number + 1}))
    for seed, score in ((1, 0.7), (2, 0.74)):
        finish(f"seed-{seed}", outcome(score))
        plan.add(Planned("large -> small", "kd", "seed", seed, f"seed-{seed}", {"temperature": 1}))
    limits = Limits(students=("small", "large"), latency_ms=5.0)
    keep_search(plan.folder, Search(limits=limits, candidates=(SMALL, LARGE), left_out=("huge takes too long.",)))
    return plan


def test_front_is_above_the_board(searched: SweepPlan, store: RunStore, tmp_path: Path) -> None:
    build([SuiteFacts(searched)], store, tmp_path / "site")
    text = (tmp_path / "site/toy/index.html").read_text()
    assert text.index('id="front"') < text.index('id="board"') and 'href="#front"' in text
    front = text[text.index('id="front"') : text.index('id="board"')]
    assert front.index("small</th>") < front.index("large</th>"), "cheapest first"
    assert "72.0 ±" in front and "not measured" in front and "huge takes too long." in front and "seed-1" in front
    assert "of 3 trials and 1 students of the front" in front


def test_chart_draws_every_trial_and_the_front_with_its_interval(searched: SweepPlan, store: RunStore) -> None:
    search = Search(limits=Limits(students=("small",)), candidates=(SMALL, LARGE))
    drawn = front_chart(front_of(searched, store, search))
    assert drawn
    alt.Chart.from_dict({**drawn, "$schema": alt.SCHEMA_URL})
    (rows,) = drawn["datasets"].values()
    assert [(row["student"], row["cost"]) for row in rows] == [
        ("small", 1000),
        ("small", 1000),
        ("large", 9000),
        ("small", 1000),
    ]
    tested = rows[-1]
    assert tested["score"] == pytest.approx(72.0) and tested["low"] < 72 < tested["high"]


def test_suite_that_is_no_search_has_no_front(full: SweepPlan, store: RunStore, tmp_path: Path) -> None:
    build([SuiteFacts(full)], store, tmp_path / "site")
    assert "Pareto" not in (tmp_path / "site/toy/index.html").read_text()
