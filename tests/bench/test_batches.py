"""What every batch shows: as many samples with labels, whatever else a method is given."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from kdbench.bench.data.batches import Batches
from kdbench.bench.data.splits import TEST_SEED, Part, Source, Splits, divided
from kdbench.bench.spec import DataSpec
from kdbench.bench.tasks import task_of
from kdbench.methods.base import Data
from kdbench.methods.functional import with_unlabelled
from tests.conftest import DATA
from tests.harness import CPU


def data(own: int, additional: int, ratio: float = 2.0) -> Data:
    rows = torch.arange(own + additional)
    return Data(rows.float()[:, None], rows, rows[:0], classes=10, additional=additional, additional_ratio=ratio)


def shown(batches: Batches, epoch: int = 1) -> list[list[int]]:
    return [batch.indices.tolist() for batch in batches.epoch(0, epoch)]


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
def test_every_batch_has_its_own_samples_and_a_fixed_share_of_additional_ones(ratio: float) -> None:
    batches = Batches(data(20, 100, ratio), 8, 3, CPU)
    sizes = [(sum(i < 20 for i in each), sum(i >= 20 for i in each)) for each in shown(batches)]
    assert sizes == [(own, round(8 * ratio)) for own in (8, 8, 4)]
    assert batches.used == sum(map(len, shown(batches)))


def test_own_samples_come_as_they_do_without_additional_ones() -> None:
    alone, with_others = Batches(data(20, 0), 8, 3, CPU), Batches(data(20, 100), 8, 3, CPU)
    for epoch in (1, 2):
        own = [[i for i in each if i < 20] for each in shown(with_others, epoch)]
        assert own == shown(alone, epoch)


def test_few_additional_samples_come_again_only_when_all_have_come() -> None:
    more = [i for each in shown(Batches(data(20, 10), 8, 3, CPU)) for i in each if i >= 20]
    assert len(more) == 48 and all(sorted(more[start : start + 10]) == list(range(20, 30)) for start in (0, 10, 20, 30))


def test_batches_of_other_shares_have_other_streams() -> None:
    assert len({Batches(data(20, 100, ratio), 8, 3, CPU).stream for ratio in (1.0, 2.0)}) == 2


def test_methods_that_take_unlabelled_samples_see_every_label_once_an_epoch(digits: Splits) -> None:
    given = dataclasses.replace(digits.train, additional_ratio=3.0)
    mixed = with_unlabelled(given, None)  # type: ignore[arg-type]
    labels = len(digits.train.inputs)
    batches = task_of(DATA.task).batches(mixed, 16, -(-labels // 16), CPU)
    views = [i for batch in batches.epoch(1, 1) for i in batch.indices.tolist()]
    assert sorted(i for i in views if i < labels) == list(range(labels)) and len(views) > 3.5 * labels


def test_seeds_of_the_split_draw_all_anew_but_the_test_part() -> None:
    rows = torch.arange(200)
    source = Source(Part(rows[:, None], rows % 5), None, tuple("abcde"), "")
    spec = DataSpec(name="x", validation=0.2, test=0.25, train_fraction=0.5)
    first, second = (divided(source, spec.model_copy(update={"split_seed": seed}), rows % 5) for seed in (0, 1))
    assert torch.equal(first.test.inputs, second.test.inputs) and TEST_SEED
    for part in ("train", "validation"):
        assert not torch.equal(getattr(first, part).inputs, getattr(second, part).inputs)
    everything = [first.train.inputs, first.train.unlabelled, first.validation.inputs, first.test.inputs]
    assert torch.equal(torch.cat(everything).flatten().sort().values, rows)  # type: ignore[arg-type]
