from __future__ import annotations

import pytest
import timm
import torch

import bench.zoo  # noqa: F401

COUNTS = {
    "cifar_resnet8": 83_892,
    "cifar_resnet20": 278_324,
    "cifar_resnet32": 472_756,
    "cifar_resnet56": 861_620,
    "cifar_resnet8x4": 1_233_540,
    "cifar_resnet32x4": 7_433_860,
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "cifar_vgg8": 3_965_028,
    "cifar_vgg13": 9_462_180,
}
NAMES = [
    *(f"cifar_resnet{depth}" for depth in ("8", "14", "20", "26", "32", "44", "56", "110", "8x4", "32x4")),
    *(f"wrn_{depth}_{width}" for depth in (16, 28, 40) for width in (1, 2, 4, 8, 10)),
    *("cifar_vgg8", "cifar_vgg13", "mlp_1200_1200", "mlp_800_800"),
]
SMALL = ["cifar_resnet8", "cifar_resnet8_quarter", "cifar_resnet8x4", "wrn_16_2", "cifar_vgg8", "mlp_800_800"]


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("name", "parameters"), COUNTS.items())
def test_parameter_count_is_the_literatures(name: str, parameters: int) -> None:
    assert count(timm.create_model(name, num_classes=100)) == parameters


@pytest.mark.parametrize(("name", "parameters"), [("mlp_1200_1200", 2_395_210), ("mlp_800_800", 1_276_810)])
def test_mnist_networks_have_hintons_sizes(name: str, parameters: int) -> None:
    # 784 * 1200 + 1200 + 1200 * 1200 + 1200 + 1200 * 10 + 10, and likewise with 800
    assert count(timm.create_model(name, num_classes=10, in_chans=1, img_size=28)) == parameters


@pytest.mark.parametrize("name", NAMES)
def test_timm_knows_the_network(name: str) -> None:
    assert timm.is_model(name)


@pytest.mark.parametrize("name", SMALL)
def test_stages_are_those_that_feature_info_promises(name: str) -> None:
    size = 28 if name.startswith("mlp") else 32
    network = timm.create_model(name, num_classes=10, in_chans=1).eval()
    images = torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(0))
    indices = list(range(len(network.feature_info)))
    final, features = network.forward_intermediates(images, indices=indices)
    assert len(features) == len(indices)
    for feature, info in zip(features, network.feature_info, strict=True):
        assert feature.shape[:2] == (2, info["num_chs"])
        if "reduction" in info:
            assert feature.shape[-1] == size // info["reduction"]
    torch.testing.assert_close(network.forward_head(final), network(images))


@pytest.mark.parametrize("name", SMALL)
def test_dropout_noises_training_alone(name: str) -> None:
    size = 28 if name.startswith("mlp") else 32
    network = timm.create_model(name, num_classes=10, in_chans=1, drop_rate=0.5).eval()
    images = torch.randn(4, 1, size, size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(images), network(images))
    for module in network.modules():
        module.training = not isinstance(module, torch.nn.BatchNorm2d)
    assert not torch.equal(network(images), network(images))


def test_pretrained_weights_are_refused_clearly() -> None:
    with pytest.raises(RuntimeError, match="no pretrained weights are published for cifar_resnet20"):
        timm.create_model("cifar_resnet20", pretrained=True)
