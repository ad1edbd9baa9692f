"""RandAugment (Cubuk et al. 2020, https://arxiv.org/abs/1909.13719) of whole batches of uint8 images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor

AT_ONCE = 2**19
"""Bytes of pixels that one operation takes on the CPU, where larger temporary tensors are slower."""
BINS = 31
"""Magnitudes are 0 to 30."""


class Operation(NamedTuple):
    """One of the operations, as torchvision's RandAugment has them."""

    apply: Callable[[Tensor, float], Tensor]
    """Takes images (B, C, H, W) uint8 and a strength."""
    strengths: Callable[[int, int], Tensor] | None = None
    """The strength of each magnitude, (BINS,), for a height and a width; None if the operation has none."""
    signed: bool = False
    """Whether it goes one way or the other, by the strength's sign."""


def _between(low: float, high: float) -> Callable[[int, int], Tensor]:
    return lambda height, width: torch.linspace(low, high, BINS)


def _sheared(images: Tensor, x: float, y: float) -> Tensor:
    degrees = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    sheared: Tensor = F.affine(images, angle=0.0, translate=[0, 0], scale=1.0, shear=degrees, center=[0, 0])
    return sheared


def _moved(images: Tensor, x: float, y: float) -> Tensor:
    moved: Tensor = F.affine(images, angle=0.0, translate=[int(x), int(y)], scale=1.0, shear=[0.0, 0.0])
    return moved


OPERATIONS: dict[str, Operation] = {
    "identity": Operation(lambda images, strength: images),
    "shear_x": Operation(lambda images, strength: _sheared(images, strength, 0.0), _between(0.0, 0.3), True),
    "shear_y": Operation(lambda images, strength: _sheared(images, 0.0, strength), _between(0.0, 0.3), True),
    "translate_x": Operation(
        lambda images, strength: _moved(images, strength, 0.0),
        lambda height, width: torch.linspace(0.0, 150.0 / 331.0 * width, BINS),
        True,
    ),
    "translate_y": Operation(
        lambda images, strength: _moved(images, 0.0, strength),
        lambda height, width: torch.linspace(0.0, 150.0 / 331.0 * height, BINS),
        True,
    ),
    "rotate": Operation(lambda images, strength: F.rotate(images, strength), _between(0.0, 30.0), True),
    "brightness": Operation(
        lambda images, strength: F.adjust_brightness(images, 1.0 + strength), _between(0.0, 0.9), True
    ),
    "color": Operation(lambda images, strength: F.adjust_saturation(images, 1.0 + strength), _between(0.0, 0.9), True),
    "contrast": Operation(lambda images, strength: F.adjust_contrast(images, 1.0 + strength), _between(0.0, 0.9), True),
    "sharpness": Operation(
        lambda images, strength: F.adjust_sharpness(images, 1.0 + strength), _between(0.0, 0.9), True
    ),
    "posterize": Operation(
        lambda images, strength: F.posterize(images, int(strength)),
        lambda height, width: (8 - torch.arange(BINS) / ((BINS - 1) / 4)).round(),
    ),
    "solarize": Operation(lambda images, strength: F.solarize(images, 255 * strength), _between(1.0, 0.0)),
    "auto_contrast": Operation(lambda images, strength: F.autocontrast(images)),
    "equalize": Operation(lambda images, strength: F.equalize(images)),
}
"""All operations by name, in torchvision's order: draws are places in it."""


def randaugment(images: Tensor, magnitude: int, draws: torch.Generator, rounds: int = 2) -> Tensor:
    """Random operations on each image (B, C, H, W) uint8, computed in batches of one operation and sign.

    As torchvision draws them for each image by itself: every operation is as likely as another, and half of those that
    have a sign go the other way.

    Args:
        images: uint8, which stay as they are.
        magnitude: strength of all operations, 0 to 30.
        draws: the generator of operations and signs, on the CPU.
        rounds: operations on each image, one after another.
    """
    operations = list(OPERATIONS.values())
    signed = torch.tensor([operation.signed for operation in operations])
    images = images.clone(memory_format=torch.contiguous_format)
    at_once = len(images) if images.is_cuda else max(1, AT_ONCE // images[0].nbytes)
    for _ in range(rounds):
        drawn = torch.randint(len(operations), (len(images),), generator=draws)
        kinds = 2 * drawn + (torch.rand(len(images), generator=draws) < 0.5).logical_and(signed[drawn])
        counts = kinds.bincount(minlength=2 * len(operations)).tolist()
        for kind, group in enumerate(kinds.argsort(stable=True).to(images.device).split(counts)):
            for some in group.split(at_once) if len(group) else ():
                images[some] = applied(operations[kind // 2], images[some], magnitude, negative=kind % 2 == 1)
    return images


def applied(operation: Operation, images: Tensor, magnitude: int, negative: bool) -> Tensor:
    """One operation, in one direction, on images (B, C, H, W) uint8."""
    strength = 0.0
    if operation.strengths:
        height, width = images.shape[-2:]
        strength = float(operation.strengths(height, width)[magnitude]) * (-1 if negative else 1)
    return operation.apply(images, strength)
