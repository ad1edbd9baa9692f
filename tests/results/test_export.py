"""A suite as evidence for git, and a store made of it again."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.bench.errors import InputError
from kdbench.bench.record import Epoch
from kdbench.bench.spec import Compute
from kdbench.results.analysis.leaderboard import leaderboard
from kdbench.results.analysis.status import teachers_of
from kdbench.results.pages.report import render
from kdbench.results.pages.status import teachers_report
from kdbench.results.store.epoch_table import packed, unpacked
from kdbench.results.store.evidence import read_evidence
from kdbench.results.store.export import export
from kdbench.results.store.files import done_of, sha256
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.restore import restore
from kdbench.results.store.run_store import RunStore, WeightsLeftOut
from tests.results.conftest import SPEC, SUITE, epoch, outcome

FILES = {"plan.json", "outcomes.jsonl", "epochs.parquet"}


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


def imported(folder: Path, root: Path) -> RunStore:
    """A store made of evidence."""
    store = RunStore(root)
    restore([folder], store)
    return store


def contents(folder: Path) -> dict[str, bytes]:
    return {name: data for name, (data, _) in files(folder).items()}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "outcomes.jsonl").read_text().splitlines()]


def test_import_of_an_export_is_a_store_with_the_same_tables(
    filled: SweepPlan, store: RunStore, tmp_path: Path
) -> None:
    exported = export(filled, store, tmp_path / "evidence")
    assert (exported.runs, exported.teachers, exported.weights, exported.left_out) == (8, 1, 1, [])
    copy = imported(tmp_path / "evidence", tmp_path / "copy")
    plan = SweepPlan.find(copy.root, "toy")
    assert leaderboard(plan, copy) == leaderboard(filled, store)
    keys = store.keys()
    for key in keys:
        ours, theirs = copy.find(key), store.find(key)
        assert (ours.spec, ours.epochs, ours.outcome) == (theirs.spec, theirs.epochs, theirs.outcome)
        assert (ours.started, ours.ended, ours.times) == (theirs.started, theirs.ended, theirs.times)
        assert (copy.root / "runs" / key / "spec.json").read_text() == json.dumps(SPEC)
    assert copy.weights("run:0123") == store.weights("run:0123")


def test_evidence_is_three_files_and_weights_with_a_sorted_line_for_each_run(
    filled: SweepPlan, store: RunStore, tmp_path: Path
) -> None:
    digest = sha256(store.weights("run:0123"))
    export(filled, store, tmp_path / "evidence")
    folder = tmp_path / "evidence" / "toy"
    assert set(files(folder)) == FILES | {f"weights/{digest}.safetensors"}
    places = [(place["method"], place["phase"], place["number"]) for line in lines(folder) for place in line["places"]]
    assert places == [("teacher", "teacher", 0), ("student", "trial", 0)] + [
        ("student", "seed", 1),
        ("student", "seed", 2),
        ("student", "seed", 3),
        ("kd", "trial", 0),
        ("kd", "seed", 1),
        ("kd", "seed", 2),
    ]
    first = lines(folder)[0]
    assert first["files"].keys() == {"last.safetensors", "best.safetensors"} and first["spec"] == SPEC
    assert first["outcome"]["scores"]["last"]["test"]["student"]["logits"]["accuracy"] == 0.9


def test_exported_records_name_no_host_and_their_hashes_hold(
    filled: SweepPlan, store: RunStore, tmp_path: Path
) -> None:
    export(filled, store, tmp_path / "evidence")
    copy = imported(tmp_path / "evidence", tmp_path / "copy")
    for line in lines(tmp_path / "evidence" / "toy"):
        folder, original = copy.root / "runs" / line["key"], done_of(store.root / "runs" / line["key"])
        done = done_of(folder)
        assert done is not None and original is not None
        assert done["files"] == {path.name: sha256(path.read_bytes()) for path in (folder / done["attempt"]).iterdir()}
        assert done["files"]["records.jsonl"] == line["records"]
        assert done["files"].keys() | done["left_out"].keys() == original["files"].keys()
        assert done["left_out"].items() <= original["files"].items()
        claim = json.loads((folder / done["attempt"] / "records.jsonl").read_text().splitlines()[0])
        assert claim["host"] == "" and claim["pid"] == 0
    assert socket.gethostname().encode() not in contents(tmp_path / "evidence")["toy/outcomes.jsonl"]


def test_exporting_and_importing_again_change_no_file(filled: SweepPlan, store: RunStore, tmp_path: Path) -> None:
    first = export(filled, store, tmp_path / "evidence")
    before = files(tmp_path / "evidence")
    copy = imported(tmp_path / "evidence", tmp_path / "copy")
    there = files(copy.root)
    (again,) = restore([tmp_path / "evidence" / "toy"], copy)
    assert (again.runs, again.new, again.weights) == (8, 0, 1) and files(copy.root) == there
    assert export(filled, store, tmp_path / "evidence") == first
    assert export(SweepPlan.find(copy.root, "toy"), copy, tmp_path / "evidence") == first
    assert files(tmp_path / "evidence") == before
    export(SweepPlan.find(copy.root, "toy"), copy, tmp_path / "third")
    assert contents(tmp_path / "third") == contents(tmp_path / "evidence")


def test_epochs_are_the_same_after_packing_and_packed_to_the_same_bytes() -> None:
    strange = epoch(2).model_copy(update={"losses": {"a/ce": float("inf"), "b/kd": 0.1}, "teacher_cached": 7})
    runs: dict[str, list[tuple[float, Epoch]]] = {"b": [(1.5, epoch(1)), (2.5, strange)], "a": [(0.1 + 0.2, epoch(1))]}
    assert unpacked(packed(runs)) == runs and list(unpacked(packed(runs))) == ["b", "a"]
    assert packed(unpacked(packed(runs))) == packed(runs)
    assert unpacked(packed({})) == {}


def test_second_suite_has_a_folder_of_its_own_and_the_first_suites_teacher(
    filled: SweepPlan, store: RunStore, tmp_path: Path
) -> None:
    export(filled, store, tmp_path / "evidence")
    before = files(tmp_path / "evidence")
    other = SweepPlan.create(store.root, "other", "1234abcd", filled.suite.values())
    other.add(Planned(other.pairs()[0], "student", "seed", 1, "0123"))
    other.add(Planned(other.pairs()[0], "kd", "seed", 1, "kd-1"))
    assert export(other, store, tmp_path / "evidence", weights_under=0).weights == 0
    assert before.items() <= files(tmp_path / "evidence").items()
    assert set(files(tmp_path / "evidence" / "other")) == FILES
    copy = imported(tmp_path / "evidence", tmp_path / "copy")
    assert copy.weights("run:0123") == b"weights of 0123"
    assert leaderboard(SweepPlan.find(copy.root, "other"), copy) == leaderboard(other, store)


def test_short_scale_of_a_table_lies_beside_the_full_one(filled: SweepPlan, store: RunStore, tmp_path: Path) -> None:
    short = SweepPlan.create(store.root, "toy", "1234abcd", filled.suite.values() | {"scale": "short"})
    for plan in (filled, short):
        export(plan, store, tmp_path / "evidence")
    assert {path.name for path in (tmp_path / "evidence").iterdir()} == {"toy", "toy_short"}
    copy = imported(tmp_path / "evidence", tmp_path / "copy")
    assert {SweepPlan.find(copy.root, plan.name).suite.scale for plan in (filled, short)} == {"", "short"}


def test_another_protocol_of_the_name_is_refused(filled: SweepPlan, store: RunStore, tmp_path: Path) -> None:
    export(filled, store, tmp_path / "evidence")
    other = SweepPlan.create(store.root, "toy", "1234abcd", SUITE)
    with pytest.raises(InputError, match="toy has toy@abcd1234, another protocol than toy@1234abcd: export into an"):
        export(other, store, tmp_path / "evidence")


@pytest.mark.parametrize(("size", "copied"), [(1.4e-5, 0), (1.5e-5, 0), (1.6e-5, 1)])
def test_weights_are_those_of_small_teachers_alone(
    filled: SweepPlan, store: RunStore, tmp_path: Path, size: float, copied: int
) -> None:
    assert len(store.weights("run:0123")) == 15
    assert export(filled, store, tmp_path / "evidence", size).weights == copied
    copy = imported(tmp_path / "evidence", tmp_path / "copy")
    for name in ("kd-1", *(() if copied else ("0123",))):
        with pytest.raises(WeightsLeftOut, match=f"weights of run {name} were left out .*larger --weights-under"):
            copy.weights(f"run:{name}")
    (row,) = teachers_of(copy)
    assert row.problem == "" and row.left_out == (not copied)
    assert ("verified" if copied else "weights not exported") in render(teachers_report([row]))
    assert export(filled, store, tmp_path / "evidence").weights == 1
    restore([tmp_path / "evidence"], copy)
    assert copy.weights("run:0123") == b"weights of 0123"


def test_imported_checkpoints_go_along(plan: SweepPlan, store: RunStore, tmp_path: Path) -> None:
    reference = store.import_weights(b"tensors")
    spec = SPEC | {"teachers": [SPEC["teachers"][0] | {"weights": reference}]}
    with store.attempt("k", json.dumps(spec), lambda _: None) as attempt:
        attempt.finish(outcome(0.5), {"last": b"weights"})
    plan.add(Planned(plan.pairs()[0], "kd", "seed", 1, "k"))
    assert export(plan, store, tmp_path / "evidence").weights == 1
    assert imported(tmp_path / "evidence", tmp_path / "copy").weights(reference) == b"tensors"


def test_weights_in_evidence_that_are_no_teachers_or_are_damaged_are_replaced(
    filled: SweepPlan, store: RunStore, tmp_path: Path
) -> None:
    folder = tmp_path / "evidence" / "toy" / "weights"
    folder.mkdir(parents=True)
    name = f"{sha256(b'weights of 0123')}.safetensors"
    for limit, kept in ((0, {}), (10, {name: b"weights of 0123"})):
        (folder / name).write_bytes(b"damaged")
        (folder / "other.safetensors").write_bytes(b"of another run")
        assert export(filled, store, tmp_path / "evidence", limit).weights == len(kept)
        assert contents(folder) == kept


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
    exported = export(filled, store, tmp_path / "evidence")
    assert [(each.planned.key, each.status) for each in exported.left_out] == [
        ("sp-2", "failed"),
        ("sp-3", "running"),
        ("sp-4", "pending"),
    ]
    assert "Left out, as not finished: 3 runs: sp trial 2 of large -> small (failed), " in exported.page()
    copy = imported(tmp_path / "evidence", tmp_path / "copy")
    pruned = copy.find("sp-1")
    assert pruned.status == "stopped" and pruned.reason == "why" and len(pruned.epochs) == 1
    assert set(store.keys()) - set(copy.keys()) == {"sp-2", "sp-3"}
    assert [each.key for each in SweepPlan.find(copy.root, "toy").started() if each.method == "sp"] == ["sp-1"]


def test_result_takes_the_place_of_a_pruned_attempt(
    filled: SweepPlan, store: RunStore, finish: Callable[..., None], tmp_path: Path
) -> None:
    filled.add(Planned(filled.pairs()[0], "sp", "trial", 0, "sp-0"))
    with store.attempt("sp-0", json.dumps(SPEC), lambda _: None) as attempt:
        attempt.end("stopped", "pruned")
    export(filled, store, tmp_path / "evidence")
    copy = imported(tmp_path / "evidence", tmp_path / "copy")
    assert copy.find("sp-0").status == "stopped"
    finish("sp-0", outcome(0.91))
    export(filled, store, tmp_path / "evidence")
    (restored,) = restore([tmp_path / "evidence"], copy)
    assert restored.new == 1 and copy.find("sp-0").outcome == outcome(0.91)
    assert [path.name for path in (copy.root / "runs" / "sp-0").glob("attempt-*")] == ["attempt-2"]


def test_another_result_of_a_run_is_refused_and_changes_nothing(
    filled: SweepPlan, store: RunStore, finish: Callable[..., None], tmp_path: Path
) -> None:
    export(filled, store, tmp_path / "evidence")
    copy = imported(tmp_path / "evidence", tmp_path / "copy")
    before = files(tmp_path / "evidence")
    (store.root / "runs" / "0123" / "DONE.json").unlink()
    for unfinished in (True, False):
        with store.attempt("0123", json.dumps(SPEC), lambda _: None) as attempt:
            attempt.end("stopped", "pruned") if unfinished else attempt.finish(outcome(0.91), {"last": b"others"})
        with pytest.raises(InputError, match=r"run 0123 is finished in .*toy with another result than in .*store: exp"):
            export(filled, store, tmp_path / "evidence")
        assert files(tmp_path / "evidence") == before
    export(filled, store, tmp_path / "other")
    there = files(copy.root)
    with pytest.raises(InputError, match=r"run 0123 is finished in .*copy with another result than in .*toy: import"):
        restore([tmp_path / "other"], copy)
    assert files(copy.root) == there


def test_plans_of_two_stores_are_joined(filled: SweepPlan, finish: Callable[..., None], tmp_path: Path) -> None:
    """Each store did a part; where both did a run, that of the plan that was last run counts."""
    store, folder, pair = RunStore(filled.folder.parents[2]), tmp_path / "evidence", filled.pairs()[0]
    second = RunStore(tmp_path / "second")
    later = filled.suite.values() | {"last_run": filled.last_run + 9, "about": "b"}
    other = SweepPlan.create(second.root, "toy", "abcd1234", later)
    for number, key in ((2, "kd-again"), (3, "kd-3")):
        other.add(Planned(pair, "kd", "seed", number, key))
        with second.attempt(key, json.dumps(SPEC), lambda _: None) as attempt:
            attempt.finish(outcome(0.7), {"last": b"weights", "best": b"best"})
    export(filled, store, folder)
    export(other, second, folder)
    joined = SweepPlan.find(imported(folder, tmp_path / "copy").root, "toy")
    both = {each.place: each.key for each in joined.started()}
    mine = {each.place: each.key for each in filled.started()}
    assert both == mine | {(pair, "kd", "seed", 2): "kd-again", (pair, "kd", "seed", 3): "kd-3"}
    assert joined.suite.about == "b"
    before = files(folder)
    for plan, source in ((filled, store), (other, second)):
        export(plan, source, folder)
    assert files(folder) == before


def test_import_adds_to_a_store_that_has_a_part_of_the_sweep(
    filled: SweepPlan, store: RunStore, finish: Callable[..., None], tmp_path: Path
) -> None:
    export(filled, store, tmp_path / "evidence")
    second = RunStore(tmp_path / "second")
    other = SweepPlan.create(second.root, "toy", "abcd1234", SUITE)
    other.add(Planned(filled.pairs()[0], "sp", "seed", 1, "sp-1"))
    with second.attempt("sp-1", json.dumps(SPEC), lambda _: None) as attempt:
        attempt.finish(outcome(0.7), {"last": b"weights", "best": b"best"})
    restore([tmp_path / "evidence"], second)
    board = leaderboard(SweepPlan.find(second.root, "toy"), second)
    assert {row.method: row.seeds for row in board.rows} == {"student": 3, "kd": 2, "sp": 1}


def test_choice_of_precision_travels_with_the_plan(filled: SweepPlan, store: RunStore, tmp_path: Path) -> None:
    chosen = {"small": Compute(precision="bf16", compiled=True)}
    filled.keep_compute(chosen)
    export(filled, store, tmp_path / "evidence")
    copy = imported(tmp_path / "evidence", tmp_path / "copy")
    assert SweepPlan.find(copy.root, "toy").suite.compute == chosen
    again = SweepPlan.create(copy.root, "toy", "abcd1234", SUITE)
    assert again.suite.compute == chosen and SweepPlan.find(copy.root, "toy").suite.compute == chosen


def test_protocol_last_run_is_known_without_the_times_of_files(
    filled: SweepPlan, store: RunStore, tmp_path: Path
) -> None:
    later = SweepPlan.create(store.root, "toy", "1234abcd", filled.suite.values() | {"scale": "short"})
    for plan in (later, filled):
        export(plan, store, tmp_path / "evidence")
    copy = imported(tmp_path / "evidence", tmp_path / "copy")
    assert SweepPlan.find(copy.root, "toy").name == "toy@1234abcd"
    copies = [SweepPlan.find(copy.root, plan.name) for plan in (filled, later)]
    assert [each.last_run for each in copies] == pytest.approx([filled.last_run, later.last_run], abs=1e-3)


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("torn", [True, False])
def test_torn_and_edited_evidence_is_refused(
    filled: SweepPlan, store: RunStore, tmp_path: Path, name: str, torn: bool
) -> None:
    export(filled, store, tmp_path / "evidence")
    path = tmp_path / "evidence" / "toy" / name
    data = path.read_bytes()
    assert b"student" in data or name == "epochs.parquet"
    path.write_bytes(data[:-9] if torn else data.replace(b"student", b"studied").replace(b"train", b"drain"))
    copy = RunStore(tmp_path / "copy")
    with pytest.raises(InputError, match=rf"{name} is torn or was edited: its SHA-256 .* Take it from git again, or"):
        restore([tmp_path / "evidence"], copy)
    with pytest.raises(InputError, match="is torn or was edited"):
        export(filled, store, tmp_path / "evidence")
    assert copy.keys() == [] and not (copy.root / "suites").exists()
    path.unlink()
    with pytest.raises(InputError, match=f"it lacks {name}|holds no evidence"):
        restore([tmp_path / "evidence"], copy)


def test_damaged_weights_in_evidence_are_refused(filled: SweepPlan, store: RunStore, tmp_path: Path) -> None:
    export(filled, store, tmp_path / "evidence")
    (path,) = (tmp_path / "evidence").rglob("*.safetensors")
    path.write_bytes(b"weights of 0124")
    with pytest.raises(InputError, match="safetensors is torn or was edited"):
        restore([tmp_path / "evidence"], RunStore(tmp_path / "copy"))


def test_evidence_whose_names_lead_out_of_its_folder_is_refused(
    filled: SweepPlan, store: RunStore, tmp_path: Path
) -> None:
    evidence = tmp_path / "evidence" / "toy"
    export(filled, store, tmp_path / "evidence")
    said = json.loads((evidence / "plan.json").read_text())
    del said["sha256"]
    said["name"] = "../toy"
    seal = sha256(json.dumps(said, sort_keys=True).encode())
    (evidence / "plan.json").write_text(json.dumps(said | {"sha256": seal}))
    with pytest.raises(InputError, match=r"named as folders are, but got '\.\./toy'"):
        read_evidence(evidence)


def test_damaged_records_are_not_given_a_new_hash(filled: SweepPlan, store: RunStore, tmp_path: Path) -> None:
    path = store.root / "runs" / "kd-1" / "attempt-1" / "records.jsonl"
    path.write_bytes(path.read_bytes().replace(b"0.85", b"0.95"))
    with pytest.raises(InputError, match=r"records\.jsonl is damaged .* next sweep makes it anew"):
        export(filled, store, tmp_path / "evidence")


def test_folder_that_cannot_be_written_or_is_a_store_is_refused(
    filled: SweepPlan, store: RunStore, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/kdbench")):
        with pytest.raises(InputError, match=r"cannot be written: .* Give another folder\."):
            export(filled, store, folder)
    RunStore(tmp_path / "trained")
    (tmp_path / "swept").mkdir()
    (tmp_path / "swept" / "driver.lock").touch()
    for folder in (store.root, tmp_path / "trained", tmp_path / "swept"):
        with pytest.raises(InputError, match="is a run store: export into a folder of its own"):
            export(filled, store, folder)


def test_store_that_is_swept_or_evidence_itself_is_not_imported_into(
    filled: SweepPlan, store: RunStore, tmp_path: Path
) -> None:
    export(filled, store, tmp_path / "evidence")
    for folder in (tmp_path / "evidence", tmp_path / "evidence" / "toy"):
        with pytest.raises(InputError, match=rf"is evidence, in which nothing is trained: kdbench import {folder}"):
            RunStore(folder)
    other = RunStore(tmp_path / "other")
    with other.exclusive(), pytest.raises(InputError, match="another sweep is using .*other: wait for it"):
        restore([tmp_path / "evidence"], RunStore(tmp_path / "other"))
    with pytest.raises(InputError, match="nothing holds no evidence: give a folder that kdbench export wrote"):
        restore([tmp_path / "nothing"], other)
