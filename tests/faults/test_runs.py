"""One run's files under every fault: killed at each write, cut, flipped, without room, by eight at once."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kdbench.bench.errors import full_disk
from kdbench.bench.training.run_state import opened
from kdbench.results.store import attempt as attempt_module
from kdbench.results.store.files import read_lines
from kdbench.results.store.run_store import RunStore
from tests.conftest import Figure
from tests.faults.lives import EPOCHS, TEXT, doomed, launched, processes, train
from tests.results.conftest import epoch, outcome


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "store")


def check(store: RunStore, key: str = "k") -> None:
    """The run is what an undisturbed one is."""
    run = store.get(key)
    assert run is not None and run.finished and store.damage(key) == ""
    assert [each.number for each in run.epochs] == list(range(1, EPOCHS + 1))
    assert store.weights(f"run:{key}") == bytes(range(1, EPOCHS + 1))
    assert run.folder is not None and sorted(path.name for path in (store.root / "runs" / key).iterdir()) == sorted(
        ["DONE.json", run.folder.name, "lock", "spec.json"]
    )


@pytest.mark.fault("2")
def test_death_at_every_call_that_changes_the_disk_leaves_no_step_out_and_repeats_none(
    tmp_path: Path, figure: Figure
) -> None:
    deaths, context = 0, processes()
    for place in range(1, 200):
        codes = []
        for after in (False, True):
            root = tmp_path / f"{place}-{after}"
            process = context.Process(target=doomed, args=(root, place, after))
            process.start()
            process.join()
            codes.append(process.exitcode)
            store = RunStore(root)
            if not (store.root / "runs" / "k" / "DONE.json").exists():
                train(store)
            elif process.exitcode:  # it died after it was done: what it had left to remove stays, and harms no one
                assert store.get("k").finished and store.damage("k") == ""  # type: ignore[union-attr]
                shutil.rmtree(root)
                continue
            check(store)
            shutil.rmtree(root)
        deaths += sum(code != 0 for code in codes)
        if codes == [0, 0]:
            break
    assert place > 40 and codes == [0, 0]
    figure(f"{deaths} deaths at {place - 1} places, 0 epochs left out or twice")


@pytest.mark.fault("4")
def test_damaged_checkpoint_is_refused_and_the_one_before_used(store: RunStore, figure: Figure) -> None:
    draw = random.Random(0)
    with store.attempt("k", TEXT, lambda _: None, checkpoint_seconds=0) as first:
        for number in (1, 2):
            first.epoch(epoch(number, of=EPOCHS), lambda: draw.randbytes(5000))
    path, before = first.folder / "checkpoint-000002.pt", (first.folder / "checkpoint-000001.pt").read_bytes()
    whole = path.read_bytes()
    damages = [whole[: len(whole) * tenth // 10] for tenth in range(10)]
    for place in draw.sample(range(len(whole)), 100):
        damages.append(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
    detected = 0
    for damaged in damages:
        path.write_bytes(damaged)
        with store.attempt("k", TEXT, lambda _: None) as second:
            detected += second.checkpoint() == before and [each.number for each in second.kept] == [1]
        shutil.rmtree(second.folder)
    assert detected == 110
    path.write_bytes(whole)
    with store.attempt("k", TEXT, lambda _: None) as second:
        assert second.checkpoint() == whole
    figure(f"{detected} of 110 damages detected, the checkpoint before taken each time")


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.fault("5")
def test_checkpoint_with_a_payload_is_refused_and_runs_nothing(tmp_path: Path, figure: Figure) -> None:
    torch.save({"format": 1, "place": Payload(tmp_path / "marker")}, tmp_path / "checkpoint.pt")
    with pytest.raises(Exception, match="(?s)weights_only|Unsupported"):
        opened((tmp_path / "checkpoint.pt").read_bytes(), torch.device("cpu"))
    assert not (tmp_path / "marker").exists()
    figure("refused, nothing executed")


@pytest.mark.fault("6")
@pytest.mark.parametrize("tail", [b'{"event": "epoch", "ti', b"\0" * 4096, b'{"event": "epoch"}\0\0'])
def test_torn_tail_is_cut_and_what_follows_can_be_read(store: RunStore, tail: bytes, figure: Figure) -> None:
    with store.attempt("k", TEXT, lambda _: None, checkpoint_seconds=0) as first:
        for number in (1, 2):
            first.epoch(epoch(number, of=EPOCHS), lambda: bytes(range(1, number + 1)))  # noqa: B023
    path = first.folder / "records.jsonl"
    whole = read_lines(path)
    with path.open("ab") as file:
        file.write(tail)
    assert read_lines(path) == whole
    train(store)
    check(store)
    figure("0 whole lines lost")


@pytest.mark.fault("8")
def test_of_eight_launchers_one_carries_each_run_out(tmp_path: Path, figure: Figure) -> None:
    context, keys, ledger = processes(), [f"key-{number}" for number in range(50)], tmp_path / "ledger"
    begin = context.Barrier(9)
    launchers = [
        context.Process(target=launched, args=(tmp_path / "store", keys[shift:] + keys[:shift], begin, ledger))
        for shift in (0, 0, 0, 0, 0, 0, 25, 25)
    ]
    for launcher in launchers:
        launcher.start()
    begin.wait()
    started = time.monotonic()
    for launcher in launchers:
        launcher.join()
    took = time.monotonic() - started
    assert [launcher.exitcode for launcher in launchers] == [0] * 8
    assert sorted(ledger.read_text().split()) == sorted(keys)
    store = RunStore(tmp_path / "store")
    for key in keys:
        check(store, key)
    figure(f"0 of 50 runs carried out twice, 0 left out, {took:.1f} s for all eight")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own, of 5 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here: it takes the rights of root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.fault("7")
def test_full_disk_costs_no_finished_run_and_the_run_goes_on_when_there_is_room(small: Path, figure: Figure) -> None:
    store, full, filler = RunStore(small / "store"), 0, small / "filler"
    train(store, "finished", 1000)
    for room in range(0, 500_000, 12_288):
        key = f"run-{room}"
        free = shutil.disk_usage(small).free - room
        with filler.open("wb") as file:
            file.write(b"\0" * max(0, free))
        try:
            train(store, key, 20_000)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            full += 1
            known = store.get(key)
            assert known is None or not known.finished
        filler.unlink()
        if not ((known := store.get(key)) and known.finished):
            train(store, key, 20_000)
        check(store, key)
        shutil.rmtree(store.root / "runs" / key)
        check(store, "finished")
    assert full > 20
    figure(f"{full} times no space left, each time the run went on later; 0 finished runs lost")


def test_full_disk_is_found_behind_what_libraries_make_of_it() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise AssertionError("Should not reach.")  # noqa: B904
    except AssertionError as error:
        assert full_disk(error) == "[Errno 28] No space left on device"
    assert full_disk(ValueError("(sqlite3.OperationalError) database or disk is full")) != ""
    assert full_disk(OSError(errno.EACCES, "Permission denied")) == ""


@pytest.mark.fault("clock")
@pytest.mark.parametrize("jump", [86_400.0, -86_400.0])
def test_jump_of_the_clock_changes_no_result_and_no_time_is_negative(
    store: RunStore, jump: float, monkeypatch: pytest.MonkeyPatch, figure: Figure
) -> None:
    from kdbench.results.pages.report import render
    from kdbench.results.pages.run_summary import run_summary_report

    real, calls = time.time, [0]

    def jumping() -> float:
        calls[0] += 1
        return real() + (jump if calls[0] > 3 else 0.0)

    monkeypatch.setattr(attempt_module.time, "time", jumping)
    train(store)
    monkeypatch.undo()
    check(store)
    run = store.get("k")
    assert run is not None and run.outcome == outcome(0.9) and render(run_summary_report(run))
    figure(f"{jump / 3600:+.0f} h in the middle of a run: the result is the same")


@pytest.mark.fault("read-only")
def test_store_that_cannot_be_written_is_read_and_refused_by_name(small: Path, figure: Figure) -> None:
    from tests.sweeps.commands import kdbench

    store = RunStore(small / "store")
    train(store)
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    code, out, err = kdbench("runs", "--store", str(store.root), "--json")
    assert code == 0 and json.loads(out)["runs"][0]["key"] == "k", err
    code, _, err = kdbench("sweep", "digits", "--store", str(store.root))
    assert code == 2 and "Traceback" not in err and "cannot be written" in err and str(store.root) in err, err
    figure("its runs are shown; a sweep is refused in one line that names it")
