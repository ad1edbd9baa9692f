"""Small networks for 32x32 images, without the pooling of ImageNet's stems: MobileNets and ShuffleNets."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn
from torchvision.models.shufflenetv2 import InvertedResidual, channel_shuffle

from kdbench.bench.networks.zoo.base import Staged, register

MOBILENET = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))
"""Expansion, channels, repetitions and first stride of MobileNetV2's groups, at half of the paper's width."""


def mobilenetv2(**kwargs: Any) -> nn.Module:
    """MobileNetV2 (Sandler et al. 2018) of half width, as in Tian et al. 2020: timm's.

    The first block, too, has an expansion of its own. Stages are the stem and the ends of groups 2, 3, 5 and 7. Weights
    start as Tian et al.'s.
    """
    groups = [[f"ir_r{times}_k3_s{stride}_e{factor}_c{width}"] for factor, width, times, stride in MOBILENET]
    network: Any = EfficientNet(
        decode_arch_def(groups), num_features=1280, stem_size=16, fix_stem=True, round_chs_fn=int, **kwargs
    )
    network.feature_info = [{"num_chs": 16, "reduction": 2, "module": "bn1", "stage": 0}, *network.feature_info]
    network.stage_ends = [info["stage"] for info in network.feature_info]
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
    model: nn.Module = network
    return model


def mobilenetv1(in_chans: int = 3, num_classes: int = 1000, drop_rate: float = 0.0) -> nn.Module:
    """MobileNet (Howard et al. 2017, table 1) for 32x32 images: the stem and the next group keep the size.

    Zhang et al. 2018 name its size alone, 3.3M for 100 classes. The strides are those of baiyfbupt/DML on GitHub, which
    comes near their accuracy. Stages are the stem and the ends of four groups.
    """
    stages: list[nn.Module] = [_convolution(in_chans, 32, 3)]
    widths = [32]
    for group, stride in (((64, 128, 128), 1), ((256,) * 2, 2), ((512,) * 6, 2), ((1024,) * 2, 2)):
        layers: list[nn.Module] = []
        inputs = widths[-1]
        for index, width in enumerate(group):
            depthwise = _convolution(inputs, inputs, 3, 1 if index else stride, groups=inputs)
            layers += [depthwise, _convolution(inputs, width, 1)]
            inputs = width
        stages.append(nn.Sequential(*layers))
        widths.append(inputs)
    network = Staged(stages, widths, num_classes, drop_rate, stem=True)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class ShuffleUnit(nn.Module):
    """ShuffleNet's unit (Zhang et al. 2018, figure 2), with a ReLU after the depthwise convolution as well."""

    def __init__(self, inputs: int, outputs: int, groups: int, shuffled: int) -> None:
        """Builds a unit; one that changes the width halves the map and joins the pooled input to its own channels.

        Args:
            inputs: channels.
            outputs: channels.
            groups: of the last convolution.
            shuffled: groups of the first one, and of the shuffle.
        """
        super().__init__()
        self.halves, self.shuffled = inputs != outputs, shuffled
        own = outputs - inputs if self.halves else outputs
        middle, stride = own // 4, 2 if self.halves else 1
        self.conv1 = nn.Conv2d(inputs, middle, 1, groups=shuffled, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, own, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(own)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W), or half of H and W."""
        y = channel_shuffle(F.relu(self.bn1(self.conv1(x))), self.shuffled)
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        joined = torch.cat([y, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1) if self.halves else x + y
        output: Tensor = self.act(joined)
        return output


def _stem(in_chans: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_chans, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())


class ShuffleNetV1(Staged):
    """ShuffleNet of 3 groups (Zhang et al. 2018) with a 1x1 stem."""

    def __init__(self, in_chans: int = 3, num_classes: int = 1000, drop_rate: float = 0.0) -> None:
        """Builds the stem, and stages of 4, 8 and 4 units.

        Args:
            in_chans: channels of the image.
            num_classes: outputs.
            drop_rate: dropout before the classifier.
        """
        widths, groups = [24, 240, 480, 960], 3
        stages = [_stem(in_chans)]
        for inputs, outputs, units in zip(widths, widths[1:], (4, 8, 4), strict=False):
            shuffled = 1 if inputs == widths[0] else groups
            rest = [ShuffleUnit(outputs, outputs, groups, groups) for _ in range(units - 1)]
            stages.append(nn.Sequential(ShuffleUnit(inputs, outputs, groups, shuffled), *rest))
        super().__init__(stages, widths, num_classes, drop_rate, stem=True)


class ShuffleNetV2(Staged):
    """ShuffleNetV2 1x (Ma et al. 2018) of torchvision's units with a 1x1 stem."""

    def __init__(self, in_chans: int = 3, num_classes: int = 1000, drop_rate: float = 0.0) -> None:
        """Builds the stem, stages of 4, 8 and 4 units, and a last convolution of 1024 channels.

        Args:
            in_chans: channels of the image.
            num_classes: outputs.
            drop_rate: dropout before the classifier.
        """
        widths, last = [24, 116, 232, 464], 1024
        stages = [_stem(in_chans)]
        for inputs, outputs, units in zip(widths, widths[1:], (4, 8, 4), strict=False):
            rest = [InvertedResidual(outputs, outputs, stride=1) for _ in range(units - 1)]
            stages.append(nn.Sequential(InvertedResidual(inputs, outputs, stride=2), *rest))
        neck = nn.Sequential(nn.Conv2d(widths[-1], last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU())
        super().__init__(stages, widths, num_classes, drop_rate, neck, last, stem=True)


register("cifar_mobilenetv1", mobilenetv1)
register("cifar_mobilenetv2", mobilenetv2)
register("cifar_shufflenetv1", ShuffleNetV1)
register("cifar_shufflenetv2", ShuffleNetV2)
