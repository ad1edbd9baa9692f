"""Image data sets, read as uint8 tensors or left in their files, and what networks are told of them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.bench.data.image_files import ImageFiles
from kdbench.bench.data.splits import EVALUATION_BATCH, Part, Source, Splits, fingerprint
from kdbench.bench.errors import InputError, unknown
from kdbench.bench.outside import brought, loaded
from kdbench.bench.seeds import generator
from kdbench.methods.rows import Rows, split, take, whole

FOLDER = "folder:"
LARGEST_FOLDER = 8 * 2**30
"""Bytes of pixels that a folder of images may take in memory; a larger one is left in its files."""
SAMPLED = 2000
"""Images in files from which the mean and the standard deviation are estimated."""


@dataclass(frozen=True)
class ImageSplits(Splits):
    """Images split for one run, with what networks normalise them by."""

    mean: tuple[float, ...]
    """Of the labelled training images in [0, 1], for each channel."""
    std: tuple[float, ...]
    """Standard deviation of the same."""

    @classmethod
    def of(cls, splits: Splits) -> ImageSplits:
        """The same images with their statistics."""
        mean, std = _statistics(splits.train.inputs)
        return cls(splits.train, splits.validation, splits.test, splits.class_names, mean, std)

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return shape(self.train.inputs)[1]

    @property
    def size(self) -> int:
        """Height and width of an image in pixels."""
        return shape(self.train.inputs)[-1]


def shape(images: Rows) -> torch.Size:
    """(N, C, H, W) of images, also of those in files."""
    assert isinstance(images, Tensor | ImageFiles)
    return images.shape


def _statistics(images: Rows) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in [0, 1]; of images in files, those of a seeded sample."""
    if isinstance(images, Tensor):
        pixels = images.float() / 255
        mean, std = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3))
    else:
        sample = take(images, torch.randperm(shape(images)[0], generator=generator("statistics"))[:SAMPLED])
        mean, square = torch.zeros(2, 3, dtype=torch.float64)
        for batch in split(sample, EVALUATION_BATCH):
            values = whole(batch).double() / 255
            mean += values.mean(dim=(2, 3)).sum(dim=0) / shape(sample)[0]
            square += values.square().mean(dim=(2, 3)).sum(dim=0) / shape(sample)[0]
        std = (square - mean.square()).sqrt()
    return tuple(mean.tolist()), tuple(std.clamp_min(1e-3).tolist())


@functools.lru_cache(maxsize=2)
def read(name: str, image_size: int, data_dir: Path) -> Source:
    """A data set by name, from `data_dir` or a download into it, its images resized if `image_size` is given.

    Raises:
        InputError: if the name is unknown or the files cannot be had.
    """
    if name.startswith(FOLDER):
        return _folder(data_dir / name.removeprefix(FOLDER), image_size)
    if name in DATASETS or name in brought("datasets"):
        reader = DATASETS.get(name) or loaded("datasets", name)
        train, test, classes = reader(data_dir)
        if image_size:
            train, test = _resized(train, image_size), test and _resized(test, image_size)
    else:
        known = [*DATASETS, *brought("datasets")]
        raise unknown("data set", name, known, see="kdbench run --help (a path of a folder of images works too)")
    return Source(train, test, classes, fingerprint(classes, (train, test)))


def named(name: str, data_dir: Path) -> tuple[str, Path]:
    """A data set by its name, and the folder where it is looked for; a path is a folder of images.

    Args:
        name: of a data set, or the path of a folder.
        data_dir: where other data sets are looked for.
    """
    if os.sep in name or (name not in DATASETS and Path(name).is_dir()):
        path = Path(name).expanduser().resolve()
        return f"{FOLDER}{path.name}", path.parent
    return name, data_dir


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


def _folder(folder: Path, image_size: int) -> Source:
    """Images in one folder a class, or so under train, and maybe val and test; resized and cropped to a square.

    The test part is `test`; beside it, `val` is the validation part, and alone, as ImageNet has it, the test part.
    """
    from torchvision.datasets import ImageFolder

    if not folder.is_dir():
        raise InputError(
            f"there is no folder {folder}: give a folder that holds one folder of images a class; --data-dir is where "
            "one lies that is named without its path."
        )
    if not image_size:
        raise InputError(f"images of {folder} need one size: give --image-size, as --image-size 64.")

    def part(path: Path) -> tuple[Part, list[str]]:
        try:
            listing = ImageFolder(str(path))
        except FileNotFoundError as error:
            raise InputError(f"{path} does not hold one folder of images a class: {error}") from None
        if len(listing.classes) < 2:
            raise InputError(f"{path} holds one class alone, {listing.classes[0]}: give a folder for each of several.")
        files = ImageFiles.listed(folder, [file for file, _ in listing.samples], image_size, LARGEST_FOLDER)
        images: Rows = files.whole() if files.nbytes <= LARGEST_FOLDER else files
        return Part(images, torch.tensor(listing.targets)), listing.classes

    if not (folder / "train").is_dir():
        train, classes = part(folder)
        return Source(train, None, tuple(classes), fingerprint(tuple(classes), (train, None)))
    train, classes = part(folder / "train")
    held_out: list[Part] = []
    aside = "val" if (folder / "val").is_dir() else "validation"
    for name in [name for name in ("test", aside) if (folder / name).is_dir()]:
        own, own_classes = part(folder / name)
        if classes != own_classes:
            differing = ", ".join(sorted({*classes} ^ {*own_classes}))
            raise InputError(f"train and {name} of {folder} hold different classes: {differing} are in one alone.")
        held_out.append(own)
    test, validation = (*held_out, None, None)[:2]
    parts = (train, test, validation) if validation else (train, test)
    return Source(train, test, tuple(classes), fingerprint(tuple(classes), parts), validation)


def _resized(part: Part, size: int) -> Part:
    images = F.interpolate(
        whole(part.inputs).float(), (size, size), mode="bicubic", antialias=True, align_corners=False
    )
    return Part(images.round().clamp(0, 255).to(torch.uint8), part.targets)


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
