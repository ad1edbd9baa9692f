"""Augmented batches of a stage's data, drawn from named seeds."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bench.data.augment import Augment, check_augment
from bench.data.datasets import content
from bench.data.image_files import FileBatches, ImageFiles
from bench.seeds import generator, seed_of
from methods.base import Data


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Batches of an epoch; a last batch of one image, which batch norm cannot take, is left out."""
    return max(1, images // batch_size + (images % batch_size > 1))


class Batch(NamedTuple):
    """What one update sees."""

    inputs: Tensor
    """(B, C, H, W) in [0, 1], augmented"""
    labels: Tensor
    """(B,) or (B, K)"""
    indices: Tensor
    """(B,) int64 on the CPU: which images of the stage's data these are"""


class Views:
    """Augmented batches of a stage's data; what is drawn depends on the seed and the epoch alone."""

    images: Tensor
    """(N, C, H, W) uint8 as they are, on the device; or `ImageFiles`"""

    def __init__(self, data: Data, batch_size: int, steps: int, device: torch.device) -> None:
        """Moves images in memory to the device once.

        Args:
            data: what to draw from.
            batch_size: images of a batch.
            steps: batches of an epoch; with fewer images the last is short, with more a part is drawn each epoch.
            device: where batches are made.
        """
        self.data, self.batch_size, self.steps, self.device = data, batch_size, steps, device
        self.names = check_augment(data.augment, data.images.shape[-1])
        self.labels = data.labels.to(device)
        self.used = min(len(data.images), batch_size * steps)
        if self.used > batch_size and self.used % batch_size == 1:
            self.used -= 1
        self.files: FileBatches | None = None
        self.images = data.images
        if isinstance(data.images, ImageFiles):
            boxes = "resized-crop" in self.names
            self.files = FileBatches(data.images, batch_size, self.used, boxes, device)
        else:
            self.images = data.images.to(device)

    @property
    def fixed(self) -> bool:
        """Whether an image looks the same in every epoch."""
        return set(self.names) == {"none"}

    @functools.cached_property
    def stream(self) -> str:
        """16 hexadecimal digits for all that decides what batches show but the seed and the epoch; not for labels."""
        decisive = (content(self.data.images), self.names, self.data.magnitude, self.batch_size, self.steps)
        return hashlib.sha256(repr(decisive).encode()).hexdigest()[:16]

    def epoch(self, seed: int, number: int) -> Iterator[Batch]:
        """Batches of one epoch."""
        order = torch.randperm(len(self.data.images), generator=generator(seed, "order", number))[: self.used]
        if self.files:
            names = tuple(name for name in self.names if name != "resized-crop")
            batches = self.files.epoch(order, seed_of(seed, "views", number))
        else:
            names = self.names
            batches = (self.images[chosen.to(self.device)] for chosen in order.split(self.batch_size))
        augment = Augment(names, self.data.magnitude, seed, number)
        for chosen, batch in zip(order.split(self.batch_size), batches, strict=True):
            yield Batch(augment(batch).float().div_(255), self.labels[chosen.to(self.device)], chosen)
