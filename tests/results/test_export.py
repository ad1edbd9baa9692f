"""A suite copied into a folder for git, and read there."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.errors import InputError
from results.analysis.leaderboard import leaderboard
from results.analysis.status import teachers_of
from results.pages.report import render
from results.pages.status import teachers_report
from results.store.evidence import export
from results.store.files import done_of, sha256
from results.store.plan import Planned, SweepPlan
from results.store.run_store import RunStore, WeightsLeftOut
from tests.results.conftest import SPEC, epoch, outcome


@pytest.fixture
def filled(plan: SweepPlan, fill: Callable[..., None], finish: Callable[..., None]) -> SweepPlan:
    finish("0123", outcome(0.9))
    plan.add(Planned(plan.pairs()[0], "teacher", "teacher", 0, "0123"))
    fill("student", [0.80, 0.82, 0.81])
    fill("kd", [0.85, 0.86])
    return plan


def files(folder: Path) -> dict[str, tuple[bytes, float]]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def test_export_is_a_store_with_the_same_tables(filled: SweepPlan, store: RunStore, tmp_path: Path) -> None:
    exported = export(filled, store, tmp_path / "copy")
    copy = RunStore(tmp_path / "copy", read_only=True)
    plan = SweepPlan.find(copy.root, "toy")
    assert (exported.runs, exported.teachers, exported.weights, exported.left_out) == (8, 1, 1, [])
    assert leaderboard(plan, copy) == leaderboard(filled, store)
    assert copy.find("0123").outcome == store.find("0123").outcome
    assert copy.weights("run:0123") == store.weights("run:0123")
    kinds = {path.rpartition("/")[2] for path in files(copy.root)}
    assert kinds == {".gitignore", "suite.json", "plan.jsonl", "spec.json", "DONE.json"} | {
        "records.jsonl",
        "last.safetensors",
    }


def test_export_names_no_host_and_its_hashes_hold(filled: SweepPlan, store: RunStore, tmp_path: Path) -> None:
    export(filled, store, tmp_path / "copy")
    keys = store.keys()
    for key in keys:
        folder = tmp_path / "copy" / "runs" / key
        done, original = done_of(folder), done_of(store.root / "runs" / key)
        assert done is not None and original is not None
        assert done["files"] == {path.name: sha256(path.read_bytes()) for path in (folder / done["attempt"]).iterdir()}
        assert done["files"].keys() | done["left_out"].keys() == original["files"].keys()
        assert done["left_out"].items() <= original["files"].items()
        claim, *rest = (folder / done["attempt"] / "records.jsonl").read_text().splitlines()
        assert json.loads(claim)["host"] == "" and json.loads(claim)["pid"] == 0
        assert rest == (store.root / "runs" / key / "attempt-1" / "records.jsonl").read_text().splitlines()[1:]
    claims = b"".join(data for data, _ in files(tmp_path / "copy").values())
    assert f'"host": "{socket.gethostname()}"'.encode() not in claims


def test_exporting_again_changes_no_file(filled: SweepPlan, store: RunStore, tmp_path: Path) -> None:
    first = export(filled, store, tmp_path / "copy")
    before = files(tmp_path / "copy")
    assert export(filled, store, tmp_path / "copy") == first and files(tmp_path / "copy") == before


def test_second_plan_is_added_and_takes_nothing_away(filled: SweepPlan, store: RunStore, tmp_path: Path) -> None:
    """The second plan has the first one's teacher as a plain run."""
    export(filled, store, tmp_path / "copy")
    before = files(tmp_path / "copy")
    other = SweepPlan.create(store.root, "other", "1234abcd", filled.suite.values())
    other.add(Planned(other.pairs()[0], "student", "seed", 1, "0123"))
    other.add(Planned(other.pairs()[0], "kd", "seed", 1, "kd-1"))
    assert export(other, store, tmp_path / "copy", weights_under=0).weights == 1
    after = files(tmp_path / "copy")
    assert before.items() <= after.items() and len(after) == len(before) + 2
    copy = RunStore(tmp_path / "copy", read_only=True)
    assert copy.weights("run:0123") == b"weights of 0123"
    assert leaderboard(SweepPlan.find(copy.root, "other"), copy) == leaderboard(other, store)


@pytest.mark.parametrize(("size", "copied"), [(1.4e-5, 0), (1.5e-5, 0), (1.6e-5, 1)])
def test_weights_are_those_of_small_teachers_alone(
    filled: SweepPlan, store: RunStore, tmp_path: Path, size: float, copied: int
) -> None:
    assert len(store.weights("run:0123")) == 15
    assert export(filled, store, tmp_path / "copy", size).weights == copied
    copy = RunStore(tmp_path / "copy", read_only=True)
    for name in ("kd-1", *(() if copied else ("0123",))):
        with pytest.raises(WeightsLeftOut, match=f"weights of run {name} were left out .*larger --weights-under"):
            copy.weights(f"run:{name}")
    (row,) = teachers_of(copy)
    assert row.problem == "" and row.left_out == (not copied)
    assert ("verified" if copied else "weights not exported") in render(teachers_report([row]))
    if not copied:
        assert export(filled, store, tmp_path / "copy").weights == 1 and copy.weights("run:0123")


def test_imported_teachers_go_along(plan: SweepPlan, store: RunStore, tmp_path: Path) -> None:
    reference = store.import_weights(b"tensors")
    spec = SPEC | {"teachers": [SPEC["teachers"][0] | {"weights": reference}]}
    with store.attempt("k", json.dumps(spec), lambda _: None) as attempt:
        attempt.finish(outcome(0.5), {"last": b"weights"})
    plan.add(Planned(plan.pairs()[0], "kd", "seed", 1, "k"))
    assert export(plan, store, tmp_path / "copy").weights == 1
    assert RunStore(tmp_path / "copy", read_only=True).weights(reference) == b"tensors"


def test_unfinished_runs_are_left_out_and_pruned_ones_are_not(
    filled: SweepPlan, store: RunStore, tmp_path: Path
) -> None:
    pair = filled.pairs()[0]
    for number, event in enumerate(("stopped", "failed", ""), start=1):
        filled.add(Planned(pair, "sp", "trial", number, f"sp-{number}"))
        with store.attempt(f"sp-{number}", json.dumps(SPEC), lambda _: None) as attempt:
            attempt.epoch(epoch(1), lambda: b"state")
            if event:
                attempt.end(event, "why", "Traceback, with paths")
    filled.add(Planned(pair, "sp", "trial", 4, "sp-4"))
    exported = export(filled, store, tmp_path / "copy")
    assert [(each.planned.key, each.status) for each in exported.left_out] == [
        ("sp-2", "failed"),
        ("sp-3", "running"),
        ("sp-4", "pending"),
    ]
    assert "Left out, as not finished: 3 runs: sp trial 2 of large -> small (failed), " in exported.page()
    copy = RunStore(tmp_path / "copy", read_only=True)
    pruned = copy.find("sp-1")
    assert (
        pruned.status == "stopped"
        and len(pruned.epochs) == 1
        and set(store.keys()) - set(copy.keys()) == {"sp-2", "sp-3"}
    )


def test_later_attempt_takes_the_place_of_an_earlier_one_that_was_pruned(
    filled: SweepPlan, store: RunStore, finish: Callable[..., None], tmp_path: Path
) -> None:
    filled.add(Planned(filled.pairs()[0], "sp", "trial", 0, "sp-0"))
    with store.attempt("sp-0", json.dumps(SPEC), lambda _: None) as attempt:
        attempt.end("stopped", "pruned")
    export(filled, store, tmp_path / "copy")
    finish("sp-0", outcome(0.91))
    export(filled, store, tmp_path / "copy")
    folder = tmp_path / "copy" / "runs" / "sp-0"
    assert [path.name for path in folder.glob("attempt-*")] == ["attempt-2"] and (folder / "DONE.json").exists()


def test_another_result_of_a_run_is_refused_and_changes_nothing(
    filled: SweepPlan, store: RunStore, finish: Callable[..., None], tmp_path: Path
) -> None:
    export(filled, store, tmp_path / "copy")
    before = files(tmp_path / "copy")
    (store.root / "runs" / "0123" / "DONE.json").unlink()
    for unfinished in (True, False):
        with store.attempt("0123", json.dumps(SPEC), lambda _: None) as attempt:
            attempt.end("stopped", "pruned") if unfinished else attempt.finish(outcome(0.91), {"last": b"others"})
        with pytest.raises(
            InputError, match=r"run 0123 is finished in .*copy with another result than in .*store: exp"
        ):
            export(filled, store, tmp_path / "copy")
        assert files(tmp_path / "copy") == before


def test_weights_that_are_not_the_runs_are_removed_or_replaced(
    filled: SweepPlan, store: RunStore, tmp_path: Path
) -> None:
    attempt = tmp_path / "copy" / "runs" / "0123" / "attempt-1"
    attempt.mkdir(parents=True)
    for limit, kept in ((0, set()), (10, {"last.safetensors"})):
        for name in ("last", "best"):
            (attempt / f"{name}.safetensors").write_bytes(b"of another run")
        assert export(filled, store, tmp_path / "copy", limit).weights == len(kept)
        done = done_of(attempt.parent)
        assert done is not None and done["files"].keys() == {"records.jsonl"} | kept == {
            path.name for path in attempt.iterdir()
        }
        assert done["left_out"].keys() == {"last.safetensors", "best.safetensors"} - kept


def test_plans_of_two_stores_are_joined(filled: SweepPlan, finish: Callable[..., None], tmp_path: Path) -> None:
    """Each store did a part; where both did a run, that of the plan that was last run counts."""
    store, copy, pair = RunStore(filled.folder.parents[2]), tmp_path / "copy", filled.pairs()[0]
    second = RunStore(tmp_path / "second")
    other = SweepPlan.create(
        second.root, "toy", "abcd1234", filled.suite.values() | {"last_run": filled.last_run + 9, "about": "b"}
    )
    for number, key in ((2, "kd-again"), (3, "kd-3")):
        other.add(Planned(pair, "kd", "seed", number, key))
        with second.attempt(key, json.dumps(SPEC), lambda _: None) as attempt:
            attempt.finish(outcome(0.7), {"last": b"weights", "best": b"best"})
    export(filled, store, copy)
    export(other, second, copy)
    joined = SweepPlan.find(copy, "toy")
    both = {each.place: each.key for each in joined.started()}
    mine = {each.place: each.key for each in filled.started()}
    assert both == mine | {(pair, "kd", "seed", 2): "kd-again", (pair, "kd", "seed", 3): "kd-3"}
    assert list(both)[: len(mine)] == list(mine) and joined.suite.about == "b"
    before = files(copy)
    for plan, source in ((filled, store), (other, second)):
        export(plan, source, copy)
    assert files(copy) == before


def test_what_training_adds_is_ignored_by_git_and_what_is_exported_is_not(
    filled: SweepPlan, store: RunStore, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    export(filled, store, copy)
    exported = set(files(copy))
    for name in ("best", "best_auxiliary", "last_auxiliary"):
        (copy / "runs" / "0123" / "attempt-1" / f"{name}.safetensors").touch()
    for name in ("driver.lock", ".compute.json.lock", ".probe-1", "optuna.db", "mlflow.db-journal"):
        (copy / name).touch()
    subprocess.run(["git", "init", "--quiet", str(copy)], check=True)
    listed = subprocess.run(
        ["git", "-C", str(copy), "ls-files", "--others", "--exclude-standard"], check=True, capture_output=True
    )
    assert set(listed.stdout.decode().split()) == exported


def test_protocol_last_run_is_known_without_the_times_of_files(
    filled: SweepPlan, store: RunStore, tmp_path: Path
) -> None:
    later = SweepPlan.create(store.root, "toy", "1234abcd", filled.suite.values())
    for plan in (later, filled):
        export(plan, store, tmp_path / "copy")
    assert SweepPlan.find(tmp_path / "copy", "toy").name == "toy@1234abcd"
    copies = [SweepPlan.find(tmp_path / "copy", plan.name) for plan in (filled, later)]
    assert [copy.last_run for copy in copies] == pytest.approx([filled.last_run, later.last_run], abs=1e-3)


def test_damaged_records_are_not_given_a_new_hash(filled: SweepPlan, store: RunStore, tmp_path: Path) -> None:
    path = store.root / "runs" / "kd-1" / "attempt-1" / "records.jsonl"
    path.write_bytes(path.read_bytes().replace(b"0.85", b"0.95"))
    with pytest.raises(InputError, match=r"records\.jsonl is damaged: remove .* and run again"):
        export(filled, store, tmp_path / "copy")


def test_folder_that_cannot_be_written_or_is_trained_in_is_refused(
    filled: SweepPlan, store: RunStore, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/kdbench")):
        with pytest.raises(InputError, match=r"cannot be written: .* Give another folder\."):
            export(filled, store, folder)
    with RunStore(tmp_path / "trained").attempt("kd-1", json.dumps(SPEC), lambda _: None):
        pass
    (tmp_path / "swept").mkdir()
    (tmp_path / "swept" / "driver.lock").touch()
    for folder in (store.root, tmp_path / "trained", tmp_path / "swept"):
        with pytest.raises(InputError, match="in which runs are trained: export into a folder of its own"):
            export(filled, store, folder)


def test_mlflow_brought_up_to_date_from_an_exported_store_does_not_keep_it_from_growing(
    filled: SweepPlan, store: RunStore, tmp_path: Path
) -> None:
    first = export(filled, store, tmp_path / "copy")
    (tmp_path / "copy" / "mlflow.lock").touch()
    assert export(filled, store, tmp_path / "copy") == first
