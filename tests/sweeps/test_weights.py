"""What models' names mean: random weights, published ones, those of a folder, and a user's own checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants

from kdbench.bench.data.images import ImageSplits
from kdbench.bench.data.splits import Splits
from kdbench.bench.errors import InputError
from kdbench.bench.networks.build import build
from kdbench.bench.networks.checkpoints import load_weights
from kdbench.bench.networks.run_networks import RunNetworks
from kdbench.bench.spec import DataSpec, ModelSpec, Spec
from kdbench.bench.tasks import task_of
from kdbench.bench.teachers.doubts import chance_doubt, doubts
from kdbench.methods.base import STUDENT
from kdbench.results.store.plan import Planned
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.stored_run import StoredRun
from kdbench.sweeps.scheduling.study import teachers
from kdbench.sweeps.suites.files import load_suite
from kdbench.sweeps.suites.suite import Suite, plainly
from kdbench.sweeps.weights import doubting, named, started, with_checkpoints
from tests.results.conftest import outcome
from tests.sweeps.conftest import TINY

NAME = "test_resnet"


@pytest.fixture
def images(digits: Splits) -> ImageSplits:
    assert isinstance(digits, ImageSplits)
    return digits


def folder_of(path: Path, classes: int) -> dict[str, torch.Tensor]:
    """Writes a model as timm's users keep it; its weights."""
    path.mkdir()
    torch.manual_seed(classes)
    state: dict[str, torch.Tensor] = timm.create_model(NAME, num_classes=classes).state_dict()
    safetensors.torch.save_file(state, path / "model.safetensors")
    takes = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3, "first_conv": "conv1.0"}
    config = {"architecture": NAME, "num_classes": classes, "pretrained_cfg": {**takes, "classifier": "fc"}}
    (path / "config.json").write_text(json.dumps(config))
    return state


def test_a_folder_of_weights_for_these_classes_is_used_as_it_is(tmp_path: Path, images: ImageSplits) -> None:
    state, store, said = folder_of(tmp_path / "mine", 10), RunStore(tmp_path / "runs"), list[str]()
    model = started(ModelSpec(name=str(tmp_path / "mine")), images, store, said.append)
    assert model.ready and model.name == NAME and "published weights for 10 classes, as they are" in said[0]
    assert model.args == {"in_chans": 3, "input_size": 32, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    network = build(model, images)
    load_weights(network, store.weights(model.weights), NAME)
    assert all(torch.equal(value, state[name]) for name, value in network.model.state_dict().items())
    again = started(ModelSpec(name=f"local-dir:{tmp_path / 'mine'}"), images, store, said.append)
    assert again == model and model.learning.weights == model.weights.replace("sha256:", "start:")


def test_weights_for_other_classes_are_where_training_starts(tmp_path: Path, images: ImageSplits) -> None:
    state, store, said = folder_of(tmp_path / "mine", 7), RunStore(tmp_path / "runs"), list[str]()
    spec = ModelSpec(name=str(tmp_path / "mine"))
    model = started(spec, images, store, said.append)
    assert model.weights.startswith("start:") and not model.ready and "a new classifier tells the 10" in said[0]
    assert started(spec, images, store, said.append) == model  # the new classifier too
    networks = RunNetworks(task_of("image"), {"student": model}, images, 3, torch.device("cpu"), store.weights, None)  # type: ignore[arg-type]
    trained = networks.student(STUDENT).model.state_dict()
    kept = {name for name in state if trained[name].shape == state[name].shape}
    assert state.keys() - kept == {"fc.weight", "fc.bias"} and trained["fc.bias"].shape == (10,)
    assert all(torch.equal(trained[name], state[name]) for name in kept)


def test_a_plain_name_starts_from_random_weights_and_says_what_others_are_called(
    tmp_path: Path, images: ImageSplits
) -> None:
    store, said = RunStore(tmp_path), list[str]()
    for args in ({}, {"pretrained": False}):
        assert started(ModelSpec(name=NAME, args=args), images, store, said.append) == ModelSpec(name=NAME)
    assert said == [f"{NAME}: starts from random weights; published ones are named {NAME}.r160_in1k."] * 2
    own = ModelSpec(name="cifar_resnet8")
    assert started(own, images, store, said.append) == own and len(said) == 2


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        (f"{NAME}.r160_in1k", {}, rf"weights of {NAME}.r160_in1k are missing: .*models--timm--{NAME}.r160_in1k into"),
        (NAME, {"pretrained": True}, "are missing: .*--teacher-arg pretrained=false for random weights"),
        (NAME, {"pretrained": "yes"}, "pretrained of test_resnet is true or false, but got 'yes'"),
        (f"{NAME}.nowhere", {}, f"timm has no weights of {NAME}.nowhere"),
        ("hf-hub:timm/nowhere", {}, "hf-hub:timm/nowhere cannot be had: its config.json was asked for"),
        ("./nowhere", {}, "holds no model that timm can read: there is no config.json in it"),
    ],
)
def test_weights_that_cannot_be_had_say_what_was_tried(
    name: str, args: dict[str, Any], message: str, tmp_path: Path, images: ImageSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(InputError, match=message):
        started(ModelSpec(name=name, args=args), images, RunStore(tmp_path / "runs"), lambda text: None)


def test_a_path_is_a_folder_and_other_names_are_left(tmp_path: Path) -> None:
    folder_of(tmp_path / "mine", 3)
    assert named(str(tmp_path / "mine")) == f"local-dir:{tmp_path / 'mine'}"
    assert named("resnet18.a1_in1k") == "resnet18.a1_in1k" and named("hf-hub:a/b") == "hf-hub:a/b"


def test_a_checkpoint_teaches_a_suite_untrained(tmp_path: Path, images: ImageSplits) -> None:
    torch.save(timm.create_model("cifar_resnet8", num_classes=10, in_chans=1).state_dict(), tmp_path / "own.pt")
    (tmp_path / "tiny.toml").write_text(
        TINY.replace('teacher = "cifar_resnet8"', 'teacher = "cifar_resnet8"\nteacher_weights = ["own.pt"]')
    )
    suite, store = load_suite(str(tmp_path / "tiny.toml")), RunStore(tmp_path / "runs")
    plain = Suite.model_validate(
        suite.model_dump() | {"pairs": [{**suite.pairs[0].model_dump(), "teacher_weights": ()}]}
    )
    suite = with_checkpoints(suite, task_of("image"), images, store)
    assert suite.digest("fp32 on cpu") != plain.digest("fp32 on cpu")
    resolved = suite.resolve(suite.pairs[0], plainly, seed=2)
    assert not resolved.teachers and [model.weights for model in resolved.taught] == [*suite.pairs[0].teacher_weights]
    spec = suite.spec(resolved, "kd", {}, test=True)
    assert spec.teachers == resolved.taught and spec.seed == 2 and store.weights(spec.teachers[0].weights)
    assert list(teachers([resolved])) == []  # nothing is trained before the students
    assert len(plain.resolve(plain.pairs[0]).teachers) == 1
    with pytest.raises(InputError, match="teacher_weights are one for each of 1 teachers"):
        (tmp_path / "tiny.toml").write_text(TINY.replace("[data]", 'teacher_weights = ["a", "b"]\n[data]'))
        load_suite(str(tmp_path / "tiny.toml"))


class Brightness(torch.nn.Module):
    """Tells bright images from dark ones, if they are normalised as it expects."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([-mean, mean], dim=1)


def test_a_teacher_that_knows_nothing_or_is_normalised_otherwise_is_doubted(images: ImageSplits) -> None:
    import dataclasses

    from kdbench.bench.data.splits import Part
    from kdbench.bench.networks.network import Network

    pixels = torch.arange(0, 250, 5, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    part = Part(pixels, (torch.arange(50) >= 26).long())  # above 0.5
    data = dataclasses.replace(images, validation=part, mean=(0.2,), std=(0.2,), class_names=("dark", "bright"))
    assert doubts(task_of("image"), Network(Brightness(), (0.5,), (0.25,), 0), "ours", data) == []
    network = Network(Brightness(), (0.2,), (0.2,), 0)
    (warning,) = doubts(task_of("image"), network, "ours", data)
    assert "otherwise than it was trained: " in warning and "mean=[0.5] and std=[0.5]" in warning
    assert network.mean.item() == pytest.approx(0.2)  # as before
    near, *_ = doubts(task_of("image"), Network(Brightness(), (-1.0,), (0.25,), 0), "ours", data)
    assert (
        "teacher ours is near chance: 48.0 % on validation" in near
        and "in the order of the data's (dark, bright)" in near
    )
    assert chance_doubt("ours", 0.5, 0.1, "test") == ""


def test_a_sweep_says_once_of_each_teacher_that_it_is_near_chance() -> None:
    def ended(score: float) -> StoredRun:
        spec = Spec(method="student", student=ModelSpec(name="net"), data=DataSpec(name="digits"), seed=3)
        made = outcome(score, validation=score).model_copy(update={"confusion": [[5, 5], [5, 5]]})
        return StoredRun("k", spec, "done", "", [], made, 0.0, 0.0, [], None)

    said: list[str] = []
    told: list[object] = []
    report = doubting(lambda planned, news: told.append(news), said.append)
    teacher = Planned("a -> b", "teacher", "teacher", 3, "k")
    for planned in (teacher, teacher, Planned("a -> b", "kd", "seed", 3, "k")):
        report(planned, None)
        report(planned, ended(0.5))
    assert said == ["teacher net (seed 3) is near chance: 50.0 % on validation, the commonest class alone 50.0 %."]
    assert len(told) == 6
    doubting(lambda planned, news: None, said.append)(teacher, ended(0.9))
    assert len(said) == 1
