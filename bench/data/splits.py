"""A data set split in three for a run: train (labelled and unlabelled), validation, test."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from kdbench.bench.data.image_files import ImageFiles
from kdbench.bench.errors import InputError
from kdbench.bench.seeds import seed_of
from kdbench.bench.spec import DataSpec
from kdbench.methods.base import Data
from kdbench.methods.rows import Rows, count, take, whole

EVALUATION_BATCH = 128
"""Samples of a batch where nothing is trained. Larger ones are no faster on CPUs, where their activations fault pages
in anew each time."""

TEST_SEED = 1
"""Of a test part that is drawn. Raised when a data set's has served too many choices: then a fresh one is drawn."""


class Part(NamedTuple):
    """Samples with their targets: a part of a data set."""

    inputs: Rows
    """As the task has them: images (N, C, H, W) uint8, or `ImageFiles`, which stand for them."""
    targets: Rows
    """As the task has them: classes (N,) int64."""


class Source(NamedTuple):
    """A data set as it comes: one part, and a test part if it has its own."""

    train: Part
    test: Part | None
    classes: tuple[str, ...]
    fingerprint: str
    validation: Part | None = None
    """If it has its own; it comes with a test part then."""


@dataclass(frozen=True)
class Splits:
    """A data set split for one run."""

    train: Data
    validation: Part
    test: Part
    class_names: tuple[str, ...]


def divided(source: Source, spec: DataSpec, strata: Tensor | None) -> Splits:
    """A data set split in three, and its training part in labelled and unlabelled.

    A test part that is drawn is the same for every seed of the split; all else is drawn anew, but a part that the data
    set has of its own is that part.

    Args:
        source: the data set.
        spec: shares and seed.
        strata: (N,) int64 of `source.train`: what every part keeps in proportion; None for nothing.

    Raises:
        InputError: if the data are too few to split.
    """
    rest, test = np.arange(count(source.train.inputs)), source.test
    if test is None:
        rest, held_out = _divided(rest, spec.test, spec, strata, "test", seed=TEST_SEED)
        test = _chosen(source.train, held_out)
    train, validation = rest, source.validation
    if validation is None:
        train, held_out = _divided(rest, spec.validation, spec, strata, "validation", spec.split_seed)
        validation = _chosen(source.train, held_out)
    labelled, withheld = train, train[:0]
    if spec.train_fraction < 1:
        labelled, withheld = _divided(train, 1 - spec.train_fraction, spec, strata, "labelled", spec.split_seed)
    given = _chosen(source.train, labelled)
    unlabelled = take(source.train.inputs, torch.from_numpy(withheld))
    return Splits(
        Data(given.inputs, given.targets, unlabelled, len(source.classes)),
        validation,
        test,
        source.classes,
    )


Indices = np.ndarray[Any, np.dtype[np.int64]]


def _divided(
    places: Indices, share: float, spec: DataSpec, strata: Tensor | None, name: str, seed: int
) -> tuple[Indices, Indices]:
    """Places without a share, and the share; each in the data set's order."""
    drawn = seed_of(seed, "split", name) % 2**32
    kept = None if strata is None else strata.numpy()[places]
    try:
        first, second = train_test_split(places, test_size=share, random_state=drawn, stratify=kept)
    except ValueError as error:
        raise InputError(f"cannot split {len(places)} samples of {spec.name} for {name}: {error}") from None
    return np.sort(first), np.sort(second)


def _chosen(part: Part, places: Indices) -> Part:
    indices = torch.from_numpy(places)
    return Part(take(part.inputs, indices), take(part.targets, indices))


def check_fingerprint(spec: DataSpec, fingerprint: str, place: object) -> None:
    """Checks that data are those that a run was specified for.

    Raises:
        InputError: if they have changed since.
    """
    if spec.fingerprint and spec.fingerprint != fingerprint:
        raise InputError(
            f"the data {spec.name} in {place} have fingerprint {fingerprint}, but this run was made with "
            f"{spec.fingerprint}: the files have changed. Put the old ones back, or start the run anew."
        )


def fingerprint(classes: tuple[str, ...], parts: tuple[Part | None, ...]) -> str:
    """16 hexadecimal digits for the names of the classes, and the inputs and targets of every part."""
    digest = hashlib.sha256("\n".join(classes).encode())
    for part in parts:
        for rows in part or ():
            update(digest, rows, ("name", "bytes"))
    return digest.hexdigest()[:16]


def content(rows: Rows) -> str:
    """32 hexadecimal digits for the values of inputs; for the state on disk of those that are in files."""
    digest = hashlib.sha256()
    update(digest, rows, ("name", "bytes", "modified"))
    return digest.hexdigest()[:32]


def update(digest: Any, rows: Rows, fields: tuple[str, ...]) -> None:
    """Adds shapes and values to a digest; of images in files, not the pixels but these fields of each."""
    if isinstance(rows, dict):
        for name in sorted(rows):
            digest.update(name.encode())
            update(digest, rows[name], fields)
        return
    assert isinstance(rows, Tensor | ImageFiles)
    digest.update(str(tuple(rows.shape)).encode())
    files = rows if isinstance(rows, ImageFiles) else None
    for array in [files.entries[field] for field in fields] if files else [whole(rows).cpu().numpy()]:
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
