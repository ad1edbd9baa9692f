"""Generators that take turns must be as if alone."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch
from torch import Tensor

from kdbench.bench.training.interleave import interleave

CPU = torch.device("cpu")


def draws(count: int, seed: int | None = None) -> Generator[None, None, list[Tensor]]:
    """Random numbers of torch's default generator, a pause after each."""
    found = []
    if seed is not None:
        torch.manual_seed(seed)
    for _ in range(count):
        found.append(torch.rand(3))
        yield
    return found


def test_each_draws_as_if_it_were_alone() -> None:
    together = interleave([draws(5, 1), draws(2, 2), draws(4, 3), draws(3)], CPU)
    before = torch.get_rng_state()
    for (count, seed), theirs in zip(((5, 1), (2, 2), (4, 3), (3, None)), together, strict=True):
        assert isinstance(theirs, list)
        torch.set_rng_state(before)
        if seed is not None:
            torch.manual_seed(seed)
        assert torch.equal(torch.stack([torch.rand(3) for _ in range(count)]), torch.stack(theirs))
    torch.set_rng_state(before)


def test_all_start_from_the_callers_state_and_leave_it_as_it_was() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, second = interleave([draws(3), draws(3)], CPU)
    assert isinstance(first, list) and isinstance(second, list)
    assert torch.equal(torch.stack(first), torch.stack(second))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[0], torch.rand(3))


def test_turns_are_taken_in_order() -> None:
    said: list[str] = []

    def speaker(name: str, count: int) -> Generator[None, None, str]:
        for number in range(count):
            said.append(f"{name}{number}")
            yield
        return name

    assert interleave([speaker("a", 3), speaker("b", 1), speaker("c", 2)], CPU) == ["a", "b", "c"]
    assert said == ["a0", "b0", "c0", "a1", "c1", "a2"]


def test_one_that_fails_ends_by_its_exception_while_others_go_on() -> None:
    def failing() -> Generator[None, None, list[Tensor]]:
        torch.manual_seed(99)
        yield
        raise ValueError("torn")

    before = torch.get_rng_state()
    results = interleave([draws(4, 1), failing(), draws(4, 2)], CPU)
    alone = [interleave([draws(4, seed)], CPU)[0] for seed in (1, 2)]
    assert isinstance(results[1], ValueError) and str(results[1]) == "torn"
    for mine, theirs in zip((results[0], results[2]), alone, strict=True):
        assert torch.equal(torch.stack(mine), torch.stack(theirs))  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_to_do_gives_nothing() -> None:
    assert interleave([], CPU) == []


@pytest.mark.parametrize("interrupt", [SystemExit, KeyboardInterrupt])
def test_interrupt_passes_and_the_others_give_free_what_they_hold(interrupt: type[BaseException]) -> None:
    freed: list[str] = []

    def holding(name: str) -> Generator[None, None, None]:
        try:
            while True:
                yield
        finally:
            freed.append(name)

    def interrupted() -> Generator[None, None, None]:
        torch.rand(1)
        yield
        raise interrupt

    before, generators = torch.get_rng_state(), [holding("a"), interrupted(), holding("b")]
    with pytest.raises(interrupt):
        interleave(generators, CPU)
    assert freed == ["a", "b"]
    assert torch.equal(torch.get_rng_state(), before)
