"""What a loss is given: teachers, and the task's own losses on hard targets."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.bench.data.splits import Splits
from kdbench.methods.base import Data, Losses, Method, Signals, Step
from kdbench.methods.kd import KD
from tests.methods.options import CNN, signals, spec_of, started, step_of


def detecting(student: Signals, targets: Any) -> Losses:
    """The losses of a task that has two."""
    boxes = (student.logits - targets["boxes"]).abs().mean()
    return {"ce": F.cross_entropy(student.logits, targets["classes"]), "boxes": boxes}


@pytest.fixture
def step() -> Step:
    targets: dict[str, Tensor] = {"classes": torch.arange(6) % 5, "boxes": torch.ones(6, 5)}
    return Step({"pixels": torch.zeros(6, 1)}, targets, signals(0, 2), (), nn.ModuleDict(), detecting, 0.5)


def test_task_loss_is_the_tasks_own_by_its_names(step: Step) -> None:
    losses, expected = step.task_loss(), detecting(step.student, step.targets)
    assert list(losses) == ["ce", "boxes"] and losses == expected


@pytest.mark.parametrize("weight", [0.0, 0.25, 3.0])
def test_task_loss_is_weighted_each_by_the_same_factor(weight: float, step: Step) -> None:
    for name, loss in step.task_loss(weight).items():
        torch.testing.assert_close(loss, weight * detecting(step.student, step.targets)[name])


def test_task_loss_of_other_logits_keeps_the_other_signals(step: Step) -> None:
    seen: list[Signals] = []

    def noted(student: Signals, targets: Any) -> Losses:
        seen.append(student)
        return detecting(student, targets)

    logits = torch.randn(6, 5)
    losses = dataclasses.replace(step, hard_loss=noted).task_loss(2.0, logits=logits)
    assert seen[0].logits is logits and seen[0].features is step.student.features
    torch.testing.assert_close(losses, {k: 2 * v for k, v in detecting(Signals(logits), step.targets).items()})
    assert step.student.logits is not logits


def test_task_loss_on_other_targets_leaves_the_batchs_alone(step: Step) -> None:
    others: dict[str, Tensor] = {"classes": torch.zeros(6, dtype=torch.long), "boxes": torch.zeros(6, 5)}
    torch.testing.assert_close(step.task_loss(targets=others), detecting(step.student, others))
    torch.testing.assert_close(step.task_loss(), detecting(step.student, step.targets))


def test_task_loss_of_images_is_cross_entropy_of_those_that_have_a_label() -> None:
    labels = F.one_hot(torch.arange(6) % 5, 5).float()
    labels[2:] = 0
    losses = step_of(signals(0), labels=labels).task_loss(0.5)
    assert list(losses) == ["ce"]
    torch.testing.assert_close(losses["ce"], 0.5 * F.cross_entropy(signals(0).logits[:2], torch.tensor([0, 1])))


@pytest.mark.parametrize("count", [0, 2])
def test_the_teacher_is_the_only_one(count: int) -> None:
    assert step_of(signals(0), signals(1)).teacher.logits.equal(signals(1).logits)
    with pytest.raises(ValueError, match=f"takes one teacher, but the stage has {count}"):
        step_of(signals(0), *(signals(1) for _ in range(count))).teacher  # noqa: B018


def test_a_step_knows_its_samples_and_modules_the_data_that_they_are_of(
    digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Data] = []

    def modules(self: Method, student: Signals, teachers: tuple[Signals, ...], data: Data) -> nn.ModuleDict:
        given.append(data)
        return self.auxiliary_modules(student, teachers)

    monkeypatch.setattr(KD, "modules_of_data", modules)
    run = started(spec_of("kd", *CNN), digits)
    step, train = run.one_update().step, digits.train
    assert step.indices is not None and len(given) == 1 and given[0] is train
    inputs, targets = train.inputs, train.targets
    assert isinstance(inputs, Tensor) and isinstance(targets, Tensor)
    assert torch.equal(step.inputs, inputs[step.indices] / 255) and torch.equal(step.targets, targets[step.indices])
