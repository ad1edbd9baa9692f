"""The networks of the distillation literature, registered into timm so that `timm.create_model` builds them.

ResNets, wide ResNets and MobileNetV2 are timm's own classes with CIFAR stems, ShuffleNetV2 is of torchvision's units:
the same functions as the networks of Tian et al. 2020 (checked in float64 with copied weights), with the same parameter
counts.
"""

from __future__ import annotations

from typing import Any

from timm.layers import BatchNormAct2d, create_conv2d
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from kdbench.bench.networks.zoo.base import Staged, register


class CifarResNet(ResNet):
    """ResNet of depth 6 n + 2 for 32x32 images (He et al. 2016, section 4.2), without timm's fourth group."""

    def __init__(self, depth: int, widths: tuple[int, int, int, int], **kwargs: Any) -> None:
        """Builds a network of `depth` layers.

        Args:
            depth: 6 n + 2.
            widths: channels of the stem and of the three groups.
            kwargs: of timm's ResNet.
        """
        stem, *groups = widths
        blocks = (depth - 2) // 6
        super().__init__(
            BasicBlock,
            layers=(blocks, blocks, blocks, 0),
            channels=(*groups, groups[-1]),
            stem_type="deep",
            stem_width=stem // 2,
            zero_init_last=False,
            **kwargs,
        )
        _small_stem(self, kwargs.get("in_chans", 3), stem, groups)


def _small_stem(network: Any, in_chans: int, stem: int, groups: list[int]) -> None:
    """Gives timm's ResNet a 3x3 stem that keeps the size; its stages are the stem and `groups`."""
    network.conv1 = nn.Conv2d(in_chans, stem, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    network.feature_info = [{"num_chs": stem, "reduction": 1, "module": "act1"}] + [
        {"num_chs": width, "reduction": 2**index, "module": f"layer{index + 1}"} for index, width in enumerate(groups)
    ]


class WideResNet(ResNetV2):
    """Wide ResNet of depth 6 n + 4 (Zagoruyko & Komodakis 2016)."""

    def __init__(self, depth: int, width: int, **kwargs: Any) -> None:
        """Builds WRN-depth-width.

        Args:
            depth: 6 n + 4.
            width: the factor on 16, 32 and 64 channels.
            kwargs: of timm's ResNetV2.
        """
        groups = (16 * width, 32 * width, 64 * width)
        super().__init__(
            layers=[(depth - 4) // 6] * 3,
            channels=groups,
            stem_chs=16,
            stem_type="",
            preact=True,
            basic=True,
            bottle_ratio=1.0,
            norm_layer=BatchNormAct2d,
            conv_layer=create_conv2d,
            **kwargs,
        )
        convolution = create_conv2d(kwargs.get("in_chans", 3), 16, 3, stride=1)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        self.stem = nn.Sequential()
        self.stem.add_module("conv", convolution)
        self.stem_feat_idx = 0
        self.feature_info = [{"num_chs": 16, "reduction": 1, "module": "stem.conv"}] + [
            {"num_chs": group, "reduction": 2**index, "module": f"stages.{index}"} for index, group in enumerate(groups)
        ]


class CifarVGG(Staged):
    """VGG with batch norm and one linear layer for 32x32 images, as in Tian et al. 2020."""

    def __init__(
        self,
        convolutions: int,
        in_chans: int = 3,
        num_classes: int = 1000,
        drop_rate: float = 0.0,
    ) -> None:
        """Builds five stages of 64, 128, 256, 512 and 512 channels, pooled between the first four.

        Args:
            convolutions: in each stage.
            in_chans: channels of the image.
            num_classes: outputs.
            drop_rate: dropout before the classifier.
        """
        widths = [64, 128, 256, 512, 512]
        stages: list[nn.Module] = []
        for index, width in enumerate(widths):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if 0 < index < 4 else []
            for _ in range(convolutions):
                layers += [nn.Conv2d(in_chans, width, kernel_size=3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                in_chans = width
            stages.append(nn.Sequential(*layers))
        super().__init__(stages, widths, num_classes, drop_rate)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]


class Constrained(nn.Linear):
    """Linear layer whose units' incoming weights have a largest norm; longer ones are cut before use."""

    def __init__(self, inputs: int, outputs: int, max_norm: float) -> None:
        """Builds the layer.

        Args:
            inputs: features.
            outputs: units.
            max_norm: of each unit's incoming weights.
        """
        super().__init__(inputs, outputs)
        self.max_norm = max_norm

    def forward(self, x: Tensor) -> Tensor:
        """Units' (B, outputs) of features (B, inputs)."""
        self.weight.data.renorm_(2, 0, self.max_norm)
        return super().forward(x)


class Mlp(Staged):
    """Fully connected network with ReLUs, as in Hinton et al. 2015, section 3; hidden layers are (B, D, 1, 1) maps."""

    def __init__(
        self,
        widths: tuple[int, ...],
        in_chans: int = 3,
        num_classes: int = 1000,
        img_size: int = 28,
        drop_rate: float = 0.0,
        input_drop_rate: float = 0.0,
        max_norm: float = 0.0,
    ) -> None:
        """Builds one hidden layer for each width.

        Args:
            widths: units of the hidden layers.
            in_chans: channels of the image.
            num_classes: outputs.
            img_size: height and width of the image in pixels.
            drop_rate: dropout after every hidden layer.
            input_drop_rate: dropout of pixels.
            max_norm: largest norm of a hidden unit's incoming weights, enforced before these are used (Hinton et al.
                2012, https://arxiv.org/abs/1207.0580, after every update); 0 for no limit.
        """
        sizes = (in_chans * img_size**2, *widths)
        stages: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(zip(sizes, sizes[1:], strict=False)):
            dropout = [nn.Dropout(drop_rate)] if index < len(widths) - 1 else []
            pixels = [nn.Dropout(input_drop_rate)] if index == 0 and input_drop_rate else []
            units = Constrained(inputs, outputs, max_norm) if max_norm else nn.Linear(inputs, outputs)
            layer = nn.Sequential(*pixels, nn.Flatten(), units, nn.ReLU(), *dropout)
            stages.append(layer.append(nn.Unflatten(1, (outputs, 1, 1))))
        super().__init__(stages, list(widths), num_classes, drop_rate)


def _resnet(depth: int, widths: tuple[int, int, int, int]) -> Any:
    return lambda **kwargs: CifarResNet(depth, widths, **kwargs)


def _resnet50(**kwargs: Any) -> nn.Module:
    """ResNet-50 of four groups (He et al. 2016, table 1) for 32x32 images, as in Tian et al. 2020."""
    network: nn.Module = ResNet(Bottleneck, layers=(3, 4, 6, 3), zero_init_last=False, **kwargs)
    _small_stem(network, kwargs.get("in_chans", 3), 64, [256, 512, 1024, 2048])
    return network


def _wide(depth: int, width: int) -> Any:
    return lambda **kwargs: WideResNet(depth, width, **kwargs)


def _vgg(convolutions: int) -> Any:
    return lambda **kwargs: CifarVGG(convolutions, **kwargs)


def _mlp(widths: tuple[int, ...]) -> Any:
    return lambda **kwargs: Mlp(widths, **kwargs)


def _mini_vit(depth: int) -> Any:
    """Pre-norm vision transformer (Dosovitskiy et al. 2021) for small images: 48 wide, 3 heads, patches of 4 pixels."""

    def build(**kwargs: Any) -> nn.Module:
        sizes: dict[str, Any] = {"img_size": 8, "patch_size": 4, "embed_dim": 48, "num_heads": 3}
        network: nn.Module = VisionTransformer(depth=depth, **(sizes | kwargs))
        return network

    return build


for _depth in (8, 14, 20, 26, 32, 44, 56, 110):
    register(f"cifar_resnet{_depth}", _resnet(_depth, (16, 16, 32, 64)))
for _depth in (8, 32):
    register(f"cifar_resnet{_depth}x4", _resnet(_depth, (32, 64, 128, 256)))
register("cifar_resnet50", _resnet50)
register("cifar_resnet8_quarter", _resnet(8, (4, 4, 8, 16)))
for _depth in (16, 28, 40):
    for _width in (1, 2, 4, 8, 10):
        register(f"wrn_{_depth}_{_width}", _wide(_depth, _width))
for _depth in (52, 64, 76, 88, 100, 154, 250):
    register(f"wrn_{_depth}_1", _wide(_depth, 1))
for _name, _convolutions in {"cifar_vgg8": 1, "cifar_vgg13": 2}.items():
    register(_name, _vgg(_convolutions))
for _depth in (3, 6, 12):
    register(f"mini_vit_{_depth}", _mini_vit(_depth))
for _units in (800, 1200):
    register(f"mlp_{_units}_{_units}", _mlp((_units, _units)))
