"""Chains of convolutions from before shortcuts: maxout networks for MNIST and CIFAR, and Network in Network."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.bench.networks.zoo.base import Staged, register

RANGE = 0.005
"""Maxout networks' weights start between minus this and this."""
CIFAR = {"in_chans": 3, "img_size": 32, "units": 500}
"""The sizes of maxout networks for CIFAR: channels, height and width of images, units of the hidden layer."""


class Layer(NamedTuple):
    """A maxout layer: channels, kernel, padding, then the size and stride of max pooling."""

    channels: int
    kernel: int
    padding: int
    pool: int
    stride: int

    def size(self, size: int) -> int:
        """Of its map for an image or map of this size."""
        return math.ceil((size + 2 * self.padding - self.kernel + 1 - self.pool) / self.stride) + 1


class Maxout(nn.Module):
    """The larger of two convolutions in every channel (Goodfellow et al. 2013), then pooled."""

    def __init__(self, inputs: int, layer: Layer) -> None:
        """Builds a layer.

        Args:
            inputs: channels.
            layer: its sizes.
        """
        super().__init__()
        self.layer = layer
        self.conv = nn.Conv2d(inputs, 2 * layer.channels, layer.kernel, padding=layer.padding)
        _start(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        largest: Tensor = self.conv(x).unflatten(1, (self.layer.channels, 2)).amax(2)
        if self.layer.pool == 1:
            return largest
        return F.max_pool2d(largest, self.layer.pool, self.layer.stride, ceil_mode=True)


class MaxoutUnits(nn.Module):
    """The larger of two linear functions in every unit."""

    def __init__(self, inputs: int, units: int) -> None:
        """Maps (B, inputs) to (B, units)."""
        super().__init__()
        self.units = units
        self.linear = nn.Linear(inputs, 2 * units)
        _start(self.linear)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) to (B, units)."""
        largest: Tensor = self.linear(x).unflatten(1, (self.units, 2)).amax(2)
        return largest


class MaxoutNet(Staged):
    """Maxout layers and a linear one on all of the last map, maybe with maxout units between."""

    def __init__(
        self,
        layers: tuple[Layer, ...],
        in_chans: int = 1,
        num_classes: int = 10,
        img_size: int = 28,
        drop_rate: float = 0.0,
        input_drop_rate: float = 0.0,
        units: int = 0,
    ) -> None:
        """Builds one stage for each layer.

        Args:
            layers: from the image on.
            in_chans: channels of the image.
            num_classes: outputs.
            img_size: height and width of the image in pixels.
            drop_rate: dropout of every layer's input but the first's.
            input_drop_rate: dropout of pixels.
            units: between the last map and the classifier; 0 for none.
        """
        widths = [layer.channels for layer in layers]
        stages: list[nn.Module] = []
        for index, layer in enumerate(layers):
            dropout = nn.Dropout(drop_rate if index else input_drop_rate)
            stages.append(nn.Sequential(dropout, Maxout(widths[index - 1] if index else in_chans, layer)))
            img_size = layer.size(img_size)
        features = widths[-1] * img_size**2
        between = [nn.Dropout(drop_rate), MaxoutUnits(features, units)] if units else []
        features = units or features
        neck = nn.Sequential(nn.Flatten(), *between, nn.Unflatten(1, (features, 1, 1)))
        super().__init__(stages, widths, num_classes, drop_rate, neck, features)
        if isinstance(self.fc, nn.Linear):
            _start(self.fc)


def _start(module: nn.Conv2d | nn.Linear) -> None:
    """Weights as FitNets' programs draw them; no biases."""
    nn.init.uniform_(module.weight, -RANGE, RANGE)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


class NetworkInNetwork(Staged):
    """Network in Network (Lin et al. 2014) with batch norm, as cifar.torch has it, scaled in width.

    There the last 1x1 convolution has batch norm and a ReLU before the average; here it is a linear layer after it.
    """

    def __init__(
        self, width: float, in_chans: int = 3, num_classes: int = 1000, drop_rate: float = 0.0, block_drop: float = 0.0
    ) -> None:
        """Builds the first convolution as a stem, and three stages that end in 1x1 convolutions, pooled between them.

        Args:
            width: a factor on 192, 160 and 96 channels.
            in_chans: channels of the image.
            num_classes: outputs.
            drop_rate: dropout before the classifier.
            block_drop: dropout between the stages.
        """
        wide, middle, narrow = (round(width * channels) for channels in (192, 160, 96))
        pools = (nn.MaxPool2d(3, stride=2, ceil_mode=True), nn.AvgPool2d(3, stride=2, ceil_mode=True))
        first = [_block(wide, middle, 1), _block(middle, narrow, 1)]
        second = [_block(narrow, wide, 5), _block(wide, wide, 1), _block(wide, wide, 1)]
        third = [_block(wide, wide, 3), _block(wide, wide, 1)]
        stages: list[nn.Module] = [
            _block(in_chans, wide, 5),
            nn.Sequential(*first),
            nn.Sequential(pools[0], nn.Dropout(block_drop), *second),
            nn.Sequential(pools[1], nn.Dropout(block_drop), *third),
        ]
        super().__init__(stages, [wide, narrow, wide, wide], num_classes, drop_rate)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def _block(inputs: int, outputs: int, kernel: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs, eps=1e-3), nn.ReLU())


def _maxout(*layers: Layer, **args: Any) -> Any:
    return lambda **kwargs: MaxoutNet(layers, **(args | kwargs))


def _fitnet(*groups: tuple[int, ...]) -> Any:
    """For CIFAR (Romero et al. 2015, tables 6 and 7): groups of 3x3 layers with pooling after each, at last of all.

    Their parameter counts are those of two pieces in the units, where the supplement says five; without biases.
    """
    layers: list[Layer] = []
    for index, group in enumerate(groups):
        pool, stride = (2, 2) if index < len(groups) - 1 else (8, 1)
        layers += [Layer(width, 3, 1, 1, 1) for width in group[:-1]]
        layers += [Layer(group[-1], 3, 1, pool, stride)]
    return _maxout(*layers, **CIFAR)


def _nin(width: float) -> Any:
    return lambda **kwargs: NetworkInNetwork(width, **kwargs)


register("mnist_maxout", _maxout(Layer(48, 8, 0, 4, 2), Layer(48, 8, 3, 4, 2), Layer(24, 5, 3, 2, 2)))
register(
    "mnist_fitnet",
    _maxout(
        *(Layer(16, 5, 0, 1, 1), Layer(16, 3, 0, 4, 2), Layer(16, 5, 3, 1, 1), Layer(16, 3, 0, 4, 2)),
        *(Layer(12, 3, 3, 1, 1), Layer(12, 3, 0, 2, 2)),
    ),
)
register(
    "cifar_maxout",
    _maxout(Layer(96, 8, 4, 4, 2), Layer(192, 8, 3, 4, 2), Layer(192, 5, 3, 2, 2), **CIFAR),
)
register("cifar_fitnet1", _fitnet((16, 16, 16), (32, 32, 32), (48, 48, 64)))
register("cifar_fitnet2", _fitnet((16, 32, 32), (48, 64, 80), (96, 96, 128)))
register("cifar_fitnet3", _fitnet((32, 48, 64, 64), (80,) * 4, (128,) * 3))
register("cifar_fitnet4", _fitnet((32, 32, 32, 48, 48), (80,) * 6, (128,) * 6))
register("cifar_fitnet_of_7", _fitnet((32, 64), (80, 80), (128,)))
register("nin_wide", _nin(1.0))
register("nin_thin", _nin(0.5))
