"""Files of a store that are not what was written: named, left out, made anew; no one of them takes a page down."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.results.analysis.leaderboard import leaderboard
from kdbench.results.analysis.status import status_of
from kdbench.results.pages.board import board_report
from kdbench.results.pages.report import render
from kdbench.results.pages.status import status_report
from kdbench.results.store.attempt import SILENT, Claim, claim_of
from kdbench.results.store.plan import SweepPlan
from kdbench.results.store.run_store import Busy, RunStore
from kdbench.results.store.stored_run import Damaged
from tests.results.conftest import SPEC, epoch, outcome, replanned


def changed(path: Path, old: bytes, new: bytes) -> None:
    text = path.read_bytes()
    assert old in text
    path.write_bytes(text.replace(old, new))


def said(plan: SweepPlan, store: RunStore) -> str:
    """The pages that are made of a store."""
    return render(board_report(leaderboard(plan, store))) + render(status_report(status_of(plan, store)))


def test_digit_changed_in_a_record_is_named_and_left_out_and_the_rest_stands(full: SweepPlan, store: RunStore) -> None:
    before = {row.method: row.score for row in leaderboard(full, store).rows}
    path = store.root / "runs" / "kd-2" / "attempt-1" / "records.jsonl"
    changed(path, b"0.86", b"0.96")
    board = leaderboard(full, store)
    scores = {row.method: row.score for row in board.rows}
    assert scores["kd"] is not None and scores["kd"].count == 2 and scores["kd"].mean == pytest.approx(0.86)
    assert scores["sp"] == before["sp"]
    assert board.damaged == [f"kd seed 2 of large -> small (kd-2): {path} is damaged or missing."]
    assert "Left out, and made anew by the next sweep: kd seed 2" in said(full, store).replace("\n", " ")
    assert f"damaged: kd seed (kd-2): {path}" in said(full, store)
    with pytest.raises(Damaged, match="makes it anew"):
        store.find("kd-2")


FILES = ("spec.json", "DONE.json", "attempt-1/records.jsonl")


@pytest.mark.parametrize("name", FILES)
def test_no_damage_of_a_file_takes_a_page_down_or_is_believed(name: str, full: SweepPlan, store: RunStore) -> None:
    """Twenty flipped bits and six lengths of each file of a run: the row lacks that seed, and a note says which."""
    path, draw = store.root / "runs" / "kd-2" / name, random.Random(0)
    whole = path.read_bytes()
    damages = [whole[:size] for size in (0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 1)]
    for _ in range(20):
        place = draw.randrange(len(whole))
        damages.append(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
    for damaged in damages:
        path.write_bytes(damaged)
        run = store.get("kd-2")
        assert run is not None
        if run.finished:  # of DONE.json only: a bit of a digest of weights, or of a name, tells nothing on the board
            assert name == "DONE.json" and run.outcome is not None and run.outcome.headline("last", "test") == 0.86
            continue
        board = leaderboard(full, store)
        score = next(row.score for row in board.rows if row.method == "kd")
        assert run.damaged and str(path.parent) in run.reason and len(board.damaged) == 1
        assert score is not None and score.mean == pytest.approx(0.86)  # of 0.85 and 0.87


def test_damaged_run_is_made_anew_and_nothing_of_it_is_taken_up(store: RunStore, finish: Callable[..., None]) -> None:
    finish("k", outcome(0.9))
    changed(store.root / "runs" / "k" / "attempt-1" / "records.jsonl", b"0.9", b"0.8")
    (store.root / "runs" / "k" / "spec.json").write_bytes(b"{")
    with store.attempt("k", json.dumps(SPEC), lambda _: None) as attempt:
        assert attempt.checkpoint() is None and attempt.kept == []
        attempt.epoch(epoch(1), lambda: b"one")
        attempt.finish(outcome(0.9), {"last": b"weights"})
    run = store.get("k")
    assert run is not None and run.finished and run.spec.method == "kd" and store.damage("k") == ""


def test_run_that_is_finished_cannot_be_carried_out_again(store: RunStore, finish: Callable[..., None]) -> None:
    finish("k", outcome(0.9))
    with pytest.raises(Busy, match="just been finished"):
        store.attempt("k", json.dumps(SPEC), lambda _: None)


def test_lines_of_a_plan_that_cannot_be_read_are_named_and_planned_anew(full: SweepPlan, store: RunStore) -> None:
    path = full.folder / "plan.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b'{"pair": \n', b"[1]\n", *lines[3:]]))
    assert f"{path}, line 2, is damaged." in leaderboard(full, store).damaged
    assert len(full.started()) == len(lines) - 2
    assert leaderboard(replanned(full, store), store).damaged == []
    assert len(full.started()) == len(lines) - 2


def test_damaged_suite_of_an_earlier_protocol_hides_no_later_one_and_its_own_is_written_anew(
    full: SweepPlan, store: RunStore
) -> None:
    earlier = SweepPlan.create(store.root, "toy", "0000", full.suite.values())
    (earlier.folder / "suite.json").write_bytes(b"{")
    assert SweepPlan.find(store.root, "toy").folder == full.folder
    (full.folder / "suite.json").write_bytes(b"\xff")
    with pytest.raises(Exception, match="suite.json is no suite that kdbench can read"):
        SweepPlan.find(store.root, "toy@abcd")
    assert replanned(earlier, store).methods("large -> small")


def test_checked_weights_are_not_read_again_until_they_change(store: RunStore, finish: Callable[..., None]) -> None:
    finish("k", outcome(0.9))
    assert store.damage("k") == ""
    path = store.root / "runs" / "k" / "attempt-1" / "best.safetensors"
    status = path.stat()
    path.write_bytes(b"BEST")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert RunStore(store.root).damage("k") == "", "by size and time it is what was checked"
    os.utime(path)
    assert str(path) in RunStore(store.root).damage("k")
    (store.root / "verified.jsonl").write_bytes(b"torn\n{}\n")
    assert str(path) in RunStore(store.root).damage("k")


def test_running_run_says_by_whom_since_when_and_how_far(full: SweepPlan, store: RunStore) -> None:
    (store.root / "runs" / "kd-3" / "DONE.json").unlink()
    with store.attempt("kd-3", json.dumps(SPEC), lambda _: None) as attempt:
        attempt.epoch(epoch(1), lambda: b"one")
        os.utime(attempt.folder / "claim.json", (0, os.stat(attempt.folder / "claim.json").st_mtime - 30))
        (running,) = status_of(full, store).running
        assert running.by.endswith(f":{os.getpid()}") and (running.epoch, running.of) == (1, 3)
        assert running.left == 1.0 and 29 < running.seen < 40 and running.since < 10
        assert f"by {running.by} for" in said(full, store) and "epoch 1 of 3, about 1 s left" in said(full, store)
    assert status_of(full, store).failures == []


def test_attempt_shows_life_while_it_lasts(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbench.results.store.attempt.BEAT", 0.02)
    with store.attempt("k", json.dumps(SPEC), lambda _: None) as attempt:
        path = attempt.folder / "claim.json"
        os.utime(path, (0, 0))
        attempt.ended.wait(1.0)
        claim = claim_of(attempt.folder)
        assert claim is not None and claim.seen > 1 and claim.alive


@pytest.mark.parametrize(
    ("host", "pid", "age", "alive"),
    [
        ("", os.getpid(), 0.0, True),
        ("", os.getpid(), 10**9, False),  # this process began after that claim: the number was used again
        ("", 2**22 + 1, 0.0, False),
        ("elsewhere", 1, 0.0, True),
        ("elsewhere", 1, 2 * SILENT, False),
    ],
    ids=["lives", "number used again", "gone", "elsewhere", "silent"],
)
def test_process_is_told_from_a_later_one_of_its_number(host: str, pid: int, age: float, alive: bool) -> None:
    import socket
    import time

    now = time.time() - age
    assert Claim(host or socket.gethostname(), pid, now, now).alive is alive
