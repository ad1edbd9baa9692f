"""Samples as one tensor, as several by name, or left in files: the same functions on each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kdbench.methods.rows import Rows, count, join, sample_shape, split, take, whole

SAMPLES = torch.arange(7 * 2 * 3).view(7, 2, 3)
LENGTHS = torch.tensor([3, 1, 2, 3, 3, 2, 1])


class Stored:
    """Some of the rows of an array in a file, which is read when they are wanted."""

    def __init__(self, file: Path, places: Tensor) -> None:
        self.file, self.places = file, places

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.places), *np.load(self.file, mmap_mode="r").shape[1:]))

    def __len__(self) -> int:
        return len(self.places)

    def take(self, chosen: Tensor | slice) -> Stored:
        return Stored(self.file, self.places[chosen])

    def joined(self, others: Sequence[object]) -> Stored:
        parts = [other for other in others if isinstance(other, Stored) and other.file == self.file]
        assert len(parts) == len(others)
        return Stored(self.file, torch.cat([self.places, *(part.places for part in parts)]))

    def split(self, size: int) -> Iterator[Tensor]:
        return iter(self.whole().split(size))

    def whole(self) -> Tensor:
        return torch.from_numpy(np.load(self.file, mmap_mode="r")[self.places.numpy()])


def tensors(rows: Rows) -> dict[str, Tensor]:
    """The samples by name; under "" where they are one tensor."""
    return rows if isinstance(rows, dict) else {"": whole(rows)}


def equal(first: Rows, second: Rows) -> bool:
    mine, theirs = tensors(first), tensors(second)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture(params=["tensor", "named", "files"])
def rows(request: pytest.FixtureRequest, tmp_path: Path) -> Rows:
    if request.param == "tensor":
        return SAMPLES
    if request.param == "named":
        return {"ids": SAMPLES, "lengths": LENGTHS}
    np.save(tmp_path / "samples.npy", SAMPLES.numpy())
    return Stored(tmp_path / "samples.npy", torch.arange(7))


def chosen_by(rows: Rows, choose: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {name: choose(tensor) for name, tensor in tensors(rows).items()}


@pytest.mark.parametrize(
    "chosen",
    [slice(2, 5), slice(0), slice(-1), torch.tensor([6, 0, 0, 3]), torch.tensor([], dtype=torch.long), LENGTHS > 1],
    ids=["slice", "nothing", "but the last", "indices", "no indices", "mask"],
)
def test_taking_chooses_the_same_samples_of_every_kind(rows: Rows, chosen: Tensor | slice) -> None:
    found = take(rows, chosen)
    assert type(found) is type(rows) and count(found) == len(SAMPLES[chosen])
    assert equal(found, chosen_by(rows, lambda tensor: tensor[chosen]) if isinstance(rows, dict) else SAMPLES[chosen])


def test_joining_puts_samples_one_after_another(rows: Rows) -> None:
    parts = [take(rows, slice(4, 7)), take(rows, slice(0)), take(rows, slice(0, 4))]
    joined = join(parts)
    assert type(joined) is type(rows) and count(joined) == 7
    order = torch.tensor([4, 5, 6, 0, 1, 2, 3])
    assert equal(joined, take(rows, order)) and equal(join([rows]), rows)


@pytest.mark.parametrize(("size", "sizes"), [(3, [3, 3, 1]), (7, [7]), (100, [7])])
def test_splitting_gives_all_samples_in_their_order(rows: Rows, size: int, sizes: list[int]) -> None:
    parts = list(split(rows, size))
    assert [count(part) for part in parts] == sizes
    assert equal(join(parts), rows)


def test_no_samples_are_one_empty_batch(rows: Rows) -> None:
    (part,) = split(take(rows, slice(0)), 3)
    assert count(part) == 0 and equal(part, take(rows, slice(0)))


def test_the_shape_of_a_sample_is_without_their_number(rows: Rows) -> None:
    assert sample_shape(rows) == (2, 3)  # of named ones by name: (2, 3) of ids, () of lengths
    assert sample_shape(take(rows, slice(0))) == (2, 3)


def test_one_tensor_is_whole_and_several_are_refused_by_their_names(rows: Rows) -> None:
    if isinstance(rows, dict):
        with pytest.raises(TypeError, match="must be one tensor, but are ids, lengths"):
            whole(rows)
    else:
        assert torch.equal(whole(rows), SAMPLES)
