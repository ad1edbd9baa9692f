"""Multi-scale dense network (Huang et al. 2018, https://arxiv.org/abs/1703.09844): every stage may end in a classifier.

In the form of Phuong & Lampert 2019 for 32x32 images (their program, mary-phuong/multiexit-distillation faff910): three
scales, 11 stages of 4 and then 2 layers, channels halved after a third and two thirds of the layers. They have biases
before batch norm, which change nothing and are left out here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdbench.bench.networks.zoo.base import Staged, register

FACTORS = (6, 12, 24)
"""Channels of each scale, finest first, that a layer adds and a network starts with."""
NARROW = 4
"""Channels of a bottleneck for each that a convolution adds."""
STAGES = (4, *(2,) * 10)
"""Layers of each stage."""
HEAD = 128
"""Channels of the classifier's convolutions."""

Maps = list[Tensor | None]
"""One (B, C, H, W) a scale, each half as high and wide as the last; None where a scale is needed no more."""


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    """Convolution, batch norm, ReLU."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


def _narrowed(inputs: int, outputs: int, stride: int) -> nn.Module:
    middle = min(inputs, NARROW * outputs)
    return nn.Sequential(convolution(inputs, middle, 1), convolution(middle, outputs, 3, stride))


class DenseLayer(nn.Module):
    """Adds channels to every scale: half from the scale itself, half from the finer one where there is one."""

    def __init__(self, before: Sequence[int], after: Sequence[int]) -> None:
        """Builds the convolutions of the scales that go on.

        Args:
            before: channels of each scale; 0 where there is none.
            after: likewise.
        """
        super().__init__()
        self.own, self.finer = nn.ModuleDict(), nn.ModuleDict()
        for scale, (inputs, outputs) in enumerate(zip(before, after, strict=True)):
            finer = before[scale - 1] if scale else 0
            new = (outputs - inputs) // (2 if finer else 1)
            if outputs:
                self.own[str(scale)] = _narrowed(inputs, new, stride=1)
            if outputs and finer:
                self.finer[str(scale)] = _narrowed(finer, new, stride=2)

    def forward(self, maps: Maps) -> Maps:
        """The maps with the new channels behind the old ones."""
        found: Maps = []
        for scale, x in enumerate(maps):
            parts = [x, self.own[str(scale)](x)] if str(scale) in self.own else []
            if str(scale) in self.finer:
                parts.append(self.finer[str(scale)](maps[scale - 1]))
            found.append(torch.cat(parts, dim=1) if parts else None)
        return found


class Transition(nn.Module):
    """Changes the channels of every scale by 1x1 convolutions."""

    def __init__(self, before: Sequence[int], after: Sequence[int]) -> None:
        """Builds a convolution for each scale; the arguments are as for `DenseLayer`."""
        super().__init__()
        pairs = enumerate(zip(before, after, strict=True))
        self.own = nn.ModuleDict({str(i): convolution(inputs, outputs, 1) for i, (inputs, outputs) in pairs if outputs})

    def forward(self, maps: Maps) -> Maps:
        """The maps, with other channels."""
        return [None if x is None else self.own[str(scale)](x) for scale, x in enumerate(maps)]


class Stem(nn.Module):
    """An image at every scale."""

    def __init__(self, in_chans: int, channels: Sequence[int]) -> None:
        """Builds a chain of convolutions, each but the first of stride 2."""
        super().__init__()
        widths = zip((in_chans, *channels), channels, strict=False)
        self.scales = nn.ModuleList(convolution(*pair, 3, 2 if index else 1) for index, pair in enumerate(widths))

    def forward(self, maps: Maps) -> Maps:
        """[(B, in_chans, H, W)] to one map a scale."""
        found: Maps = []
        for scale in self.scales:
            found.append(scale(found[-1] if found else maps[0]))
        return found


def _plan() -> list[list[tuple[type[nn.Module], list[int]]]]:
    """Of each stage, its layers after the stem: their kind, and the channels of each scale after them."""
    layers, base, number = sum(STAGES), 1, 0
    halved = (layers // 3, layers * 2 // 3)
    stages = []
    for count in STAGES:
        stage: list[tuple[type[nn.Module], list[int]]] = []
        for _ in range(count):
            number, base = number + 1, base + 1
            gone = max(0, number - layers - 1 + len(FACTORS))
            stage.append((DenseLayer, _channels(base, gone)))
            if number in halved:
                base //= 2
                stage.append((Transition, _channels(base, gone)))
        stages.append(stage)
    return stages


def _channels(base: int, gone: int) -> list[int]:
    """Channels of each scale, the finest of which are gone."""
    return [0 if scale < gone else factor * base for scale, factor in enumerate(FACTORS)]


class MSDNet(Staged):
    """A multi-scale dense network for 32x32 images, with its last classifier; a stage's feature is its coarsest map.

    Every classifier of the paper is two 3x3 convolutions of stride 2, an average and a linear layer.
    """

    def __init__(self, in_chans: int = 3, num_classes: int = 1000, drop_rate: float = 0.0) -> None:
        """Builds 11 stages.

        Args:
            in_chans: channels of the image.
            num_classes: outputs.
            drop_rate: dropout before the classifier.
        """
        before = _channels(1, 0)
        blocks: list[nn.Module] = []
        widths = []
        for index, layers in enumerate(_plan()):
            block: list[nn.Module] = [] if index else [Stem(in_chans, before)]
            for kind, after in layers:
                block.append(kind(before, after))
                before = after
            blocks.append(nn.Sequential(*block))
            widths.append(before[-1])
        neck = nn.Sequential(convolution(widths[-1], HEAD, 3, 2), convolution(HEAD, HEAD, 3, 2))
        super().__init__(blocks, widths, num_classes, drop_rate, neck, HEAD)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward_intermediates(
        self, x: Tensor, indices: list[int] | None = None, stop_early: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """The last stage's coarsest map, and those of the chosen stages; may stop at the last of these."""
        maps: Maps = [x]
        features = []
        last = max(indices) + 1 if indices and stop_early else len(self.stages)
        for stage in self.stages[:last]:
            maps = stage(maps)
            features.append(maps[-1])
        chosen = features if indices is None else [features[index] for index in indices]
        return features[-1], chosen  # type: ignore[return-value]


register("cifar_msdnet", MSDNet)
