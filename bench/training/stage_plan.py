"""The stages of a run, how its epochs are divided among them, and the fine-tuning that may follow."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from kdbench.bench.configure import method_of
from kdbench.bench.networks.signals import GRADIENTS
from kdbench.bench.spec import Recipe, Spec
from kdbench.methods.base import SIGNALS, Method, Net, Stage
from kdbench.methods.hooks import StageOptions


@dataclass(frozen=True)
class StagePlan:
    """What is trained, in order, and for how long."""

    stages: tuple[Stage, ...]
    epochs: tuple[int, ...]
    """Whole epochs of each stage."""
    needs: frozenset[str]
    """Signals that the method needs; a stage may need fewer."""

    @classmethod
    def of(cls, method: Method, recipe: Recipe, teachers: tuple[Net, ...]) -> StagePlan:
        """The stages of a method under a recipe, with fine-tuning at the end if the recipe asks for it."""
        stages = fine_tuned(method, list(method.stages(teachers)), recipe)
        epochs = stage_epochs([stage.epochs for stage in stages], recipe.epochs)
        return cls(tuple(stages), tuple(epochs), method.needed() & SIGNALS)

    @property
    def total(self) -> int:
        """Epochs of the whole run."""
        return sum(self.epochs)

    def needs_of(self, stage: Stage) -> frozenset[str]:
        """Signals that a stage's loss reads beyond the logits."""
        return self.needs if stage.options.needs is None else stage.options.needs & SIGNALS

    def result(self) -> tuple[Net, list[int]]:
        """The network that is the run's result, and the numbers of the epochs that train it."""
        net, number = self.stages[-1].students[0], 0
        numbers: list[int] = []
        for stage, length in zip(self.stages, self.epochs, strict=True):
            if net in stage.students:
                numbers += range(number + 1, number + length + 1)
            number += length
        return net, numbers


def result_of(spec: Spec) -> tuple[Net, list[int]]:
    """The network that is a run's result, and the numbers of the epochs that train it."""
    teachers = tuple(Net(f"teacher_{index + 1}" if index else "teacher") for index in range(len(spec.teachers)))
    return StagePlan.of(method_of(spec), spec.recipe, teachers).result()


def fine_tuned(method: Method, stages: list[Stage], recipe: Recipe) -> list[Stage]:
    """The stages, shortened by the recipe's share of fine-tuning, then one on hard targets alone with a lower rate."""
    if not recipe.finetune:
        return stages
    shorter = [dataclasses.replace(stage, epochs=stage.epochs * (1 - recipe.finetune)) for stage in stages]
    last = Stage(
        "finetune",
        method.fine_tuning_loss,
        stages[-1].students,
        (),
        epochs=recipe.finetune,
        data=method.fine_tuning_data,
        options=StageOptions(lr=recipe.finetune_lr, needs=method.needed() - GRADIENTS),
    )
    return [*shorter, last]


def stage_epochs(shares: list[float], epochs: int) -> list[int]:
    """Whole epochs of each stage, at least one, that add up to the rounded sum of the shares where they can."""
    ends = [round(sum(shares[: index + 1]) * epochs) for index in range(len(shares))]
    return [max(1, end - start) for start, end in zip([0, *ends], ends, strict=False)]
