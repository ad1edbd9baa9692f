"""What tuning tried, and how seeds went, of a store made by hand."""

from __future__ import annotations

from kdbench.results.analysis.training import confusion, curve, seeds_of
from kdbench.results.analysis.tried import tried
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from tests.results.conftest import SUITE, Fill, Finish, outcome, replanned

PLACE = ("large -> small", "kd")


def test_trials_are_told_with_their_worth_and_which_was_chosen(
    plan: SweepPlan, store: RunStore, fill: Fill, finish: Finish
) -> None:
    fill("kd", [0.8])
    finish("kd-worse", outcome(0.0, validation=0.4))
    finish("kd-bad", outcome(0.0, status="diverged", reason="nan"))
    plan.add(Planned(PLACE[0], "kd", "trial", 1, "kd-worse", {"lr": 0.2}))
    plan.add(Planned(PLACE[0], "kd", "trial", 2, "kd-bad", {"lr": 9.0}))
    plan.add(Planned(PLACE[0], "kd", "trial", 3, "never-begun", {"lr": 0.3}))
    found = tried(plan, store)[PLACE]
    assert [(each.number, each.status, each.score, each.chosen) for each in found] == [
        (0, "complete", 0.5, True),
        (1, "complete", 0.4, False),
        (2, "no result", None, False),
    ]


def test_trials_of_the_longer_tuning_come_first_where_the_store_has_it(
    plan: SweepPlan, store: RunStore, fill: Fill, finish: Finish
) -> None:
    fill("kd", [0.8])
    plan = replanned(plan, store, tuning={"trials": 1, "warm_from": "longer", "warm_trials": 1})
    assert [each.suite for each in tried(plan, store)[PLACE]] == ["toy@abcd1234"]
    longer = SweepPlan.create(store.root, "longer", "ffff0000", SUITE)
    finish("long", outcome(0.0, validation=0.7))
    longer.add(Planned(*PLACE, "trial", 0, "long", {"lr": 0.1}))
    assert [(each.suite, each.score) for each in tried(plan, store)[PLACE]] == [
        ("longer@ffff0000", 0.7),
        ("toy@abcd1234", 0.5),
    ]


def test_curves_and_confusions_are_of_all_finished_seeds(full: SweepPlan, store: RunStore) -> None:
    runs = seeds_of(full, store)[PLACE]
    line = curve(runs)
    assert list(line) == [1, 2, 3] and (line[3].mean, line[3].count) == (0.5, 3)
    found = confusion(runs, store)
    assert found and found.student == [[27, 3], [6, 24]] and (found.seeds, found.teacher) == (3, [])
    assert curve([]) == {} and confusion([], store) is None


def test_teachers_matrix_is_that_of_the_runs_that_trained_them(
    full: SweepPlan, store: RunStore, finish: Finish
) -> None:
    finish("0123", outcome(0.9))  # what every run made by hand names as its teacher
    found = confusion(seeds_of(full, store)[PLACE], store)
    assert found and (found.teacher, found.teachers) == ([[9, 1], [2, 8]], 1)
