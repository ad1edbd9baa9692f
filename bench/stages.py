"""How a run's epochs are divided among its stages, and the fine-tuning that may follow them."""

from __future__ import annotations

import dataclasses

from bench.spec import Recipe
from methods.base import Losses, Method, Stage, Step
from methods.functional import labelled_cross_entropy


def finetuned(method: Method, stages: list[Stage], recipe: Recipe) -> list[Stage]:
    """The stages, shortened by the recipe's share of fine-tuning, then one on hard labels alone with a lower rate."""
    if not recipe.finetune:
        return stages

    def loss(step: Step) -> Losses:
        headline = next(iter(method.predictions(step.student, step.extras).values()))
        return {"ce": labelled_cross_entropy(headline, step.labels)}

    shorter = [dataclasses.replace(stage, epochs=stage.epochs * (1 - recipe.finetune)) for stage in stages]
    epochs, lr = recipe.finetune, recipe.finetune_lr
    return [*shorter, Stage("finetune", loss, stages[-1].students, (), epochs=epochs, data=method.labelled, lr=lr)]


def stage_epochs(shares: list[float], epochs: int) -> list[int]:
    """Whole epochs of each stage, at least one, that add up to the rounded sum of the shares where they can."""
    ends = [round(sum(shares[: index + 1]) * epochs) for index in range(len(shares))]
    return [max(1, end - start) for start, end in zip([0, *ends], ends, strict=False)]
