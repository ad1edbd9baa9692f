from __future__ import annotations

import pytest

from bench.spec import Recipe
from bench.training.stage_plan import stage_epochs
from bench.training.train_state import schedule


@pytest.mark.parametrize(
    ("shares", "epochs", "lengths"),
    [
        ([1.0], 32, [32]),
        ([0.3, 0.7], 30, [9, 21]),
        ([1 / 3] * 3, 32, [11, 10, 11]),
        ([0.5, 0.5], 1, [1, 1]),
        ([1.0, 1.0], 5, [5, 5]),
    ],
)
def test_stages_share_the_runs_epochs(shares: list[float], epochs: int, lengths: list[int]) -> None:
    assert stage_epochs(shares, epochs) == lengths


def rates(recipe: Recipe, updates: int) -> list[float]:
    """The learning rate of every update."""
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    scheduler = schedule(optimizer, recipe, updates)
    found = []
    for update in range(updates):
        found.append(optimizer.param_groups[0]["lr"])
        scheduler.step_update(update + 1)
    return found


def test_step_schedule_falls_at_its_milestones() -> None:
    found = rates(Recipe(lr=1.0, schedule="step", milestones=(0.5, 0.8), decay=0.1), 10)
    assert found == pytest.approx([1.0] * 5 + [0.1] * 3 + [0.01] * 2)


def test_cosine_schedule_starts_at_the_rate_and_ends_near_zero() -> None:
    found = rates(Recipe(lr=1.0, schedule="cosine"), 100)
    assert found[0] == 1.0 and found[50] == pytest.approx(0.5) and found[99] < 0.001
    assert found == sorted(found, reverse=True)


def test_warmup_rises_linearly_and_constant_stays() -> None:
    found = rates(Recipe(lr=1.0, schedule="constant", warmup=0.4), 10)
    assert found == pytest.approx([0.0, 0.25, 0.5, 0.75] + [1.0] * 6)
