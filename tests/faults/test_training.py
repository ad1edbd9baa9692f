"""Real training under faults: killed again and again, of a method that fails, on data that change, on a full disk."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from kdbench.results.store.files import attempts_of, done_of, read_lines
from tests.conftest import Figure
from tests.faults.sweeps import weights_of
from tests.sweeps.commands import kdbench
from tests.sweeps.conftest import tiny
from tests.sweeps.test_sweep import KDBENCH, begin, finished, numbers, swept, workers_of

__all__ = ["tiny"]

LONG = ("run", "--method", "student", "--student", "resnet10t", "--student-arg", "drop_rate=0.2", "--data", "digits")
LONG += ("--epochs", "200", "--train-fraction", "0.3", "--recipe", "augment=crop", "--device", "cpu", "--no-mlflow")


def carried_out(store: Path) -> dict[str, Any]:
    """The one run of a store: its weights by SHA-256, and its records without what a clock measured."""
    (folder,) = (store / "runs").iterdir()
    done = done_of(folder)
    assert done is not None
    epochs = [line["epoch"] for line in read_lines(folder / done["attempt"] / "records.jsonl") if "epoch" in line]
    weights = {name: digest for name, digest in done["files"].items() if name.endswith("safetensors")}
    return {"weights": weights, "epochs": [each | {"seconds": 0.0} for each in epochs]}


@pytest.mark.slow
@pytest.mark.fault("1, 3")
def test_run_killed_twenty_times_has_the_weights_and_the_record_of_an_undisturbed_one(
    tmp_path: Path, figure: Figure
) -> None:
    """With dropout and augmentation, whose draws depend on seed and epoch alone."""
    draw, repeated, store = random.Random(1), 0, tmp_path / "killed"
    assert kdbench(*LONG, "--store", str(tmp_path / "alone"))[0] == 0
    for _ in range(20):
        process = subprocess.Popen([*KDBENCH, *LONG, "--store", str(store)], stdout=subprocess.DEVNULL)
        begun = len(_recorded(store))
        while len(_recorded(store)) <= begun:
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(draw.uniform(0.0, 3.0))
        process.kill()
        process.wait()
        lines = _recorded(store)
        kept = max((number for number, line in enumerate(lines, start=1) if "checkpoint" in line), default=0)
        repeated += len(lines) - kept
    assert kdbench(*LONG, "--store", str(store))[0] == 0
    assert carried_out(store) == carried_out(tmp_path / "alone")
    figure(f"20 kills: weights and records equal to the bit, {repeated / 20:.1f} epochs repeated for each")


def _recorded(store: Path) -> list[dict[str, Any]]:
    """The epochs of the latest attempt."""
    attempts = [attempt for folder in store.glob("runs/*") for attempt in attempts_of(folder)]
    lines = read_lines(attempts[-1] / "records.jsonl") if attempts else []
    return [line for line in lines if line["event"] == "epoch"]


FAILING = '''"""Fails in a way."""

import torch

from kdbench.methods.base import Losses, Method, Paper, Step, method


@method
class Failing(Method):
    """Loss = what cannot be."""

    paper = Paper("None", "Nobody", 2025)

    def loss(self, step: Step) -> Losses:
        """None."""
        %s
'''
WAYS = {
    "raises": ('raise ValueError("of </script><script>alert(1)</script> ../../etc [/b]")', 3, "failed"),
    "diverges": ('return {"ce": step.task_loss()["ce"] * float("nan")}', 0, "diverged"),
    "finds no memory": ('raise torch.OutOfMemoryError("CUDA out of memory")', 3, "failed"),
}


@pytest.mark.slow
@pytest.mark.fault("14")
@pytest.mark.parametrize("way", WAYS)
def test_method_that_fails_is_named_with_its_reason_and_never_taken_for_a_result(
    way: str, tiny: Path, tmp_path: Path, figure: Figure
) -> None:
    body, expected, status = WAYS[way]
    (tmp_path / "failing.py").write_text(FAILING % body)
    store = tmp_path / "store"
    options = ("--methods", f"student,{tmp_path / 'failing.py'}", "--trials", "1", "--seeds", "1", "--json")
    code, out, err = kdbench("sweep", str(tiny), "--store", str(store), "--workers", "1", *options)
    assert code == expected and "Traceback" not in err, err
    rows = {row["method"].partition("@")[0]: row for row in json.loads(out)["rows"]}
    assert rows["student"]["status"] == "done" and rows["student"]["accuracy"]["mean"] > 0
    assert rows["Failing"]["accuracy"] is None
    code, out, _ = kdbench("runs", "--store", str(store), "--state", status, "--json")
    listed = [run for run in json.loads(out)["runs"] if run["method"].startswith("Failing")]
    assert listed and all(run["status"] == status for run in listed)
    if status == "failed":
        texts = [path.read_text() for path in store.glob("runs/*/attempt-*/records.jsonl")]
        assert any('"event": "failed"' in text and "Traceback" in text for text in texts)
    figure(f"{way}: {len(listed)} {status} with the reason, an empty cell, exit code {code}, the other row whole")


def images(folder: Path, seed: int) -> None:
    """Three classes of forty digits each as files; the seed moves each image's first pixel."""
    data, draw = load_digits(), np.random.default_rng(seed)
    for name in (0, 1, 2):
        place = folder / str(name)
        place.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(data.images[data.target == name][:40]):
            pixels = (image * 15).astype(np.uint8)
            pixels[0, 0] = draw.integers(0, 255)
            Image.fromarray(pixels).convert("RGB").save(place / f"{number:02}.png")


@pytest.mark.slow
@pytest.mark.fault("data")
def test_data_that_change_under_a_sweep_are_the_machines_fault_and_it_goes_on_when_they_are_back(
    tiny: Path, tmp_path: Path, figure: Figure
) -> None:
    folder, text = tmp_path / "images", tiny.read_text()
    images(folder, 1)
    text = text.replace('name = "digits"', f'name = "{folder}"\nimage_size = 8').replace("train_fraction = 0.1", "")
    tiny.write_text(text.replace('["student", "kd", "sp"]', '["student"]').replace("epochs = 4", "epochs = 40"))
    alone = swept(tmp_path / "alone", tiny)
    store = tmp_path / "store"
    process = begin(store, tiny)
    while not list(store.glob("runs/*/attempt-*/checkpoint-*")) and len(finished(store)) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    images(folder, 2)
    for worker in workers_of(process.pid):  # the next ones read the data anew
        os.kill(worker, signal.SIGKILL)
    _, err = process.communicate(timeout=600)
    assert process.returncode in (2, 3) and "the files have changed" in err and "Traceback" not in err, err
    before = finished(store)
    images(folder, 1)
    assert numbers(swept(store, tiny)) == numbers(alone) and weights_of(store) == weights_of(tmp_path / "alone")
    assert before.items() <= finished(store).items()
    figure(f"refused by name, exit code {process.returncode}; put back, it ended with the undisturbed table to the bit")


@pytest.mark.slow
@pytest.mark.fault("full disk")
def test_sweep_on_a_full_disk_names_it_and_goes_on_when_there_is_room(
    tiny: Path, tmp_path: Path, figure: Figure
) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(place)], capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here: it takes the rights of root")
    try:
        alone, store = swept(tmp_path / "alone", tiny), place / "store"
        process = begin(store, tiny, "--teacher-cache", "off")
        while len(finished(store)) < 3:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        with (place / "filler").open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(b"\0" * 4096)
                file.flush()
        _, err = process.communicate(timeout=600)
        assert process.returncode == 3 and "Traceback" not in err, err
        assert "No space left on device" in err or "database or disk is full" in err, err
        before = finished(store)
        (place / "filler").unlink()
        assert numbers(swept(store, tiny, "--teacher-cache", "off")) == numbers(alone)
        assert before.items() <= finished(store).items() and weights_of(store) == weights_of(tmp_path / "alone")
        figure(
            f"exit code {process.returncode}, the cause by name; with room again the undisturbed table to the bit, "
            f"{len(before)} finished runs kept"
        )
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


KINDS = (
    "spec.json",
    "DONE.json",
    "attempt-1/records.jsonl",
    "attempt-1/last.safetensors",
    "attempt-1/best.safetensors",
)
DATABASES = ("optuna.db", "mlflow.db")


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.fault("bits")
@pytest.mark.parametrize("mended", [True, False])
def test_flipped_bits_in_a_real_store_are_mended_to_the_undisturbed_table(
    mended: bool, tiny: Path, tmp_path: Path, figure: Figure
) -> None:
    """By the doctor, or by the next sweep alone, for which a database is made anew only if it is moved away."""
    alone, store = tmp_path / "alone", tmp_path / "store"
    board = swept(alone, tiny)
    shutil.copytree(alone, store)
    flips = [store / "runs" / key / name for key, name in zip(sorted(finished(store)), KINDS, strict=False)]
    flips += [next(store.glob("suites/tiny/*/plan.jsonl")), next(store.glob("cache/*.safetensors"))]
    for path in flips:
        flip(path, path.stat().st_size // 2)
    for path in (store / name for name in DATABASES if mended):
        flip(path, 2)
    if mended:
        code, out, _ = kdbench("doctor", str(store), "--json")
        named = {finding["path"] for finding in json.loads(out)["findings"]}
        assert code == 1 and len(named) == len(flips) + len(DATABASES)
        assert kdbench("doctor", str(store), "--mend")[0] == 0
    assert numbers(swept(store, tiny)) == numbers(board) and weights_of(store) == weights_of(alone)
    code, out, _ = kdbench("doctor", str(store))
    assert code == 0, out
    how = "the doctor and the next sweep" if mended else "the next sweep"
    figure(f"{len(flips)} files of 6 kinds, by {how}: the undisturbed table and weights to the bit")
