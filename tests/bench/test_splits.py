"""Splits of named tensors: rows stay together, parts are disjoint and whole."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor

from kdbench.bench.data.batches import Batches
from kdbench.bench.data.splits import Part, Source, Splits, content, divided, fingerprint
from kdbench.bench.errors import InputError
from kdbench.bench.spec import DataSpec
from kdbench.methods.base import Data
from kdbench.methods.rows import Rows, join

CPU = torch.device("cpu")
SPEC = DataSpec(name="numbers", validation=0.25, test=0.2, train_fraction=0.5)


def numbers(count: int, first: int = 0) -> Part:
    """Sequences that can be told apart, and targets that follow from them."""
    ids = torch.arange(first, first + count).unsqueeze(1) * 10 + torch.arange(4)
    return Part({"ids": ids, "mask": ids % 3 > 0}, {"sums": ids.sum(dim=1), "tags": ids % 5})


def source(count: int = 100, test: Part | None = None) -> Source:
    return Source(numbers(count), test, ("a", "b"), "f00d")


def named(rows: Rows) -> dict[str, Tensor]:
    assert isinstance(rows, dict)
    return rows


def parts(splits: Splits) -> list[Part]:
    train = splits.train
    return [Part(train.inputs, train.targets), splits.validation, splits.test]


def ids(rows: Rows) -> list[int]:
    return (named(rows)["ids"][:, 0] // 10).tolist()


def test_named_tensors_are_divided_row_by_row() -> None:
    splits = divided(source(), SPEC, None)
    assert [len(ids(part.inputs)) for part in parts(splits)] == [30, 20, 20] and len(ids(splits.train.unlabelled)) == 30
    everything = sum((ids(rows) for rows in (*(part.inputs for part in parts(splits)), splits.train.unlabelled)), [])
    assert sorted(everything) == list(range(100))
    for part in parts(splits):
        inputs, targets = named(part.inputs), named(part.targets)
        assert torch.equal(inputs["mask"], inputs["ids"] % 3 > 0)
        assert torch.equal(targets["sums"], inputs["ids"].sum(dim=1)) and torch.equal(
            targets["tags"], inputs["ids"] % 5
        )
        assert ids(part.inputs) == sorted(ids(part.inputs))
    assert named(splits.train.unlabelled).keys() == {"ids", "mask"} and splits.train.classes == 2


def test_division_is_seeded_and_a_test_part_of_its_own_is_kept() -> None:
    first, same, other = (
        divided(source(), spec, None) for spec in (SPEC, SPEC, SPEC.model_copy(update={"split_seed": 1}))
    )
    assert ids(first.validation.inputs) == ids(same.validation.inputs) != ids(other.validation.inputs)
    assert ids(first.test.inputs) == ids(other.test.inputs)
    own = divided(source(test=numbers(7, first=500)), SPEC, None)
    assert ids(own.test.inputs) == list(range(500, 507)) and len(ids(own.validation.inputs)) == 25


def test_strata_are_kept_in_proportion() -> None:
    strata = (torch.arange(100) % 10 == 0).long()
    splits = divided(source(), SPEC, strata)
    counts = [sum(number % 10 == 0 for number in ids(part.inputs)) for part in parts(splits)]
    assert counts == [3, 2, 2]
    rare = torch.zeros(100, dtype=torch.long)
    rare[3] = 1
    with pytest.raises(InputError, match="cannot split 100 samples of numbers for test"):
        divided(source(), SPEC, rare)


@pytest.mark.parametrize(("count", "part"), [(1, "test"), (2, "validation"), (3, "labelled")])
def test_too_few_samples_to_split_are_refused(count: int, part: str) -> None:
    with pytest.raises(InputError, match=f"cannot split .* samples of numbers for {part}"):
        divided(source(count), SPEC, None)


def test_content_of_named_tensors_is_that_of_names_and_values_in_any_order() -> None:
    rows = named(numbers(5).inputs)
    assert content(rows) == content(dict(reversed(rows.items()))) == content(join([rows]))
    changed = {**rows, "ids": rows["ids"] + (torch.arange(5) == 3).unsqueeze(1)}
    renamed = {"words": rows["ids"], "mask": rows["mask"]}
    swapped = {"ids": rows["mask"], "mask": rows["ids"]}
    assert len({content(each) for each in (rows, changed, renamed, swapped, {"ids": rows["ids"]})}) == 5


def test_fingerprint_of_one_tensor_is_that_of_earlier_runs_and_of_named_ones_follows_targets() -> None:
    images, labels = torch.arange(12).view(3, 4).to(torch.uint8), torch.arange(3)
    digest = hashlib.sha256(b"a\nb")
    for tensor in (images, labels):
        digest.update(str(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
    assert fingerprint(("a", "b"), (Part(images, labels), None)) == digest.hexdigest()[:16]
    part = numbers(5)
    targets = named(part.targets)
    other = Part(part.inputs, {**targets, "sums": targets["sums"] + 1})
    found = [fingerprint(("a",), (each, None)) for each in (part, other)] + [fingerprint(("a",), (None, part))]
    assert found[0] != found[1] and found[0] == found[2]


def test_batches_of_named_tensors_keep_rows_together_and_leave_out_a_last_one_of_one_sample() -> None:
    part = numbers(9)
    batches = Batches(Data(part.inputs, part.targets, numbers(0).inputs, 2), 4, 3, CPU)
    assert batches.fixed and batches.used == 8
    shown = []
    for batch in batches.epoch(0, 1):
        inputs, targets = named(batch.inputs), named(batch.targets)
        assert len(batch.indices) == 4 and torch.equal(targets["sums"], inputs["ids"].sum(dim=1))
        assert ids(inputs) == batch.indices.tolist()
        shown += ids(inputs)
    assert len(set(shown)) == 8
    again, other = (torch.cat([batch.indices for batch in batches.epoch(0, number)]).tolist() for number in (1, 2))
    assert again == shown != other
