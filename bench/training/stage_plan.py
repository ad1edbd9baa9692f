"""How a run's epochs are divided among its stages, and the fine-tuning that may follow them."""

from __future__ import annotations

import dataclasses

from bench.networks.signals import GRADIENTS
from bench.spec import Recipe
from methods.base import Method, Stage


def finetuned(method: Method, stages: list[Stage], recipe: Recipe) -> list[Stage]:
    """The stages, shortened by the recipe's share of fine-tuning, then one on hard labels alone with a lower rate."""
    if not recipe.finetune:
        return stages

    shorter = [dataclasses.replace(stage, epochs=stage.epochs * (1 - recipe.finetune)) for stage in stages]
    last = Stage(
        "finetune",
        method.hard_loss,
        stages[-1].students,
        (),
        epochs=recipe.finetune,
        data=method.labelled,
        lr=recipe.finetune_lr,
        needs=method.needed() - GRADIENTS,
    )
    return [*shorter, last]


def stage_epochs(shares: list[float], epochs: int) -> list[int]:
    """Whole epochs of each stage, at least one, that add up to the rounded sum of the shares where they can."""
    ends = [round(sum(shares[: index + 1]) * epochs) for index in range(len(shares))]
    return [max(1, end - start) for start, end in zip([0, *ends], ends, strict=False)]
