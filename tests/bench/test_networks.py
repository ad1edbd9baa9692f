from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from kdbench.bench.data.splits import Splits
from kdbench.bench.errors import InputError
from kdbench.bench.networks.build import build
from kdbench.bench.networks.checkpoints import import_checkpoint, load_weights
from kdbench.bench.networks.network import Network
from kdbench.bench.networks.run_networks import RunNetworks
from kdbench.bench.networks.signals import observe
from kdbench.bench.spec import ModelSpec
from kdbench.bench.tasks import task_of
from kdbench.bench.teachers.cache import TeacherCache
from kdbench.methods.base import Net, Unsupported

CPU = torch.device("cpu")
SMALL = ModelSpec(name="cifar_resnet8_quarter")
VIT = ModelSpec(name="vit_tiny_patch16_224", args={"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2})


def networks(digits: Splits, seed: int = 0) -> RunNetworks:
    models, recall = {"student": SMALL, "teacher": SMALL}, TeacherCache().predictions
    return RunNetworks(task_of("image"), models, digits, seed, CPU, lambda reference: b"", recall)


def equal(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_weights_are_seeded_by_name_whatever_was_built_before(digits: Splits) -> None:
    first, second = networks(digits), networks(digits)
    second.student(Net("student", "peer"))
    torch.manual_seed(7)
    assert equal(first.student(Net()), second.student(Net()))
    assert not equal(first.student(Net()), second.student(Net("student", "peer")))
    assert not equal(first.student(Net()), networks(digits, seed=1).student(Net()))


def test_building_leaves_the_global_random_state(digits: Splits) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    networks(digits).student(Net())
    assert torch.equal(torch.rand(1), expected)


def test_student_named_again_as_teacher_goes_on_frozen(digits: Splits) -> None:
    nets = networks(digits)
    student = nets.student(Net())
    student.train()
    teacher = nets.teacher(Net())
    assert teacher is student and not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in nets.student(Net()).parameters())


def test_missing_model_is_unsupported(digits: Splits) -> None:
    with pytest.raises(Unsupported, match="needs a teacher_2"):
        networks(digits).student(Net("teacher_2"))


def test_network_normalises_resizes_and_repeats_grey() -> None:
    class Echo(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    network = Network(Echo(), mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0), input_size=16)
    out = network(torch.full((2, 1, 8, 8), 0.75))
    assert out.shape == (2, 3, 16, 16)
    torch.testing.assert_close(out[0, :, 3, 3], torch.tensor([0.5, 2.0, 0.75]))


def test_own_normalisation_and_size_come_from_the_spec(digits: Splits) -> None:
    network = build(ModelSpec(name="cifar_resnet8", args={"mean": [0.1], "std": [0.2], "input_size": 16}), digits)
    assert network.input_size == 16 and network.mean.item() == pytest.approx(0.1)
    with pytest.raises(InputError, match="takes 1 channels"):
        build(ModelSpec(name="cifar_resnet8", args={"mean": [0.1, 0.1]}), digits)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("cifar_resnet21", {}, "did you mean cifar_resnet"),
        ("cifar_resnet8", {"colour": 1}, "timm cannot build cifar_resnet8 with"),
        ("vit_tiny_patch16_224", {"patch_size": 64}, "vit_tiny_patch16_224 cannot take 8x8 images"),
    ],
)
def test_what_timm_cannot_build_is_one_clear_line(digits: Splits, name: str, args: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        build(ModelSpec(name=name, args=args), digits)
    assert "\n" not in str(error.value)


def test_noise_that_a_model_does_not_take_is_unsupported(digits: Splits) -> None:
    with pytest.raises(Unsupported, match="mlp_800_800 does not take drop_path_rate"):
        build(ModelSpec(name="mlp_800_800"), digits, {"drop_path_rate": 0.1})


def test_student_goes_without_what_its_model_does_not_take_from_the_weights_it_would_have(digits: Splits) -> None:
    nets = networks(digits)
    nets.models = {"student": ModelSpec(name="mlp_800_800")}
    noise = {"drop_path_rate": 0.1, "drop_rate": 0.3, "colour": 1}
    student: Any = nets.student(Net("student", model_args=tuple(noise.items())))
    assert nets.left_out == {"student": ["drop_path_rate", "colour"]} and student.model.head_drop.p == 0.3
    plain = networks(digits)
    plain.models = nets.models
    assert equal(student, plain.student(Net())) and plain.left_out == {}


@pytest.mark.parametrize("form", ["bare", "state_dict", "module", "safetensors", "ours"])
def test_users_checkpoint_is_imported(digits: Splits, tmp_path: Path, form: str) -> None:
    torch.manual_seed(5)
    model = timm.create_model(SMALL.name, num_classes=10, in_chans=1)
    state: Any = model.state_dict()
    path = tmp_path / ("t.safetensors" if form in ("safetensors", "ours") else "t.pt")
    if form == "ours":
        state = Network(model, digits.mean, digits.std, 0).state_dict()
    if form in ("safetensors", "ours"):
        safetensors.torch.save_file(state, path)
    elif form == "module":
        torch.save({f"module.{key}": value for key, value in state.items()}, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if form == "state_dict" else state, path)
    file = import_checkpoint(path, build(SMALL, digits), SMALL.name)
    network = build(SMALL, digits)
    load_weights(network, file, SMALL.name)
    assert equal(network.model, model)


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def test_pickle_with_code_is_refused_and_not_executed(digits: Splits, tmp_path: Path) -> None:
    torch.save({"state_dict": Payload(tmp_path / "executed")}, tmp_path / "t.pt")
    with pytest.raises(InputError, match="not a readable checkpoint of tensors"):
        import_checkpoint(tmp_path / "t.pt", build(SMALL, digits), SMALL.name)
    assert not (tmp_path / "executed").exists()


def test_checkpoint_of_another_network_or_of_no_tensors_is_refused(digits: Splits, tmp_path: Path) -> None:
    torch.save(timm.create_model("cifar_resnet8", num_classes=10, in_chans=1).state_dict(), tmp_path / "other.pt")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    torch.save({0: torch.zeros(1)}, tmp_path / "keys.pt")
    cycle: dict[str, Any] = {}
    cycle["state_dict"] = cycle
    torch.save(cycle, tmp_path / "cycle.pt")
    state = timm.create_model(SMALL.name, num_classes=10, in_chans=1).state_dict()
    torch.save({key: value * float("nan") for key, value in state.items()}, tmp_path / "nan.pt")
    messages = {
        "other.pt": "does not fit",
        "numbers.pt": "no state dict",
        "keys.pt": "no state dict",
        "cycle.pt": "no state dict",
        "nan.pt": "no finite real numbers",
        "none.pt": "there is no",
    }
    for name, message in messages.items():
        with pytest.raises(InputError, match=message) as error:
            import_checkpoint(tmp_path / name, build(SMALL, digits), SMALL.name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("spec", [SMALL, VIT], ids=["cnn", "vit"])
def test_observed_features_are_timms_own(digits: Splits, spec: ModelSpec) -> None:
    network = build(spec, digits).eval()
    images, labels = digits.train.inputs[:4].float() / 255, digits.train.targets[:4]
    signals = observe(network, images, labels, frozenset({"features", "pooled"}))
    _, expected = network.model.forward_intermediates(network.normalised(images))  # type: ignore[operator]
    assert signals.features is not None and signals.pooled is not None
    torch.testing.assert_close(signals.features[-1], expected[-1])
    assert all(feature.dim() == 4 for feature in signals.features)
    torch.testing.assert_close(signals.logits, network(images))
    classifier: Any = network.model.get_classifier()  # type: ignore[operator]
    torch.testing.assert_close(classifier(signals.pooled), signals.logits)


def test_what_nobody_asked_for_is_none(digits: Splits) -> None:
    network = build(SMALL, digits).eval()
    signals = observe(network, torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long), frozenset())
    assert signals.features is None and signals.pooled is None and signals.input_grad is None
    assert not signals.logits.requires_grad


def test_input_gradient_is_that_of_finite_differences(digits: Splits) -> None:
    network = build(SMALL, digits).double().eval()
    images, labels = digits.train.inputs[:2].double() / 255, digits.train.targets[:2]
    grad = observe(network, images, labels, frozenset({"input_grad"})).input_grad
    assert grad is not None and grad.shape == images.shape
    for index, row, column in ((0, 3, 4), (1, 5, 2)):
        nudged = [images.clone(), images.clone()]
        for image, sign in zip(nudged, (1, -1), strict=True):
            image[index, 0, row, column] += sign * 1e-6
        up, down = (
            torch.nn.functional.cross_entropy(network(image), labels, reduction="sum").item() for image in nudged
        )
        assert grad[index, 0, row, column].item() == pytest.approx((up - down) / 2e-6, rel=1e-4, abs=1e-6)


def test_attention_is_differentiated_twice(digits: Splits) -> None:
    network = build(VIT, digits).train()
    images, labels = digits.train.inputs[:4].float() / 255, digits.train.targets[:4]
    grad = observe(network, images, labels, frozenset({"input_grad"}), training=True).input_grad
    assert grad is not None
    grad.square().sum().backward()
    qkv = network.model.blocks[0].attn.qkv.weight.grad  # type: ignore[union-attr, index]
    assert qkv.abs().sum() > 0


def test_network_without_stages_says_what_is_missing(digits: Splits) -> None:
    network = Network(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits.mean, digits.std, 0)
    with pytest.raises(Unsupported, match="no forward_intermediates"):
        observe(network, torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long), frozenset({"features"}))
