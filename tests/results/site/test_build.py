"""A site of a store made by hand: what is on its pages, also of rows that failed and of names that mean harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.results.analysis.leaderboard import leaderboard
from kdbench.results.pages.methods import HyperparameterFacts, MethodFacts, PaperFacts
from kdbench.results.site import build as site
from kdbench.results.site.build import build
from kdbench.results.site.facts import Importance, RowFacts, Searched, SuiteFacts, TuningFacts
from kdbench.results.site.tables import board_table
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from tests.conftest import Figure
from tests.results.conftest import Fill, Finish, outcome, replanned

HOSTILE = "<script>alert(1)</script>"
PAIR = "large -> small"


def facts(name: str, year: int = 2015, **tuning: TuningFacts) -> RowFacts:
    paper = PaperFacts(f"Paper of {name}", "Ada, Bob", year, "https://example.org")
    method = MethodFacts(
        name, paper, "response", [], True, [HyperparameterFacts("lr", 0.5, "")], "Head.", f"About {HOSTILE}.", r"a = b"
    )
    return RowFacts(method, {}, {PAIR: tuning.get("tuning", TuningFacts())})


@pytest.fixture(autouse=True)
def _no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundling the plotting library takes seconds, and no page here is drawn."""
    monkeypatch.setattr(site, "_assets", lambda: [("site.js", b"")])


def test_pages_of_a_suite_are_an_index_a_board_and_a_card_for_each_row(
    full: SweepPlan, store: RunStore, tmp_path: Path
) -> None:
    rows = {name: facts(name) for name in ("student", "kd", "sp")}
    made = build([SuiteFacts(full, rows)], store, tmp_path / "site")
    assert [str(path.relative_to(tmp_path / "site")) for path in made] == [
        "index.html",
        *(f"toy/{name}.html" for name in ("index", "kd", "sp", "student")),
    ]
    board = (tmp_path / "site/toy/index.html").read_text()
    assert '<th scope="row"><a href="kd.html">kd</a></th>' in board and "<strong>86.0 ± 2.5</strong>" in board
    card = (tmp_path / "site/toy/kd.html").read_text()
    assert "Paper of kd" in card and "<math" in card and "85.9" not in card
    assert "toy@abcd1234: 1 trials (1 complete), the best 50.0 %." in card
    assert "<caption>student, 3 seed(s): 85.0 % right</caption>" in card


@pytest.mark.fault("20")
def test_hostile_names_are_text_everywhere(
    plan: SweepPlan, store: RunStore, fill: Fill, finish: Finish, tmp_path: Path, figure: Figure
) -> None:
    plan = replanned(plan, store, methods=["student", HOSTILE], about=HOSTILE)
    fill("student", [0.8, 0.82, 0.81])
    for number, end in enumerate(
        [outcome(0.8), outcome(0.9), outcome(0.0, status="diverged", reason=HOSTILE)], start=1
    ):
        finish(f"bad-{number}", end)
        plan.add(Planned(PAIR, HOSTILE, "seed", number, f"bad-{number}", {HOSTILE: HOSTILE}))
    for number, value in enumerate([HOSTILE, "b"]):
        finish(f"trial-{number}", outcome(0.0, validation=0.1 * number))
        plan.add(Planned(PAIR, HOSTILE, "trial", number, f"trial-{number}", {HOSTILE: value}))
    made = build([SuiteFacts(plan, {HOSTILE: facts(HOSTILE)})], store, tmp_path)
    for page in made:
        assert tmp_path in page.parents and HOSTILE not in (text := page.read_text())
        assert text.count("<script") == text.count("</script>")
    board, card = made[1].read_text(), made[2].read_text()
    figure(f"{len(made)} pages of a site: 0 of its scripts are not ours, no path leaves the folder")
    assert "&lt;script&gt;" in board and "\\u003cscript\\u003e" in board and "\\u003cscript\\u003e" in card


def test_importance_is_drawn_or_it_is_said_how_many_trials_there_were(
    full: SweepPlan, store: RunStore, tmp_path: Path
) -> None:
    few = TuningFacts([Searched("lr", 0.1, 1.0)], [Importance("toy@abcd1234", 4, 10, {})])
    enough = TuningFacts([Searched("lr", 0.1, 1.0)], [Importance("toy@abcd1234", 12, 10, {"lr": 1.0})])
    rows = {"kd": facts("kd", tuning=few), "sp": facts("sp", tuning=enough), "student": facts("student")}
    build([SuiteFacts(full, rows)], store, tmp_path)
    said = (tmp_path / "toy/kd.html").read_text()
    assert "4 complete trials; importance is not shown, as it takes 10 complete trials." in said
    drawn = (tmp_path / "toy/sp.html").read_text()
    assert "fANOVA over 12 complete trials." in drawn and "importance of lr" in drawn
    assert "0.1 to 1" in drawn


def test_filters_are_those_that_tell_rows_apart(full: SweepPlan, store: RunStore) -> None:
    board = leaderboard(full, store)
    links = {row.method: f"{row.method}.html" for row in board.rows}
    rows = {"student": facts("student", 1986), "kd": facts("kd", 2015), "sp": facts("sp", 2019)}
    table = board_table(board, rows, "digits", links)
    assert table.choices() == {"year": ["1986", "2015", "2019"]}
    assert [line.cells[0].text for line in table.lines] == ["kd", "sp", "student"]
    assert {tuple(line.tags) for line in table.lines} == {("data", "pair", "given", "kind", "year")}


def test_suite_that_has_just_begun_is_shown_as_it_is(plan: SweepPlan, store: RunStore, tmp_path: Path) -> None:
    build([SuiteFacts(plan)], store, tmp_path)
    board = (tmp_path / "toy/index.html").read_text()
    assert board.count(">pending</td>") == 3 and "No seed is finished yet." in board
    assert "file is not at hand" in (tmp_path / "toy/kd.html").read_text()
