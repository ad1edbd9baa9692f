from __future__ import annotations

import pytest
import timm
import torch
from torch.nn.functional import cross_entropy

import kdbench.bench.networks.zoo  # noqa: F401
from kdbench.bench.networks.zoo.plain import Layer, Maxout

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
    "cifar_resnet50": 23_705_252,
    "cifar_mobilenetv1": 3_309_476,
    "cifar_msdnet": 801_702 + 547_940,  # the program's stages and last classifier, less biases before batch norm
    "cifar_mobilenetv2": 812_836,
    "cifar_shufflenetv1": 949_258,
    "cifar_shufflenetv2": 1_355_528,
}
STAGES = {
    "cifar_resnet50": [(64, 32), (256, 32), (512, 16), (1024, 8), (2048, 4)],
    "cifar_mobilenetv1": [(32, 32), (128, 32), (256, 16), (512, 8), (1024, 4)],
    "cifar_msdnet": [(width, 8) for width in (120, 168, 96, 144, 192, 240, 144, 192, 240, 288, 336)],
    "cifar_mobilenetv2": [(16, 16), (12, 16), (16, 8), (48, 4), (160, 2)],
    "cifar_shufflenetv1": [(24, 32), (240, 16), (480, 8), (960, 4)],
    "cifar_shufflenetv2": [(24, 32), (116, 16), (232, 8), (464, 4)],
}
CIFAR_MAXOUT = {
    "cifar_maxout": 9_044_360,
    "cifar_fitnet1": 249_576,
    "cifar_fitnet2": 861_928,
    "cifar_fitnet3": 1_503_304,
    "cifar_fitnet4": 2_544_712,
    "cifar_fitnet_of_7": 563_272,
}
"""Weights: 9M, 250K, 862K and 2.5M in FitNets, whose program leaves out biases; 1.6M is the third, by rows 1.5M."""
MNIST = ["mlp_800_800", "mnist_maxout", "mnist_fitnet"]
NAMES = [
    *(f"cifar_resnet{depth}" for depth in ("8", "14", "20", "26", "32", "44", "56", "110", "8x4", "32x4")),
    *(f"wrn_{depth}_{width}" for depth in (16, 28, 40) for width in (1, 2, 4, 8, 10)),
    *("cifar_vgg8", "cifar_vgg13", "mlp_1200_1200"),
    *STAGES,
    *MNIST,
    *("nin_wide", "nin_thin"),
    *CIFAR_MAXOUT,
]
SMALL = ["cifar_resnet8", "cifar_resnet8_quarter", "cifar_resnet8x4", "wrn_16_2", "cifar_vgg8", *MNIST]
SMALL += [
    "cifar_mobilenetv1",
    "cifar_mobilenetv2",
    "cifar_shufflenetv1",
    "cifar_shufflenetv2",
    "nin_thin",
    "cifar_fitnet1",
]


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("name", "parameters"), COUNTS.items())
def test_parameter_count_is_the_literatures(name: str, parameters: int) -> None:
    assert count(timm.create_model(name, num_classes=100)) == parameters


@pytest.mark.parametrize(("name", "parameters"), [("mlp_1200_1200", 2_395_210), ("mlp_800_800", 1_276_810)])
def test_mnist_networks_have_hintons_sizes(name: str, parameters: int) -> None:
    # 784 * 1200 + 1200 + 1200 * 1200 + 1200 + 1200 * 10 + 10, and likewise with 800
    assert count(timm.create_model(name, num_classes=10, in_chans=1, img_size=28)) == parameters


def test_hidden_units_of_an_mlp_keep_their_largest_norm() -> None:
    network = timm.create_model("mlp_800_800", num_classes=10, in_chans=1, img_size=8, max_norm=0.5)
    free = timm.create_model("mlp_800_800", num_classes=10, in_chans=1, img_size=8)
    free.load_state_dict(network.state_dict())
    images, (first, second) = torch.rand(4, 1, 8, 8), (stage[1] for stage in network.stages)
    assert (second.weight.norm(dim=1) > 0.5).all()
    network(images).sum().backward()
    for units in (first, second):
        assert units.weight.norm(dim=1).max() <= 0.5 + 1e-6
        assert units.weight.grad.abs().sum() > 0
    assert not torch.equal(network(images), free(images))
    free.load_state_dict(network.state_dict())
    assert torch.equal(network(images), free(images))


def test_mnist_maxout_networks_have_the_sizes_of_fitnets() -> None:
    # "361K": 2 (48 * 65 + 48 * (48 * 64 + 1) + 24 * (48 * 25 + 1)) + 10 (24 * 9 + 1)
    assert count(timm.create_model("mnist_maxout", num_classes=10, in_chans=1, img_size=28)) == 361_066
    # "30K": 2 (16 * 26 + 16 * 145 + 16 * 401 + 16 * 145 + 12 * 145 + 12 * 109) + 10 (12 * 9 + 1)
    assert count(timm.create_model("mnist_fitnet", num_classes=10, in_chans=1, img_size=28)) == 30_130


@pytest.mark.parametrize(("name", "weights"), CIFAR_MAXOUT.items())
def test_cifar_maxout_networks_have_the_sizes_of_fitnets(name: str, weights: int) -> None:
    network = timm.create_model(name, num_classes=10)
    assert sum(p.numel() for key, p in network.named_parameters() if not key.endswith("bias")) == weights
    widths = [info["num_chs"] for info in network.feature_info]
    assert network.get_classifier().in_features == 500 and len(widths) in (3, 5, 9, 11, 17)
    cross_entropy(network(torch.rand(2, 3, 32, 32)), torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_maxout_takes_the_larger_of_neighbouring_convolutions() -> None:
    layer = Maxout(1, Layer(channels=2, kernel=1, padding=0, pool=2, stride=2))
    with torch.no_grad():
        layer.conv.weight.copy_(torch.tensor([1.0, -1.0, 2.0, 0.5]).view(4, 1, 1, 1))
    image = torch.tensor([[1.0, -3.0, 0.5], [2.0, 0.0, -4.0]]).view(1, 1, 2, 3)
    # |x|, and 2 x or x / 2; pooled by two columns and by the one that is left
    torch.testing.assert_close(layer(image), torch.tensor([[[[3.0, 4.0]], [[4.0, 1.0]]]]))


@pytest.mark.parametrize(("name", "parameters"), [("nin_wide", 969_802), ("nin_thin", 247_594)])
def test_nin_has_the_papers_rounded_size(name: str, parameters: int) -> None:
    assert count(timm.create_model(name, num_classes=10)) == parameters


@pytest.mark.parametrize("name", NAMES)
def test_timm_knows_the_network(name: str) -> None:
    assert timm.is_model(name)


@pytest.mark.parametrize("name", SMALL)
def test_stages_are_those_that_feature_info_promises(name: str) -> None:
    size = 28 if name in MNIST else 32
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


@pytest.mark.parametrize(("name", "stages"), STAGES.items())
def test_stages_are_those_of_the_usual_benchmark(name: str, stages: list[tuple[int, int]]) -> None:
    network = timm.create_model(name, num_classes=100).eval()
    with torch.no_grad():
        final, features = network.forward_intermediates(torch.zeros(1, 3, 32, 32), indices=list(range(len(stages))))
        _, last = network.forward_intermediates(torch.zeros(1, 3, 32, 32), indices=[len(stages) - 1], stop_early=True)
        assert network.forward_head(final).shape == (1, 100)
    assert [(feature.shape[1], feature.shape[2]) for feature in features] == stages
    assert torch.equal(last[0], features[-1])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "cifar_resnet50" else []) for name in STAGES]
)
def test_networks_train_in_half_precision(name: str) -> None:
    network = timm.create_model(name, num_classes=10)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_dropout_noises_training_alone(name: str) -> None:
    size = 28 if name in MNIST else 32
    network = timm.create_model(name, num_classes=10, in_chans=1, drop_rate=0.5).eval()
    images = torch.randn(4, 1, size, size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(images), network(images))
    for module in network.modules():
        module.training = not isinstance(module, torch.nn.BatchNorm2d)
    assert not torch.equal(network(images), network(images))


def test_pretrained_weights_are_refused_clearly() -> None:
    with pytest.raises(RuntimeError, match="no pretrained weights are published for cifar_resnet20"):
        timm.create_model("cifar_resnet20", pretrained=True)
