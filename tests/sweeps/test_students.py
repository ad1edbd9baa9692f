"""Students of real runs exported, then loaded by the lines of their own card where this package cannot be imported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from kdbench.bench.atomic import write
from kdbench.bench.deploy import check
from kdbench.bench.deploy.student import student_of
from kdbench.bench.evaluation.latency import Timing, timed
from kdbench.bench.spec import DataSpec, ModelSpec, Recipe, Spec
from kdbench.bench.tasks import load
from kdbench.methods.rows import whole
from kdbench.results.store.run_store import RunStore
from kdbench.sweeps.scheduling.workers import carry_out
from tests.sweeps.commands import kdbench

NOWHERE = Path("/nonexistent")
DIGITS = DataSpec(name="digits", train_fraction=0.2, validation=0.25)
RECIPE = Recipe(epochs=2, batch_size=64, augment="none", schedule="constant", lr=0.1)
OURS = Spec(method="student", student=ModelSpec(name="cifar_resnet8_quarter"), data=DIGITS, recipe=RECIPE)
TIMM = OURS.model_copy(
    update={"student": ModelSpec(name="test_resnet"), "data": DIGITS.model_copy(update={"image_size": 16})}
)
PIXELS = OURS.model_copy(
    update={"data": DataSpec(name="composed-digits", task="segmentation", train_fraction=0.1), "recipe": RECIPE}
)
TRIAL = OURS.model_copy(update={"test": False})
TAUGHT = OURS.model_copy(
    update={
        "method": "vild",
        "params": {"novel_share": 0.0},
        "teachers": (ModelSpec(name="cifar_resnet8_quarter", weights=f"run:{OURS.key}"),),
    }
)
BEGUN = OURS.model_copy(update={"seed": 7})
WITHOUT_US = "import sys\nsys.modules.update(dict.fromkeys(('bench', 'methods', 'sweeps', 'results')))\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """A store with a run of each kind, one of them only begun."""
    store = RunStore(tmp_path_factory.mktemp("store"))
    for spec in (OURS, TIMM, PIXELS, TRIAL, TAUGHT):
        assert carry_out(spec, store, NOWHERE, torch.device("cpu"), lambda epoch: True).status == "done"
    (store.root / "runs" / BEGUN.key).mkdir()
    write(store.root / "runs" / BEGUN.key / "spec.json", BEGUN.canonical().encode())
    return store


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbench.sweeps.students.timed", lambda calls: timed(calls, repeats=3, warm_up=1))


def exported(store: RunStore, spec: Spec, folder: Path, *options: str) -> dict[str, object]:
    code, out, err = kdbench("export-student", spec.key, "--out", str(folder), "--store", str(store.root), *options)
    assert code == 0, err
    values: dict[str, object] = json.loads((folder / "kdbench.json").read_text())
    assert values["max_abs_difference"] <= 1e-3 and "logits differ by at most" in out  # type: ignore[operator]
    return values


def answered(store: RunStore, spec: Spec, which: str = "last") -> tuple[np.ndarray, np.ndarray]:
    """Pixels of the test part, and what the network that was trained says of them."""
    data = load(spec.data, NOWHERE)
    student = student_of(spec, data, store.weights(f"run:{spec.key}", f"{which}.safetensors"))
    images = whole(data.test.inputs)[:40]
    return images.numpy(), student.graph()(images).numpy()


def by_the_card(folder: Path, images: np.ndarray, before: str = "", after: str = "") -> np.ndarray:
    """What the card's own three lines and the line that uses them answer, in a process that lacks this package."""
    card = (folder / "README.md").read_text()
    lines = re.search(r"```python\n(.*?)\n```", card, re.DOTALL)[1]  # type: ignore[index]
    use = re.search(r"Then `(.*?)`, of", card)[1]  # type: ignore[index]
    assert len(lines.splitlines()) == 3
    np.save(folder.parent / "images.npy", images)
    code = f"import numpy\nimages = numpy.load('../images.npy')\n{lines}\n{before or use}\n"
    code += (
        f"import torch\nwith torch.no_grad():\n    {after or use}\nnumpy.save('../logits.npy', numpy.asarray(logits))\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_US + code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    logits: np.ndarray = np.load(folder.parent / "logits.npy")
    return logits


def test_a_timm_folder_takes_images_as_they_are(store: RunStore, tmp_path: Path) -> None:
    exported(store, TIMM, tmp_path / "out", "--to", "timm")
    images, ours = answered(store, TIMM)
    from_files = "from PIL import Image; pictures = [Image.fromarray(each[0], 'L') for each in images]"
    each = "logits = torch.cat([model(transform(image).unsqueeze(0)) for image in pictures])"
    theirs = by_the_card(tmp_path / "out", images, from_files, each)
    assert np.abs(theirs - ours).max() < 1e-4
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["label_names"] == [str(digit) for digit in range(10)] and config["architecture"] == "test_resnet"
    assert config["pretrained_cfg"]["input_size"] == [1, 16, 16] and config["pretrained_cfg"]["license"] is None


@pytest.mark.slow
def test_an_onnx_graph_takes_uint8_pixels_and_is_quantised(store: RunStore, tmp_path: Path) -> None:
    values = exported(store, OURS, tmp_path / "out", "--to", "onnx", "--int8", "static")
    images, ours = answered(store, OURS)
    assert images.dtype == np.uint8 and images.max() == 255
    assert np.abs(by_the_card(tmp_path / "out", images) - ours).max() < 1e-4
    assert abs(values["test_int8"] - values["test"]) < 0.1  # type: ignore[operator]
    sizes, card = values["bytes"], (tmp_path / "out" / "README.md").read_text()
    assert set(sizes) == {"model.onnx", "model_int8.onnx"} and set(values["one_image"]) == {"torch", "onnx", "int8"}  # type: ignore[call-overload]
    for said in (OURS.key, "one run of one seed", "int8 (static)", "median of", "settings", "cifar_resnet8_quarter"):
        assert said in card


@pytest.mark.parametrize("spec", [OURS, PIXELS], ids=["classes", "pixels"])
def test_torchscript_needs_torch_alone(store: RunStore, tmp_path: Path, spec: Spec) -> None:
    exported(store, spec, tmp_path / "out", "--to", "torchscript")
    images, ours = answered(store, spec)
    theirs = by_the_card(tmp_path / "out", images)
    assert theirs.shape == ours.shape and np.abs(theirs - ours).max() < 1e-4
    assert ours.shape[1:] == ((11, 32, 32) if spec is PIXELS else (10,))


def test_weights_are_of_the_epoch_that_was_asked_for(store: RunStore, tmp_path: Path) -> None:
    for which in ("last", "best"):
        exported(store, OURS, tmp_path / which, "--to", "safetensors", "--epoch", which)
        kept = safetensors.torch.load(store.weights(f"run:{OURS.key}", f"{which}.safetensors"))
        written = safetensors.torch.load_file(tmp_path / which / "model.safetensors")
        assert written and all(torch.equal(value, kept[f"model.{name}"]) for name, value in written.items())
    config = json.loads((tmp_path / "last" / "config.json").read_text())
    assert config["pretrained_cfg"]["mean"] == pytest.approx(kept["mean"].flatten().tolist())


@pytest.mark.slow
def test_onnx_has_a_class_for_each_pixel(store: RunStore, tmp_path: Path) -> None:
    exported(store, PIXELS, tmp_path / "out", "--to", "onnx", "--int8", "dynamic")
    images, ours = answered(store, PIXELS)
    assert np.abs(by_the_card(tmp_path / "out", images) - ours).max() < 1e-3


@pytest.mark.slow
def test_mlflow_serves_it(store: RunStore, tmp_path: Path) -> None:
    exported(store, OURS, tmp_path / "out", "--to", "mlflow")
    images, ours = answered(store, OURS)
    assert np.abs(by_the_card(tmp_path / "out", images) - ours).max() < 1e-4
    (tmp_path / "asked.json").write_text(json.dumps({"inputs": {"images": images[:2].tolist()}}))
    command = [str(Path(sys.executable).with_name("mlflow")), "models", "predict", "-m", str(tmp_path / "out")]
    command += ["-i", str(tmp_path / "asked.json"), "-o", str(tmp_path / "said.json"), "-t", "json"]
    subprocess.run([*command, "--env-manager", "local"], check=True, cwd=tmp_path, capture_output=True)
    said = json.loads((tmp_path / "said.json").read_text())["predictions"]["logits"]
    assert np.abs(np.array(said) - ours[:2]).max() < 1e-4


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (BEGUN, ["--to", "onnx"], f"a run that is done can be exported, but {BEGUN.key} is interrupted"),
        (TRIAL, ["--to", "onnx"], f"run {TRIAL.key} is a tuning trial"),
        (OURS, ["--to", "timm"], "cifar_resnet8_quarter is no architecture of timm"),
        (PIXELS, ["--to", "timm"], "timm classifies images, so a student of the task segmentation cannot be"),
        (OURS, ["--to", "onxx"], "unknown format of a student 'onxx': did you mean onnx?"),
        (OURS, ["--to", "torchscript", "--int8", "static"], "--int8 is made of an ONNX file, but got --to torchscript"),
        (OURS, ["--to", "onnx", "--int8", "statik"], "unknown way of --int8 'statik': did you mean static?"),
        (OURS, ["--to", "safetensors", "--epoch", "lst"], "unknown epoch 'lst': did you mean last"),
        (OURS, ["--to", "safetensors", "--board"], "this run is in none: leave it out"),
        (TAUGHT, ["--to", "safetensors"], "vild decides with modules of its own beside the network"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line(
    store: RunStore, tmp_path: Path, spec: Spec, options: list[str], message: str
) -> None:
    folder = tmp_path / "out"
    code, out, err = kdbench("export-student", spec.key, "--out", str(folder), "--store", str(store.root), *options)
    assert code == 2 and not out and message in err.splitlines()[-1]
    assert not folder.exists()


def test_an_export_that_answers_otherwise_is_not_kept(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["export-student", OURS.key, "--to", "safetensors", "--store", str(store.root), "--out"]
    monkeypatch.setattr(check, "TOLERANCE", -1.0)
    code, _, err = kdbench(*command, str(tmp_path / "out"))
    assert code == 2 and "does not answer as ours does: logits differ by up to 0 on the test part" in err
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    code, _, err = kdbench(*command, str(tmp_path / "full"))
    assert code == 2 and "is there and not empty" in err and (tmp_path / "full" / "mine").exists()


def test_a_time_is_a_median_with_quartiles() -> None:
    calls: list[str] = []
    times = timed({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=5, warm_up=2, rounds=1)
    assert calls == ["a", "b"] * 7, "in turn, those for warming up among them"
    assert times["a"].low <= times["a"].median <= times["a"].high
    assert str(Timing(0.411, 0.4, 0.432)) == "0.411 ms (quartiles 0.4 to 0.432)"
