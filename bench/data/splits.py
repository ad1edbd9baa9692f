"""A data set split in three for a run: train (labelled and unlabelled), validation, test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from bench.data.datasets import Part, read
from bench.data.image_files import ImageFiles
from bench.errors import InputError
from bench.seeds import generator, seed_of
from bench.spec import DataSpec
from methods.base import Data

EVALUATION_BATCH = 128
"""Larger batches are no faster on CPUs, where their activations fault pages in anew each time."""
SAMPLED = 2000
"""Images in files from which the mean and the standard deviation are estimated."""


@dataclass(frozen=True)
class Splits:
    """A data set split for one run: train (labelled and unlabelled), validation and test."""

    train: Data
    validation: Part
    test: Part
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    """Of the labelled training images in [0, 1], for each channel."""
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.train.images.shape[1]

    @property
    def size(self) -> int:
        """Height and width of an image in pixels."""
        return self.train.images.shape[-1]


def load(spec: DataSpec, data_dir: Path) -> Splits:
    """Reads and splits a data set: stratified, seeded by `split_seed`, the same for every run.

    Args:
        spec: what to read and how to split it.
        data_dir: where files are looked for, and downloads kept.

    Raises:
        InputError: if the data are unknown, missing, changed since the spec was made, or too few to split.
    """
    source = read(spec.name, spec.image_size, data_dir)
    if spec.fingerprint and spec.fingerprint != source.fingerprint:
        raise InputError(
            f"the data {spec.name} in {data_dir} have fingerprint {source.fingerprint}, but this run was made with "
            f"{spec.fingerprint}: the files have changed. Put the old ones back, or start the run anew."
        )
    rest, test = source.train, source.test
    if test is None:
        rest, test = _divide(rest, spec.test, spec, "test")
    train, validation = _divide(rest, spec.validation, spec, "validation")
    unlabelled = train.images[:0]
    if spec.train_fraction < 1:
        train, withheld = _divide(train, 1 - spec.train_fraction, spec, "labelled")
        unlabelled = withheld.images
    data = Data(train.images, train.labels, unlabelled, len(source.classes))
    return Splits(data, validation, test, source.classes, *_statistics(train.images))


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in [0, 1]; of images in files, those of a seeded sample."""
    if not isinstance(images, ImageFiles):
        pixels = images.float() / 255
        mean, std = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3))
    else:
        sample = images[torch.randperm(len(images), generator=generator("statistics"))[:SAMPLED]]
        mean, square = torch.zeros(2, 3, dtype=torch.float64)
        for pixels in sample.split(EVALUATION_BATCH):
            values = pixels.double() / 255
            mean += values.mean(dim=(2, 3)).sum(dim=0) / len(sample)
            square += values.square().mean(dim=(2, 3)).sum(dim=0) / len(sample)
        std = (square - mean.square()).sqrt()
    return tuple(mean.tolist()), tuple(std.clamp_min(1e-3).tolist())


def _divide(part: Part, share: float, spec: DataSpec, name: str) -> tuple[Part, Part]:
    """A part without a stratified share, and the share; each in the data set's order."""
    indices, labels = np.arange(len(part.labels)), part.labels.numpy()
    seed = seed_of(spec.split_seed, "split", name) % 2**32
    try:
        first, second = train_test_split(indices, test_size=share, random_state=seed, stratify=labels)
    except ValueError as error:
        raise InputError(f"cannot split {len(indices)} images of {spec.name} for {name}: {error}") from None
    first, second = (torch.from_numpy(np.sort(chosen)) for chosen in (first, second))
    return Part(part.images[first], part.labels[first]), Part(part.images[second], part.labels[second])
