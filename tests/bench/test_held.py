"""What training holds, counted by hand and within runs."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdbench.bench.data.splits import Splits
from kdbench.bench.teachers.backends import Memory as InMemory
from kdbench.bench.teachers.cache import TeacherCache
from kdbench.bench.training import trainer
from kdbench.bench.training.engine import run
from kdbench.bench.training.held import Held, parameters_of, tensors_of
from tests.harness import CPU
from tests.methods.options import CNN, memory_of, spec_of

M = 4 * 1000


def test_what_lives_is_counted_once_and_what_is_gone_no_more() -> None:
    given = torch.zeros(1000)
    with Held([given]) as held:
        first = given + 1
        assert held.now == 2 * M
        view, second = first[:500], first * 2
        del first
        assert held.now == 3 * M, "the view keeps it"
        del view
        assert held.now == 2 * M
        second.add_(1)
    assert held.now == 2 * M and held.peak == 3 * M


def test_what_the_backward_pass_needs_is_held_until_it_has_been() -> None:
    weight = torch.zeros(1000, requires_grad=True)
    with Held([weight]) as held:
        loss = weight.exp().exp().sum()
        assert held.now == pytest.approx(3 * M, abs=8), "each exponential keeps its result"
        loss.backward()
        assert held.now == pytest.approx(2 * M, abs=8), "the weight and its gradient"
        weight.grad = None
        assert held.now == pytest.approx(M, abs=8)


def test_optimizers_gradients_and_buffers_are_among_what_is_held() -> None:
    module = nn.Sequential(nn.Linear(10, 10), nn.BatchNorm1d(10))
    optimizer = torch.optim.AdamW(module.parameters())
    assert parameters_of([module, module[0]]) == 10 * 10 + 3 * 10
    before = len(tensors_of([module], [optimizer]))
    module(torch.ones(2, 10)).sum().backward()
    optimizer.step()
    assert len(tensors_of([module], [optimizer])) == before + 4 * (1 + 3), (
        "a gradient, two moments and a count for each"
    )


def test_counting_moves_no_number_and_a_cache_of_answers_no_count(
    digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, cache = spec_of("at", *CNN), TeacherCache(InMemory(2**28))
    memory = memory_of(spec, digits)
    ran = [run(spec, digits, memory, CPU, each) for each in (None, cache, cache)]
    outcome, again = ran[0][0], ran[2][0]
    assert again.cost["teacher_cached"] == again.cost["teacher_forwards"] > 0
    (teacher,) = memory.stored.values()
    assert again.cost["peak_memory"] == outcome.cost["peak_memory"] > len(teacher)
    assert outcome.cost["training_parameters"] > 1000 and "held_parameters" not in outcome.cost
    monkeypatch.setattr(trainer, "Held", lambda tensors: contextlib.nullcontext(SimpleNamespace(peak=0)))
    uncounted, files = run(spec, digits, memory, CPU)
    assert uncounted.cost["peak_memory"] == 0 and ran[0][1] == ran[2][1] == files
