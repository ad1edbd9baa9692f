"""Inputs and targets: one tensor, or several by name, with one row for each sample; or what is left in files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor


class FileRows(Protocol):
    """Samples left in their files, which would not fit into memory as a tensor."""

    @property
    def shape(self) -> torch.Size:
        """As the tensor's would be."""

    def __len__(self) -> int:
        """How many samples there are."""

    def take(self, chosen: Tensor | slice) -> FileRows:
        """The samples of a mask (N,) bool, of indices (M,) int64, or of a slice."""

    def joined(self, others: Sequence[FileRows]) -> FileRows:
        """These samples, then those of others."""

    def split(self, size: int) -> Iterator[Tensor]:
        """Reads the samples in batches, in their order."""

    def whole(self) -> Tensor:
        """All samples as one tensor.

        Raises:
            Unsupported: if they do not fit into memory.
        """


Rows = Tensor | dict[str, Tensor] | FileRows
"""One row a sample, padded to a fixed size: images (N, C, H, W); {"ids": (N, L), "mask": (N, L)}; classes (N,)."""


def count(rows: Rows) -> int:
    """How many samples there are."""
    return len(next(iter(rows.values()))) if isinstance(rows, dict) else len(rows)


def sample_shape(rows: Rows) -> tuple[int, ...]:
    """The shape of one sample; of several tensors, one after another by name."""
    if isinstance(rows, dict):
        return tuple(size for name in sorted(rows) for size in rows[name].shape[1:])
    return tuple(rows.shape[1:])


def take(rows: Rows, chosen: Tensor | slice) -> Rows:
    """The samples of a mask (N,) bool, of indices (M,) int64, or of a slice."""
    if isinstance(rows, dict):
        return {name: tensor[chosen] for name, tensor in rows.items()}
    return rows[chosen] if isinstance(rows, Tensor) else rows.take(chosen)


def join(parts: Sequence[Rows]) -> Rows:
    """The samples of several rows, one after another; all are of one kind, with the same names and shapes."""
    first, *others = parts
    if isinstance(first, dict):
        return {name: torch.cat([first[name], *(part[name] for part in others)]) for name in first}  # type: ignore[index]
    if isinstance(first, Tensor):
        return torch.cat([first, *others])  # type: ignore[list-item]
    return first.joined(others)  # type: ignore[arg-type]


def split(rows: Rows, size: int) -> Iterator[Tensor | dict[str, Tensor]]:
    """The samples in batches, in their order; one empty batch if there are none."""
    if isinstance(rows, dict):
        for start in range(0, max(1, count(rows)), size):
            yield {name: tensor[start : start + size] for name, tensor in rows.items()}
    else:
        yield from rows.split(size)


def whole(rows: Rows) -> Tensor:
    """Samples that are one tensor, read from their files if they are in files.

    Raises:
        TypeError: if they are several tensors.
        Unsupported: if they do not fit into memory.
    """
    if isinstance(rows, dict):
        raise TypeError(f"samples must be one tensor, but are {', '.join(rows)}.")
    return rows if isinstance(rows, Tensor) else rows.whole()
