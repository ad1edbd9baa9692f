"""python -m kdbench.bench.speed: refuses what it cannot measure, and measures a tiny pair from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import kdbench.bench.speed.__main__ as command
from kdbench.bench.errors import InputError
from kdbench.bench.spec import ModelSpec
from kdbench.bench.speed.loops import Setting, engine, one_stage, operations, plain
from kdbench.bench.speed.machine import Watcher, cores, peak_memory
from kdbench.bench.speed.measure import Measuring, _entries, measured

TINY = ModelSpec(name="cifar_resnet8_quarter")
CPU = torch.device("cpu")


def setting(batches: int = 8, method: str = "kd", student: ModelSpec = TINY) -> Setting:
    return Setting(TINY, student, method, 4, batches, CPU)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"pairs": "cifar_resnet8:resnet_of_nobody"}, "model"),
        ({"pairs": "cifar_resnet8"}, "TEACHER:STUDENT"),
        ({"pairs": "cifar_resnet8:cifar_resnet8:cifar_resnet8"}, "TEACHER:STUDENT"),
        ({"pairs": ""}, "TEACHER:STUDENT"),
        ({"methods": "fitnets"}, "one stage"),
        ({"methods": "dml"}, "one student"),
        ({"methods": "student"}, "taught"),
        ({"methods": "kdd"}, "method"),
        ({"methods": "kd,"}, "method"),
        ({"device": "abacus"}, "abacus"),
        ({"precision": "fp64"}, "precision must be auto, measured, fp32 or bf16"),
        ({"batches": 13, "rounds": 10}, "--batches"),
        ({"batches": -1}, "--batches"),
    ],
    ids=lambda value: str(value),
)
def test_bad_input_is_refused_before_anything_is_measured(
    arguments: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measuring(*_: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(command, "Peaks", measuring)
    with pytest.raises(InputError, match=reason):
        command.main(**({"pairs": "cifar_resnet8:cifar_resnet8"} | arguments))


def test_rival_that_is_none_is_refused(tmp_path: Path) -> None:
    from kdbench.bench.speed.loops import repdistiller

    with pytest.raises(InputError, match="no checkout of RepDistiller"):
        repdistiller(setting(), tmp_path, 0)


@pytest.mark.parametrize("method", ["kd", "at"])
def test_every_loop_trains(method: str) -> None:
    given = setting(method=method)
    loops = [plain(given, 0), engine(given, "engine"), engine(given, "cached", 2, True)]
    assert [loop.images for loop in loops] == [4, 4, 8]
    for loop in loops:
        loop.step()
        loop.step()


def test_cached_loop_does_not_run_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    from kdbench.bench.teachers.frozen import FrozenTeacher

    asked: list[int] = []
    ask = FrozenTeacher._ask
    monkeypatch.setattr(FrozenTeacher, "_ask", lambda self, *given: asked.append(1) or ask(self, *given))
    loop = engine(setting(), "cached", 2, True)
    before = len(asked)
    loop.step()
    assert before == 8 and len(asked) == 8
    side_by_side = engine(setting(), "side by side", 3)
    side_by_side.step()
    assert len(asked) == 9


def test_operations_of_a_network_are_three_times_its_forward_pass_in_training() -> None:
    flops = operations(setting())
    assert 2.5 * flops["teacher"] < flops["student"] < 3 * flops["teacher"]


def test_machine_is_watched() -> None:
    watcher = Watcher()
    assert watcher.foreign() >= 0 and cores() >= 1
    assert peak_memory(lambda: None, CPU) > 2**20


def test_one_stage_is_a_method() -> None:
    assert one_stage("kd").id == "kd"


def test_rows_compare_every_loop_with_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import kdbench.bench.speed.measure as measure

    monkeypatch.setattr(measure, "UNIT", 0.0)
    monkeypatch.setattr(measure, "_memory", lambda entry: 1)
    peaks = {"float32": 1e12, "bfloat16": 2e12}
    rows = measured(setting(), Measuring(2, 3, 0, False, None, "fp32", peaks))
    assert [row.loop for row in rows] == [
        "plain loop",
        "engine, plain path",
        "engine",
        "engine, cache",
        "engine, 2 side by side",
        "engine, 2 side by side, cache",
    ]
    assert rows[0].ratio == 1 and all(row.images_per_second > 0 and row.start >= 0 for row in rows)
    assert all(row.measurements + row.dropped == 3 and 0 < row.share < 1 for row in rows)
    assert rows[3].ceiling == rows[5].ceiling > rows[4].ceiling > rows[2].ceiling


@pytest.mark.parametrize(("precision", "ceiling"), [("fp32", "float32"), ("bf16", "bfloat16"), ("auto", "float32")])
def test_only_the_plain_path_is_always_float32(precision: str, ceiling: str) -> None:
    entries = _entries(setting(), Measuring(2, 3, 0, True, None, precision, {}))
    assert [entry.precision for entry in entries] == ["float32", "float32", *[ceiling] * 5]


@pytest.mark.slow
def test_command_measures_a_tiny_pair(tmp_path: Path) -> None:
    sizes = ["--rounds", "3", "--batches", "20", "--batch-size", "8"]
    given = ["--pairs", "cifar_resnet8:cifar_resnet8", *sizes, "--precision", "fp32", "--no-compile", "--json"]
    command_line = [sys.executable, "-m", "kdbench.bench.speed", *given, "--output", str(tmp_path / "speed.json")]
    threads = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command_line, capture_output=True, text=True, timeout=600, env=threads, check=False)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values == json.loads((tmp_path / "speed.json").read_text())
    assert len(values["rows"]) == 6 and values["median_ratio"]["plain loop"] == 1
    assert all(row["images_per_second"] > 0 and row["memory"] > 2**20 for row in values["rows"])


@pytest.mark.slow
def test_command_refuses_in_one_line() -> None:
    command_line = [sys.executable, "-m", "kdbench.bench.speed", "--pairs", "cifar_resnet8"]
    done = subprocess.run(command_line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
