"""Augments whole batches of uint8 images, as drawn from generators on the CPU: no image is treated one by one."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.bench.errors import InputError, unknown
from kdbench.bench.seeds import generator

AUGMENTATIONS = ("none", "resized-crop", "crop", "crop-reflect", "flip", "randaugment")
"""Names of all augmentations, in the order in which they are applied."""
CROPS = ("crop", "crop-reflect")
SCALE = (0.08, 1.0)
"""Share of an image's area that a resized crop takes (Szegedy et al. 2015, https://arxiv.org/abs/1409.4842)."""
RATIO = (3 / 4, 4 / 3)
"""Width of a resized crop over its height."""
TRIES = 10
"""Boxes drawn for a resized crop before the largest central one is taken, as torchvision does."""


def check_augment(augment: str, size: int = 0) -> tuple[str, ...]:
    """The augmentations named in a recipe; a crop may say its padding in pixels, as crop:2.

    Args:
        augment: their names, joined by +.
        size: height and width of the images; 0 if it is not known yet.

    Raises:
        InputError: if one is unknown, there are two crops, or a padding is not a whole number of at least 1, or of
            mirrored pixels of which the images have no more.
    """
    names = tuple(augment.split("+"))
    if len(crops := [name for name in names if name.partition(":")[0] in CROPS]) > 1:
        raise InputError(f"augmentation {augment}: a recipe has one crop, not {len(crops)}: leave {crops[0]} alone.")
    for name in names:
        kind, colon, pixels = name.partition(":")
        if kind not in AUGMENTATIONS:
            raise unknown("augmentation", kind, AUGMENTATIONS)
        if colon and (kind not in CROPS or not pixels.isdecimal() or int(pixels) < 1):
            raise InputError(f"augmentation {name}: only {' and '.join(CROPS)} take pixels, at least 1, as crop:2.")
        if kind == "crop-reflect" and colon and 0 < size <= int(pixels):
            raise InputError(
                f"augmentation {name}: images of {size}x{size} can be mirrored by at most {size - 1} pixels; give "
                f"fewer, or pad with black by crop:{pixels}."
            )
    return names


class Augment:
    """Augments the batches of one epoch, one after another."""

    def __init__(self, names: tuple[str, ...], magnitude: int, seed: int, number: int) -> None:
        """Starts the draws of an epoch, which depend on the seed and its number alone.

        Args:
            names: of augmentations; they are applied in the order of `AUGMENTATIONS`.
            magnitude: strength of randaugment, 0 to 30.
            seed: the run's.
            number: the epoch's, from 1.
        """
        self.names, self.magnitude = names, magnitude
        self.views = generator(seed, "views", number)
        self.boxes = generator(seed, "resized-crop", number)
        self.operations = generator(seed, "randaugment", number)

    def __call__(self, images: Tensor) -> Tensor:
        """The next batch (B, C, S, S) uint8, augmented on its device."""
        if "resized-crop" in self.names:
            images = resized_crop(images, self.boxes)
        for name in self.names:
            kind, _, pixels = name.partition(":")
            if kind in CROPS:
                images = crop(images, kind == "crop-reflect", self.views, int(pixels or 0))
        if "flip" in self.names:
            images = flip(images, self.views)
        if "randaugment" in self.names:
            from kdbench.bench.data.randaugment import randaugment  # torchvision is slow to import

            images = randaugment(images, self.magnitude, self.operations)
        return images


def crop(images: Tensor, reflect: bool, draws: torch.Generator, pixels: int = 0) -> Tensor:
    """A random window of each image (B, C, S, S), padded by its mirror image or by black.

    Args:
        images: uint8.
        reflect: whether by its mirror image.
        draws: the generator of windows.
        pixels: of padding at each side; 0 for an eighth of the size.
    """
    size = images.shape[-1]
    pad = pixels or max(1, size // 8)
    corners = torch.randint(0, 2 * pad + 1, (2, len(images)), generator=draws) - pad
    rows, columns = (corners[:, :, None] + torch.arange(size)).to(images.device)
    y, x = (_mirrored(places, size) if reflect else places.clamp(0, size - 1) for places in (rows, columns))
    which = torch.arange(len(images), device=images.device)[:, None, None]
    windows = images[which, :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
    windows = windows.clone(memory_format=torch.contiguous_format)  # grey ones would pass for channels_last
    return windows if reflect else windows * ((rows == y)[:, None, :, None] & (columns == x)[:, None, None, :])


def _mirrored(places: Tensor, size: int) -> Tensor:
    return size - 1 - (size - 1 - places.abs()).abs()


def flip(images: Tensor, draws: torch.Generator) -> Tensor:
    """Each image (B, C, H, W), mirrored from left to right with probability 1/2."""
    flipped = (torch.rand(len(images), generator=draws) < 0.5).to(images.device)[:, None, None, None]
    return torch.where(flipped, images.flip(-1), images)


def crop_boxes(count: int, height: int, width: int, draws: torch.Generator) -> Tensor:
    """Boxes (count, 4) of resized crops, each its top, left, height and width in pixels.

    The first of ten boxes of random area and log-uniform ratio that fits, at a random place; if none does, the largest
    central one of an allowed ratio: as torchvision's RandomResizedCrop, and timm's, draw it.
    """
    area = height * width * torch.empty(TRIES, count).uniform_(*SCALE, generator=draws)
    ratio = torch.empty(TRIES, count).uniform_(math.log(RATIO[0]), math.log(RATIO[1]), generator=draws).exp()
    heights, widths = (area / ratio).sqrt().round().long(), (area * ratio).sqrt().round().long()
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    first = fits.int().argmax(dim=0, keepdim=True)
    largest = torch.tensor([min(height, round(width / RATIO[0])), min(width, round(height * RATIO[1]))])
    sizes = torch.stack([heights.gather(0, first)[0], widths.gather(0, first)[0]], dim=1)
    sizes = torch.where(fits.any(dim=0)[:, None], sizes, largest)
    spare = torch.tensor([height, width]) - sizes
    places = (torch.rand(count, 2, generator=draws, dtype=torch.float64) * (spare + 1)).long()
    return torch.cat([torch.where(fits.any(dim=0)[:, None], places, spare // 2), sizes], dim=1)


def resized_crop(images: Tensor, draws: torch.Generator) -> Tensor:
    """A random box of each image (B, C, S, S), resized to the whole: the augmentation of ImageNet's recipes.

    Bilinear, and at a box's edge from within the box, so that each image is as torchvision's resized_crop makes it.
    """
    size = images.shape[-1]
    boxes = crop_boxes(len(images), size, size, draws).to(images.device)
    corners, sizes = boxes[:, :2, None], boxes[:, 2:, None]
    within = (torch.arange(size, device=images.device) + 0.5) * sizes / size - 0.5
    places = corners + within.clamp_min(0).minimum(sizes - 1)
    y, x = (places * (2 / max(1, size - 1)) - 1).unbind(dim=1)
    grid = torch.stack([x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=-1)
    pixels = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=True)
    return pixels.round_().to(torch.uint8)
