"""Data sets as uint8 tensors in memory, their three-way split, and augmented batches drawn from named seeds."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.model_selection import train_test_split
from torch import Tensor

from bench.errors import InputError, unknown
from bench.seeds import generator, seed_of
from bench.spec import DataSpec
from methods.base import Data

FOLDER = "folder:"
AUGMENTATIONS = ("none", "crop", "crop-reflect", "flip", "randaugment")
LARGEST_FOLDER = 8 * 2**30
"""Bytes of pixels that a folder of images may take in memory."""


class Part(NamedTuple):
    """Images and their classes."""

    images: Tensor
    """(N, C, H, W) uint8"""
    labels: Tensor
    """(N,) int64"""


class Source(NamedTuple):
    """A data set as it comes: one part, and a test part if it has its own."""

    train: Part
    test: Part | None
    classes: tuple[str, ...]
    fingerprint: str


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
    pixels = train.images.float() / 255
    return Splits(
        Data(train.images, train.labels, unlabelled, len(source.classes)),
        validation,
        test,
        source.classes,
        tuple(pixels.mean(dim=(0, 2, 3)).tolist()),
        tuple(pixels.std(dim=(0, 2, 3)).clamp_min(1e-3).tolist()),
    )


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


@functools.lru_cache(maxsize=2)
def read(name: str, image_size: int, data_dir: Path) -> Source:
    """A data set by name, from `data_dir` or a download into it, its images resized if `image_size` is given.

    Raises:
        InputError: if the name is unknown or the files cannot be had.
    """
    if name.startswith(FOLDER):
        train, test, classes = _folder(data_dir / name.removeprefix(FOLDER), image_size)
    elif name in DATASETS:
        train, test, classes = DATASETS[name](data_dir)
        if image_size:
            train, test = _resized(train, image_size), test and _resized(test, image_size)
    else:
        raise unknown("data set", name, DATASETS, see="kdbench run --help (a path of a folder of images works too)")
    digest = hashlib.sha256("\n".join(classes).encode())
    for part in (train, test):
        for tensor in part or ():
            digest.update(str(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes())
    return Source(train, test, classes, digest.hexdigest()[:16])


Parts = tuple[Part, Part | None, tuple[str, ...]]


def _digits(data_dir: Path) -> Parts:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images / 16 * 255).round().to(torch.uint8).unsqueeze(1)
    return Part(images, torch.from_numpy(digits.target).long()), None, tuple(str(digit) for digit in range(10))


def _torchvision(cls: str, name: str) -> Callable[[Path], Parts]:
    def parts(data_dir: Path) -> Parts:
        import torchvision

        def part(train: bool) -> Part:
            data: Any = getattr(torchvision.datasets, cls)(data_dir, train=train, download=True)
            images = torch.as_tensor(np.asarray(data.data))
            images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
            classes.extend(map(str, data.classes))
            return Part(images, torch.as_tensor(np.asarray(data.targets)).long())

        classes: list[str] = []
        try:
            train, test = part(train=True), part(train=False)
        except Exception as error:  # torchvision raises what the network, the disk or the archive raised
            raise InputError(
                f"{name} is not in {data_dir} and could not be downloaded ({error}). Give the folder that holds it by "
                f"--data-dir, in torchvision's layout ({cls})."
            ) from None
        return train, test, tuple(dict.fromkeys(classes))

    return parts


def _cifar10_jpeg(data_dir: Path) -> Parts:
    import pyarrow.parquet as pq
    from torchvision.io import decode_jpeg

    folder = data_dir if (data_dir / "train.parquet").exists() else data_dir / "cifar10-jpeg"
    names: list[str] = []

    def part(file: Path) -> Part:
        if not file.exists():
            raise InputError(
                f"cifar10-jpeg is not in {data_dir}: there is no {file}. Give the folder that holds "
                "cifar10-jpeg/train.parquet and test.parquet by --data-dir."
            )
        table = pq.read_table(file)
        metadata = table.schema.metadata or {}
        names[:] = metadata.get(b"class_names", b",".join(b"%d" % label for label in range(10))).decode().split(",")
        encoded = [torch.frombuffer(bytearray(image["bytes"]), dtype=torch.uint8) for image in table["img"].to_pylist()]
        labels = torch.from_numpy(table["label"].to_numpy().copy()).long()
        return Part(torch.stack([image.expand(3, -1, -1) for image in decode_jpeg(encoded)]), labels)

    train, test = part(folder / "train.parquet"), part(folder / "test.parquet")
    return train, test, tuple(name.strip(' "[]') for name in names)


def _folder(folder: Path, image_size: int) -> Parts:
    """Images in one folder a class, or so under train and maybe test or val; resized and cropped to a square."""
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms.v2.functional import center_crop, resize

    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: give a folder that holds one folder of images a class.")
    if not image_size:
        raise InputError(f"images of {folder} need one size: give --image-size, as --image-size 64.")

    def pixels_of(file: str) -> Tensor:
        try:
            image = decode_image(file, ImageReadMode.RGB)
        except RuntimeError as error:
            raise InputError(f"{file} cannot be decoded as an image: {str(error).splitlines()[0]}") from None
        square: Tensor = center_crop(resize(image, [image_size]), [image_size])
        return square

    def part(path: Path) -> tuple[Part, list[str]]:
        try:
            listing = ImageFolder(str(path))
        except FileNotFoundError as error:
            raise InputError(f"{path} does not hold one folder of images a class: {error}") from None
        if (size := len(listing.samples) * 3 * image_size**2) > LARGEST_FOLDER:
            raise InputError(
                f"{path} takes {size / 2**30:.0f} GiB at {image_size} pixels, but at most {LARGEST_FOLDER >> 30} fit: "
                "give a smaller --image-size."
            )
        pixels = torch.stack([pixels_of(file) for file, _ in listing.samples])
        return Part(pixels, torch.tensor([label for _, label in listing.samples])), listing.classes

    held_out = next((name for name in ("test", "val", "validation") if (folder / name).is_dir()), None)
    if (folder / "train").is_dir() and held_out:
        (train, classes), (test, test_classes) = part(folder / "train"), part(folder / held_out)
        if classes != test_classes:
            raise InputError(f"train and {held_out} of {folder} hold different classes.")
        return train, test, tuple(classes)
    train, classes = part(folder / "train" if (folder / "train").is_dir() else folder)
    return train, None, tuple(classes)


def _resized(part: Part, size: int) -> Part:
    images = F.interpolate(part.images.float(), (size, size), mode="bicubic", antialias=True, align_corners=False)
    return Part(images.round().clamp(0, 255).to(torch.uint8), part.labels)


DATASETS: dict[str, Callable[[Path], Parts]] = {
    "digits": _digits,
    "mnist": _torchvision("MNIST", "mnist"),
    "fashion-mnist": _torchvision("FashionMNIST", "fashion-mnist"),
    "cifar10": _torchvision("CIFAR10", "cifar10"),
    "cifar100": _torchvision("CIFAR100", "cifar100"),
    "cifar10-jpeg": _cifar10_jpeg,
}


def default_augment(name: str) -> str:
    """The usual augmentation of a data set: digits are not flipped."""
    return "crop" if name in ("digits", "mnist") else "crop+flip"


def check_augment(augment: str) -> tuple[str, ...]:
    """The augmentations named in a recipe.

    Raises:
        InputError: if one is unknown.
    """
    names = tuple(augment.split("+"))
    for name in names:
        if name not in AUGMENTATIONS:
            raise unknown("augmentation", name, AUGMENTATIONS)
    return names


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Batches of an epoch; a last batch of one image, which batch norm cannot take, is left out."""
    return max(1, images // batch_size + (images % batch_size > 1))


class Views:
    """Augmented batches of a stage's data; what is drawn depends on the seed and the epoch alone."""

    def __init__(self, data: Data, batch_size: int, steps: int, device: torch.device) -> None:
        """Pads the images once.

        Args:
            data: what to draw from.
            batch_size: images of a batch.
            steps: batches of an epoch; with fewer images the last is short, with more a part is drawn each epoch.
            device: where batches are made.
        """
        self.names, self.magnitude = check_augment(data.augment), data.magnitude
        self.size, self.batch_size, self.steps = data.images.shape[-1], batch_size, steps
        self.pad = max(1, self.size // 8) if {"crop", "crop-reflect"} & set(self.names) else 0
        images = data.images
        if self.pad:
            mode = "reflect" if "crop-reflect" in self.names else "constant"
            images = F.pad(images.float(), [self.pad] * 4, mode=mode).to(torch.uint8)
        self.images, self.labels, self.device = images.to(device), data.labels.to(device), device

    def epoch(self, seed: int, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of one epoch: inputs (B, C, H, W) in [0, 1], labels (B,) or (B, K)."""
        order = torch.randperm(len(self.images), generator=generator(seed, "order", number))
        draws = generator(seed, "views", number)
        for step, chosen in enumerate(order.split(self.batch_size)[: self.steps]):
            if len(chosen) == 1 and step:
                return
            chosen = chosen.to(self.device)
            images = self._augmented(self.images[chosen], draws, seed_of(seed, "randaugment", number, step))
            yield images.float().div_(255), self.labels[chosen]

    def _augmented(self, images: Tensor, draws: torch.Generator, seed: int) -> Tensor:
        count = len(images)
        if self.pad:
            corners = torch.randint(0, 2 * self.pad + 1, (2, count), generator=draws).to(self.device)
            span = torch.arange(self.size, device=self.device)
            rows, columns = (corner[:, None] + span for corner in corners)
            which = torch.arange(count, device=self.device)[:, None, None]
            images = images[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        if "flip" in self.names:
            flipped = (torch.rand(count, generator=draws) < 0.5).to(self.device)[:, None, None, None]
            images = torch.where(flipped, images.flip(-1), images)
        return self._randaugmented(images, seed) if "randaugment" in self.names else images

    def _randaugmented(self, images: Tensor, seed: int) -> Tensor:
        from torchvision.transforms.v2 import RandAugment

        transform = RandAugment(num_ops=2, magnitude=self.magnitude)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return torch.stack([transform(image) for image in images])
