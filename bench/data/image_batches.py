"""Augmented batches of images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kdbench.bench.data.augment import Augment, check_augment
from kdbench.bench.data.batches import Batch, Batches, on
from kdbench.bench.data.image_files import FileBatches, ImageFiles
from kdbench.bench.data.images import shape
from kdbench.bench.seeds import seed_of
from kdbench.methods.base import Data
from kdbench.methods.rows import Rows, take, whole


def unit_range(images: Tensor) -> Tensor:
    """Images (B, C, H, W) uint8 as networks take them: float32 in [0, 1]."""
    return images.float().div_(255)


class ImageBatches(Batches):
    """Augmented batches of images, which are kept on the device as uint8, or read from their files."""

    def __init__(self, data: Data, batch_size: int, steps: int, device: torch.device) -> None:
        """See `Batches`; moves images in memory to the device once.

        Raises:
            InputError: if the augmentation does not fit the images.
        """
        super().__init__(data, batch_size, steps, device)
        self.names = check_augment(data.augment, shape(data.inputs)[-1])
        self.second = check_augment(data.second, shape(data.inputs)[-1]) if data.second else ()
        self.files: FileBatches | None = None
        if isinstance(data.inputs, ImageFiles):
            boxes = "resized-crop" in self.names
            self.files = FileBatches(data.inputs, self.batch_size, self.used, boxes, device)
        else:
            self.inputs = on(device, data.inputs)

    @property
    def fixed(self) -> bool:
        """Whether an image looks the same in every epoch."""
        return set(self.names) == {"none"} and not self.second

    @property
    def decisive(self) -> tuple[object, ...]:
        """What decides how images look but their pixels, the seed and the epoch."""
        return (self.names, self.data.magnitude, *super().decisive)

    def epoch(self, seed: int, number: int) -> Iterator[Batch]:
        """Batches of one epoch, augmented; a second view's draws are its own."""
        order = self.order(seed, number)
        augment = Augment(self._of_tensors(self.names), self.data.magnitude, seed, number)
        own = seed_of(seed, "second view")
        second = Augment(self._of_tensors(self.second), self.data.magnitude, own, number) if self.second else None
        for chosen, images in zip(order.split(self.batch_size), self._images(order, seed, number), strict=True):
            targets = take(self.targets, chosen.to(self.device))
            inputs, targets = self.augmented(augment, images, targets)
            if second:
                inputs = torch.stack([whole(inputs), unit_range(second(images))], dim=1).flatten(0, 1)
                targets = whole(targets).repeat_interleave(2, dim=0)
            yield Batch(inputs, targets, chosen)

    def _of_tensors(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The augmentations of images at hand: boxes are those of files where these are read."""
        return tuple(name for name in names if name != "resized-crop") if self.files else names

    def augmented(self, augment: Augment, images: Tensor, targets: Rows) -> tuple[Rows, Rows]:
        """The next images (B, C, H, W) uint8 as networks take them, and their targets, which do not move with them."""
        return unit_range(augment(images)), targets

    def _images(self, order: Tensor, seed: int, number: int) -> Iterator[Tensor]:
        if self.files:
            yield from self.files.epoch(order, seed_of(seed, "views", number))
        else:
            for chosen in order.split(self.batch_size):
                yield whole(take(self.inputs, chosen.to(self.device)))
