from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from kdbench.results.analysis.leaderboard import leaderboard
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.tracking.tracker import Tracker, metric_name
from tests.results.conftest import ERROR, SPEC, Fill, Finish, explained, outcome, replanned


@pytest.fixture(autouse=True)
def database(store: RunStore, mlflow_db: Path) -> None:
    shutil.copy(mlflow_db, store.root)


@pytest.fixture
def filled(plan: SweepPlan, fill: Fill) -> SweepPlan:
    fill("student", [0.80, 0.82])
    fill("kd", [0.85, 0.86])
    return plan


def sync(plan: SweepPlan, store: RunStore) -> Tracker:
    tracker = Tracker(store, "toy")
    for planned in plan.runs():
        tracker.run(planned)
    tracker.board(leaderboard(plan, store))
    return tracker


def runs(tracker: Tracker) -> list[Run]:
    return list(tracker.at.client.search_runs([tracker.at.id], max_results=1000))


def contents(tracker: Tracker) -> dict[str, object]:
    """All that is stored, without the ids that MLflow gives."""
    client: MlflowClient = tracker.at.client
    found: dict[str, object] = {}
    for run in runs(tracker):
        history = {
            name: [(m.step, m.value, m.timestamp) for m in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        tags = {name: value for name, value in run.data.tags.items() if name != "mlflow.parentRunId"}
        found[run.info.run_name or ""] = (run.data.params, history, tags, run.info.status)
    return found


def test_projection_nests_children_below_method_and_pair(filled: SweepPlan, store: RunStore) -> None:
    tracker = sync(filled, store)
    by_name = {run.info.run_name: run for run in runs(tracker)}
    parent = by_name["kd: large -> small"]
    children = [run for run in runs(tracker) if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.info.run_name or "" for run in children) == ["seed 1", "seed 2", "trial 0"]
    assert parent.data.metrics["test_accuracy"] == pytest.approx(0.855) and parent.data.tags["best.lr"] == "0.1"
    assert parent.info.status == "FINISHED"


def test_child_holds_params_curves_tags_and_artifacts(filled: SweepPlan, store: RunStore) -> None:
    tracker = sync(filled, store)
    seed = next(r for r in runs(tracker) if r.data.tags.get("kdbench.key") == "kd-1")
    assert seed.data.params["params.temperature"] == "4.0"
    curve = tracker.at.client.get_metric_history(seed.info.run_id, "loss/student/ce")
    assert [(m.step, m.value) for m in curve] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert seed.data.metrics["test_accuracy/last"] == pytest.approx(0.85)
    assert {"git_commit", "data_fingerprint", "teacher_hash", "kdbench.key"} <= seed.data.tags.keys()
    files = {artifact.path for artifact in tracker.at.client.list_artifacts(seed.info.run_id)}
    assert files == {"spec.json", "records.jsonl", "last.safetensors", "confusion.png", "summary.md"}
    second = next(r for r in runs(tracker) if r.data.tags.get("kdbench.key") == "kd-2")
    others = {artifact.path for artifact in tracker.at.client.list_artifacts(second.info.run_id)}
    assert others == files - {"confusion.png"}
    trial = next(r for r in runs(tracker) if r.data.tags.get("kdbench.key") == "kd-trial")
    files = {artifact.path for artifact in tracker.at.client.list_artifacts(trial.info.run_id)}
    assert files == {"spec.json", "records.jsonl"}
    assert seed.data.metrics["target_met/accuracy"] == 1.0 and seed.data.metrics["target_met/parameters"] == 0.0


def test_board_is_a_table_artifact(filled: SweepPlan, store: RunStore) -> None:
    tracker = sync(filled, store)
    board = next(run for run in runs(tracker) if run.info.run_name == "leaderboard")
    assert board.data.metrics == {}  # its numbers are those of the parents
    files = {artifact.path for artifact in tracker.at.client.list_artifacts(board.info.run_id)}
    tables = {f"{name}.{suffix}" for name in ("leaderboard", "comparison") for suffix in ("md", "csv", "tex")}
    assert files == tables | {"leaderboard.json", "comparison.json"}  # too few methods for ranks
    assert json.loads(board.data.tags["mlflow.loggedArtifacts"])[0] == {"path": "leaderboard.json", "type": "table"}


def test_metric_of_a_suite_names_what_is_logged(plan: SweepPlan, fill: Fill, store: RunStore) -> None:
    fill("student", [0.20, 0.18], ERROR)
    fill("kd", [0.15, 0.14], ERROR)
    tracker = sync(replanned(plan, store, metric=ERROR.model_dump()), store)
    by_name = {run.info.run_name: run.data.metrics for run in runs(tracker)}
    assert by_name["kd: large -> small"]["test_error"] == pytest.approx(0.145)
    assert by_name["kd: large -> small"]["gain_over_control"] == pytest.approx(0.045)
    assert by_name["leaderboard"] == {}
    seed = next(run for run in runs(tracker) if run.data.tags.get("kdbench.key") == "kd-1")
    assert seed.data.metrics["test_error/last"] == seed.data.metrics["test_error/last/student/logits"] == 0.15
    assert not [name for metrics in by_name.values() for name in metrics if "accuracy" in name]


def test_projection_is_idempotent_and_can_be_rebuilt(filled: SweepPlan, store: RunStore, mlflow_db: Path) -> None:
    first = contents(sync(filled, store))
    assert contents(sync(filled, store)) == first
    ignore = shutil.ignore_patterns("mlflow*")
    copy = RunStore(Path(shutil.copytree(store.root, store.root.parent / "copy", ignore=ignore)))
    shutil.copy(mlflow_db, copy.root)
    assert contents(sync(filled, copy)) == first


def test_run_that_went_on_is_brought_up_to_date(plan: SweepPlan, finish: Finish, store: RunStore) -> None:
    with store.attempt("k", json.dumps(SPEC), lambda _: None):
        pass
    planned = Planned(plan.pairs()[0], "kd", "trial", 0, "k")
    plan.add(planned)
    tracker = Tracker(store, "toy")
    tracker.run(planned)
    assert runs(tracker) == []
    finish("k", outcome(0.5, status="diverged", reason="ce is nan"), epochs=1)
    tracker.run(planned)
    child = next(run for run in runs(tracker) if run.data.tags.get("kdbench.key") == "k")
    assert (child.info.status, child.data.tags["reason"]) == ("FINISHED", "ce is nan")


def test_run_that_is_unsupported_is_there_with_its_reason(plan: SweepPlan, finish: Finish, store: RunStore) -> None:
    finish("u", outcome(0, status="unsupported", reason="no stages"), epochs=0)
    tracker = Tracker(store, "toy")
    tracker.run(Planned(plan.pairs()[0], "sp", "seed", 1, "u"))
    child = next(run for run in runs(tracker) if run.data.tags.get("kdbench.key") == "u")
    assert (child.info.status, child.data.tags["reason"]) == ("FINISHED", "no stages")


def test_explanation_is_logged_as_metrics_table_and_plot(store: RunStore) -> None:
    tracker = Tracker(store, "explain")
    tracker.explanation([explained("student", 5.0, 2.0), explained("kd", 7.0, None)])
    tracker.explanation([explained("student", 5.0, 2.0), explained("kd", 7.0, None)])
    found = {run.info.run_name: run for run in runs(tracker)}
    assert found.keys() == {"student student0", "kd kd000000"} and len(runs(tracker)) == 2
    assert found["kd kd000000"].data.metrics["N_fg"] == 7.0 and "D_mean" not in found["kd kd000000"].data.metrics
    curve = tracker.at.client.get_metric_history(found["kd kd000000"].info.run_id, "N_fg over epochs")
    assert {(metric.step, metric.value) for metric in curve} == {(1, 1.0), (2, 7.0)}
    files = {artifact.path for artifact in tracker.at.client.list_artifacts(found["kd kd000000"].info.run_id)}
    assert files == {f"concepts.{suffix}" for suffix in ("md", "csv", "tex", "json", "png")}


def test_metric_names_hold_what_mlflow_allows() -> None:
    assert metric_name("a + b -> c/kd+0.5*at(p=[1,2])") == "a and b to c/kdand0.5xat_p__1_2__"


def test_a_store_that_was_moved_writes_into_its_own_place(
    filled: SweepPlan, store: RunStore, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sync(filled, store)
    place = tmp_path_factory.mktemp("moved") / "here"
    shutil.copytree(store.root, place)
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()}
    moved = RunStore(place)
    _artifact_repos_cache.clear()  # of this process, by the ids of runs
    tracker = sync(SweepPlan.find(place, "toy"), moved)
    for run in runs(tracker):
        assert (run.info.artifact_uri or "").startswith(f"{place.as_uri()}/mlflow-artifacts/toy/")
    assert tracker.at.client.get_experiment(tracker.at.id).artifact_location == f"{place.as_uri()}/mlflow-artifacts/toy"
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()} == before
    board = next(run for run in runs(tracker) if run.info.run_name == "leaderboard")
    assert tracker.at.client.list_artifacts(board.info.run_id)


def test_parents_have_what_their_rows_say_and_the_board_no_metric_for_each(
    plan: SweepPlan, fill: Fill, store: RunStore
) -> None:
    fill("student", [0.80, 0.82])
    fill("kd", [0.85, 0.86, 0.87])
    by_name = {run.info.run_name: run.data for run in runs(sync(plan, store))}
    parent, partial = by_name["kd: large -> small"], by_name["student: large -> small"]
    assert parent.metrics["test_accuracy"] == pytest.approx(0.86)
    assert parent.metrics["gain_over_control"] == pytest.approx(0.045) and parent.metrics["cost/seconds"] > 0
    assert {"test_accuracy_half_width", "gain_over_control_half_width"} <= parent.metrics.keys()
    assert parent.params == {"best.lr": "0.1"} and partial.params == {}  # two of three seeds are not all
    assert by_name["leaderboard"].metrics == {}


def test_an_experiment_says_what_it_is_and_its_runs_how_long_they_took(
    plan: SweepPlan, fill: Fill, store: RunStore
) -> None:
    fill("student", [0.80, 0.82, 0.84])
    fill("kd", [0.85, 0.86, 0.87])
    tracker = sync(plan, store)
    tags = tracker.at.client.get_experiment(tracker.at.id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development" and tags["dataset"] == plan.suite.data.name
    assert tags["mlflow.experiment.primaryMetric.name"] == "test_accuracy" and "Data: " in tags["mlflow.note.content"]
    kept = {each.key: store.get(each.key) for each in plan.runs()}
    found = {run.info.run_name: run for run in runs(tracker)}
    for run in found.values():
        if known := kept.get(run.data.tags.get("kdbench.key", "")):
            assert (run.info.start_time, run.info.end_time) == (int(known.started * 1000), int(known.ended * 1000))
    last = max(run.ended for each in plan.runs() if each.method == "kd" and (run := kept[each.key]))
    assert found["kd: large -> small"].info.end_time == int(last * 1000)
