"""A search for a student: real trials in worker processes, a front on fresh seeds, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from kdbench.bench.errors import InputError
from kdbench.bench.record import ACCURACY
from kdbench.bench.spec import DataSpec, ModelSpec
from kdbench.bench.tasks import load, task_of
from kdbench.results.analysis.front import Trial, pareto
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.search import Candidate, Limits, kept_search
from kdbench.sweeps import candidates
from kdbench.sweeps.candidates import matching, milliseconds_of, parameters_of, searched
from tests.sweeps.commands import Run

KDBENCH = [sys.executable, "-c", "from kdbench.sweeps.cli import main; main()"]
TRIALS, SEEDS = 5, 2
SEARCH = [
    *("sweep", "tiny.toml", "--students", "cifar_resnet8*,cifar_resnet14", "--max-params", "100k"),
    *("--trials", str(TRIALS), "--seeds", str(SEEDS), "--epochs", "1", "--methods", "student,kd,sp"),
    *("--workers", "1", "--precision", "fp32", "--store", "runs"),
]


@pytest.mark.slow
def test_a_student_is_found_trained_and_handed_out(kdbench: Run, tiny: Path) -> None:
    code, out, err = kdbench(*SEARCH, "--plot", "front.png")
    assert code == 0, err
    assert f"Budget: {TRIALS} trials of 1 epochs over 2 students and 3 methods, then {SEEDS} seeds" in err
    assert "Left out: cifar_resnet14 has 17" in err and "more than 100k" in err and "Left out: cifar_resnet14" in out
    assert Path("front.png").read_bytes()[:4] == b"\x89PNG"
    plan, store = SweepPlan.find(Path("runs"), "tiny-students"), RunStore(Path("runs"))
    trials = [each for each in plan.runs() if each.phase == "trial"]
    seeds = [each for each in plan.runs() if each.phase == "seed"]
    assert sorted(each.number for each in trials) == list(range(TRIALS))
    assert {each.method for each in trials} == {"student", "kd", "sp"} and len({each.pair for each in trials}) == 2
    specs = {each.key: store.get(each.key).spec for each in (*trials, *seeds)}  # type: ignore[union-attr]
    assert all(not specs[each.key].test and specs[each.key].seed == 0 for each in trials), "validation alone"
    assert all(specs[each.key].test and specs[each.key].data.split_seed == each.number for each in seeds)

    before = {path: path.stat().st_mtime_ns for path in store.root.glob("runs/*/DONE.json")}
    search = kept_search(plan.folder)
    code, again, err = kdbench(*SEARCH, "--json")
    assert code == 0, err
    assert {path: path.stat().st_mtime_ns for path in store.root.glob("runs/*/DONE.json")} == before, "none is repeated"
    assert kept_search(plan.folder) == search, "nor is a student timed again"
    front = json.loads(again)["front"]
    assert 1 <= len(front) <= 2 and {key for point in front for key in point["runs"]} == {each.key for each in seeds}
    for point in front:
        scores = [store.get(key).outcome.headline("last", "test") for key in point["runs"]]  # type: ignore[union-attr]
        assert point["test"] == pytest.approx(sum(scores) / SEEDS) and point["half_width"] is not None  # type: ignore[arg-type]
    code, out, err = kdbench(
        *("export-student", front[0]["runs"][0], "--to", "safetensors", "--out", "out", "--board", "--store", "runs")
    )
    assert code == 0, err
    assert f"over {SEEDS} seeds" in Path("out", "README.md").read_text()


PICTURES = """
methods = ["student", "kd"]
seeds = 2
teacher_fraction = 1.0

[[pairs]]
teacher = "cifar_resnet8"
student = "cifar_resnet8_quarter"

[data]
name = "./pictures"
image_size = 16
validation = 0.25
test = 0.25

[recipe]
epochs = 1
batch_size = 16
lr = 0.05
schedule = "constant"
augment = "none"
"""
OWN = [
    *("sweep", "own.toml", "--students", "cifar_resnet8*,cifar_resnet14", "--max-latency", "20s"),
    *("--trials", "4", "--workers", "2", "--precision", "fp32", "--store", "runs"),
]


def pictures(folder: Path) -> None:
    """Three colours, 24 images of each."""
    for place, colour in enumerate(("red", "green", "blue")):
        (folder / colour).mkdir(parents=True)
        for number in range(24):
            pixels = torch.randint(0, 120, (16, 16, 3), generator=torch.Generator().manual_seed(100 * place + number))
            pixels[..., place] += 100
            Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / colour / f"{number}.png")


def finished(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.glob("runs/*/DONE.json")}


@pytest.mark.slow
def test_a_search_on_ones_own_images_within_a_latency_goes_on_after_it_was_killed(kdbench: Run, tmp_path: Path) -> None:
    pictures(tmp_path / "pictures")
    (tmp_path / "own.toml").write_text(PICTURES)
    process = subprocess.Popen([*KDBENCH, *OWN], stderr=subprocess.PIPE, text=True, start_new_session=True)
    while len(finished(tmp_path / "runs")) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = finished(tmp_path / "runs")
    plan = SweepPlan.find(tmp_path / "runs", "own-students")
    search = kept_search(plan.folder)
    code, out, err = kdbench(*OWN, "--json")
    assert code == 0, err
    assert search and kept_search(plan.folder) == search, "no student is timed again"
    assert before.items() <= finished(tmp_path / "runs").items(), "none is repeated"
    values = json.loads(out)
    assert values["cost"] == "latency" and values["trials"] == 4 and values["front"]
    assert {each.name for each in search.candidates} >= {"cifar_resnet8", "cifar_resnet8_quarter", "cifar_resnet14"}
    assert all(0 < each.latency_ms <= 20_000 for each in search.candidates)
    trials = [each for each in SweepPlan(plan.folder).runs() if each.phase == "trial"]
    assert sorted(each.number for each in trials) == list(range(4))
    costs = [point["latency_ms"] for point in values["front"]]
    assert costs == sorted(costs) and all(len(point["runs"]) == 2 for point in values["front"])

    code, out, err = kdbench("leaderboard", "own-students", "--store", "runs", "--json")
    assert code == 0 and json.loads(out)["front"] == values["front"], err
    assert kdbench("report", "own-students", "--store", "runs", "--out", "site")[0] == 0
    page = Path("site", "own-students", "index.html").read_text()
    assert "Pareto front of the students" in page and "trials and" in page and values["front"][0]["runs"][0] in page
    handed = ["export-student", values["front"][-1]["runs"][0], "--to", "safetensors", "--out", "out"]
    assert "--data-dir is where" in kdbench(*handed, "--store", "runs")[2], "the folder is named without its path"
    code, _, err = kdbench(*handed, "--data-dir", ".", "--store", "runs")
    assert code == 0, err
    assert json.loads(Path("out", "config.json").read_text())["label_names"] == ["blue", "green", "red"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--students", "mobilenetv9*"],
            "no model matches 'mobilenetv9*': unknown student 'mobilenetv9': did",
        ),
        (["--students", "cifar_resnet9"], "unknown model 'cifar_resnet9': did you mean"),
        (["--students", ","], "--students takes names"),
        (["--students", "cifar_resnet8*", "--max-params", "2X"], "--max-params takes a number above 0, as 500k or 2M"),
        (["--students", "cifar_resnet8*", "--max-latency", "0ms"], "--max-latency takes a time above 0, as 5ms"),
        (["--students", "cifar_resnet8*", "--max-params", "1k"], "no student is within the limits, of 3 that match"),
        (["--max-latency", "5ms"], "--max-latency is of a search for a student: give --students too"),
    ],
)
def test_what_cannot_be_searched_is_said_in_one_line(
    kdbench: Run, tiny: Path, options: list[str], message: str
) -> None:
    code, out, err = kdbench("sweep", "tiny.toml", "--store", "runs", *options)
    assert code == 2 and not out and message in err.splitlines()[-1]


def test_limits_are_read_in_their_units() -> None:
    assert [parameters_of(text) for text in ("500k", "2M", "1.5m", "1234")] == [500_000, 2_000_000, 1_500_000, 1234]
    assert [milliseconds_of(text) for text in ("5ms", "0.5s", "3", "2.5 ms")] == [5.0, 500.0, 3.0, 2.5]


def test_patterns_match_models_of_timm_and_ours_once() -> None:
    assert matching(["wrn_16_*", "wrn_16_2"]).count("wrn_16_2") == 1
    assert set(matching(["resnet1*"])) == {name for name in timm.list_models() if name.startswith("resnet1")}


@pytest.mark.parametrize("name", ["cifar_resnet8", "mobilenetv3_small_050", "mini_vit_3"])
def test_parameters_are_counted_without_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load(DataSpec(name="digits", image_size=32), Path("/nonexistent"))
    task = task_of("image")
    whole = task.build(ModelSpec(name=name), data).parameter_count()
    devices: list[str] = []
    create = timm.create_model

    def watched(*args: object, **kwargs: object) -> object:
        model = create(*args, **kwargs)
        devices.append(next(model.parameters()).device.type)
        return model

    monkeypatch.setattr(timm, "create_model", watched)
    assert candidates._parameters(ModelSpec(name=name), task, data) == whole
    assert set(devices) == {"meta"}


def test_a_slow_student_is_left_out_with_its_time() -> None:
    data = load(DataSpec(name="digits"), Path("/nonexistent"))
    said: list[str] = []
    with pytest.raises(InputError, match="no student is within the limits, of 1 that match"):
        limits = Limits(students=("cifar_resnet8",), latency_ms=1e-6)
        searched(limits, task_of("image"), data, torch.device("cpu"), said.append)
    assert "cifar_resnet8 takes" in said[0] and "quartiles" in said[0] and "more than 1e-06 ms" in said[0]


def test_the_front_has_what_no_other_beats_at_its_cost() -> None:
    def trial(number: int, cost: float, value: float) -> Trial:
        student = Candidate(name=f"s{cost}", parameters=int(cost), latency_ms=1, latency_low=1, latency_high=1)
        return Trial(Planned("pair", "kd", "trial", number, f"{number}"), student, cost, value)

    trials = [
        trial(0, 5, 0.9),
        trial(1, 1, 0.5),
        trial(2, 1, 0.5),
        trial(3, 3, 0.4),
        trial(4, 9, 0.9),
        trial(5, 5, 0.8),
    ]
    assert [each.planned.number for each in pareto(trials, ACCURACY.sign)] == [1, 0]
    assert [each.planned.number for each in pareto(trials, -1)] == [1, 3]
