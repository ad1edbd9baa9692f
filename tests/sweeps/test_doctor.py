"""A store is checked file by file, what is wrong is named with what will be done, and mended without loss."""

from __future__ import annotations

import functools
import json
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from kdbench.bench.teachers.backends import Disk
from kdbench.results.store.plan import SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.sweeps.doctor.visit import MENDED, visit
from kdbench.sweeps.scheduling.database import Database
from tests.results.conftest import SPEC, epoch, fill, finish, full, plan, store
from tests.sweeps.commands import kdbench

__all__ = ["fill", "finish", "full", "plan", "store"]


@pytest.fixture
def sound(full: SweepPlan, store: RunStore) -> RunStore:
    """A store with every kind of file that a sweep leaves, but MLflow's database."""
    Disk(store.root / "cache", 2**20).put("answer", {"logits": torch.ones(4)})
    Database(f"sqlite:///{store.root / 'optuna.db'}")
    store.import_weights(safetensors.torch.save({"weight": torch.ones(2)}))
    (store.root / "compute.json").write_text("{}")
    assert not any(map(store.damage, store.keys()))
    with store.attempt("interrupted", json.dumps(SPEC), lambda _: None, checkpoint_seconds=0) as attempt:
        for number in (1, 2):
            attempt.epoch(epoch(number), lambda: b"state" * number)  # noqa: B023
    (attempt.folder / "claim.json").write_text('{"host": "elsewhere", "pid": 1, "time": 0}')
    os.utime(attempt.folder / "claim.json", (0, 0))
    return store


def finished(store: RunStore) -> dict[str, bytes]:
    done = filter(functools.partial(_done, store), store.keys())
    return {key: (store.root / "runs" / key / "DONE.json").read_bytes() for key in done}


def _done(store: RunStore, key: str) -> bool:
    run = store.get(key)
    return run is not None and run.finished


def test_sound_store_is_whole_and_is_not_touched(sound: RunStore) -> None:
    before = {path: path.stat().st_mtime_ns for path in sound.root.rglob("*")}
    code, out, err = kdbench("doctor", str(sound.root))
    assert code == 0 and out.endswith(f"{sound.root}: 13 runs; whole.\n"), out + err
    assert {path: path.stat().st_mtime_ns for path in sound.root.rglob("*")} == before
    assert kdbench("doctor", str(sound.root), "--mend")[0] == 0


def flipped(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


FILES = {
    "runs/kd-1/spec.json": "runs/kd-1",
    "runs/kd-1/DONE.json": "runs/kd-1",
    "runs/kd-1/attempt-1/records.jsonl": "runs/kd-1",
    "runs/kd-1/attempt-1/last.safetensors": "runs/kd-1",
    "runs/interrupted/attempt-1/checkpoint-000002.pt": "",
    "imported/*.safetensors": "",
    "cache/answer.safetensors": "",
    "suites/toy/abcd1234/suite.json": "",
    "suites/toy/abcd1234/plan.jsonl": "",
    "optuna.db": "",
    "compute.json": "",
    "verified.jsonl": "",
}
"""A file of each kind, and what its finding names where that is not the file itself."""
PLACES = {".json": 0, ".jsonl": 0, ".db": 2}
"""Where a bit is flipped in files that have no hash; elsewhere in the middle."""


@pytest.mark.fault("bits")
@pytest.mark.parametrize("name", FILES)
def test_flipped_bit_in_a_file_of_each_kind_is_named_and_mended(name: str, sound: RunStore, figure: object) -> None:
    (path,) = sound.root.glob(name)
    before = finished(sound)
    flipped(path, PLACES.get(path.suffix, path.stat().st_size // 2))
    (found,) = visit(sound, mend=False)
    assert found.finding.path == sound.root / (FILES[name] or path.relative_to(sound.root)) and found.open
    (mended,) = visit(sound, mend=True)
    assert mended.said == MENDED and not mended.open
    assert visit(sound, mend=False) == []
    after = finished(sound)
    lost = {"kd-1"} if FILES[name] else set()
    assert before.keys() - after.keys() == lost and after.items() <= before.items()
    figure(f"{name.replace('*', 'SHA256')}: named, mended")  # type: ignore[operator]


def test_what_the_dead_have_left_is_removed_and_the_run_goes_on(sound: RunStore) -> None:
    root = sound.root
    shutil.copytree(root / "runs/kd-1/attempt-1", root / "runs/kd-1/attempt-7")
    (root / "runs/kd-1/attempt-1/checkpoint-000001.pt").write_bytes(b"old")
    shutil.copytree(root / "runs/interrupted/attempt-1", root / "runs/interrupted/attempt-2")
    with (root / "runs/interrupted/attempt-2/records.jsonl").open("ab") as file:
        file.write(b'{"event": "ep')
    (root / "runs/empty").mkdir()
    (root / "runs/blocked").touch()
    (root / "runs/kd-2/.DONE.json.999999999.tmp").write_bytes(b"half")
    (root / f"runs/kd-2/.DONE.json.{os.getpid()}.tmp").write_bytes(b"of a process that lives")
    (root / "workers").mkdir()
    (root / "workers/999999999-0.log").touch()
    found = {str(each.finding.path.relative_to(root)) for each in visit(sound, mend=False)}
    assert found == {
        *("runs/kd-1/attempt-7", "runs/kd-1/attempt-1/checkpoint-000001.pt", "runs/interrupted/attempt-1"),
        *("runs/interrupted/attempt-2/records.jsonl", "runs/empty", "runs/blocked"),
        *("runs/kd-2/.DONE.json.999999999.tmp", "workers/999999999-0.log"),
    }
    before = finished(sound)
    assert all(each.said == MENDED for each in visit(sound, mend=True))
    assert visit(sound, mend=False) == [] and finished(sound) == before
    with sound.attempt("interrupted", json.dumps(SPEC), lambda _: None) as attempt:
        assert attempt.checkpoint() == b"state" * 2 and [each.number for each in attempt.kept] == [1, 2]


def test_finding_says_file_meaning_and_remedy_and_the_exit_code_whether_any_is_left(sound: RunStore) -> None:
    (sound.root / "runs/kd-1/attempt-1/best.safetensors").unlink()
    code, out, _ = kdbench("doctor", str(sound.root))
    assert code == 1 and f"{sound.root}/runs/kd-1: best.safetensors of a finished run: not what was written" in out
    assert "with --mend: set aside in damaged; the next sweep of it, or the same run again, makes it anew" in out
    code, out, _ = kdbench("doctor", str(sound.root), "--mend", "--json")
    assert code == 0 and json.loads(out)["left"] == 0
    assert (sound.root / "damaged/kd-1/DONE.json").exists() and not (sound.root / "runs/kd-1").exists()


def test_run_under_way_is_passed_over_and_a_sweep_keeps_the_doctor_from_mending(sound: RunStore) -> None:
    with sound.attempt("interrupted", json.dumps(SPEC), lambda _: None) as attempt:
        with (attempt.folder / "records.jsonl").open("ab") as file:
            file.write(b'{"half')
        assert visit(sound, mend=False) == []
    with sound.exclusive():
        code, _, err = kdbench("doctor", str(sound.root), "--mend")
        assert code == 2 and "another sweep is using" in err
