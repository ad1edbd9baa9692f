"""The recipe's last share of epochs on hard labels alone, and the training accuracy of labelled images alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import kdbench.bench.training.engine
from kdbench.bench.data.splits import Splits
from kdbench.bench.evaluation.decisions import LabelledAccuracy
from kdbench.bench.record import Stopped
from kdbench.methods.base import Losses, Stage, Step
from tests.harness import CPU, OpenRun
from tests.methods.options import CNN, carried_out, memory_of, spec_of, started, vit

HALF = {"epochs": 4, "finetune": 0.5, "schedule": "constant", "augment": "crop"}
QUARTER = {**HALF, "finetune": 0.25}
VIT = (vit(2), vit(4))
PAIRS = {"distilbert": VIT, "tinybert": VIT, "minilm": VIT}


def models(method: str) -> Any:
    return PAIRS.get(method, CNN)


def headlines(run: OpenRun) -> list[tuple[Tensor, Tensor]]:
    """A list that fills, as the run goes on, with the headline's logits and the labels that each loss sees."""
    shown: list[tuple[Tensor, Tensor]] = []

    def spied(stage: Stage) -> Stage:
        def loss(step: Step) -> Losses:
            predictions = run.method.predictions(step.student, step.auxiliary)
            shown.append((next(iter(predictions.values())).detach(), step.targets))
            return stage.loss(step)

        return dataclasses.replace(stage, loss=loss)

    run.change(spied)
    return shown


@pytest.mark.parametrize(
    ("method", "stages"),
    [
        ("kd", ["train"] * 3),
        ("student", ["train"] * 3),
        ("vild", ["align"] * 3),
        ("multi_exit", ["train"] * 3),
        ("fitnets", ["hint", "distill", "distill"]),
        ("tinybert", ["intermediate", "intermediate", "prediction"]),
        ("distilbert", ["train"] * 3),
        ("model_compression", ["mimic"] * 3),
    ],
)
def test_last_share_of_epochs_is_hard_labels_at_a_tenth_of_the_rate(
    method: str, stages: list[str], digits: Splits
) -> None:
    outcome, _, memory = carried_out(spec_of(method, *models(method), recipe=QUARTER), digits)
    assert outcome.status == "done", outcome.reason
    assert [epoch.stage for epoch in memory.epochs] == [*stages, "finetune"]
    assert [epoch.number for epoch in memory.epochs] == [1, 2, 3, 4] and {e.of for e in memory.epochs} == {4}
    assert set(memory.epochs[-1].losses) == {"student/ce"} and memory.epochs[-1].teacher_forwards == 0
    assert [epoch.learning_rate for epoch in memory.epochs] == pytest.approx([0.02] * 3 + [0.002])


def test_rate_of_finetuning_is_the_recipes_and_none_is_as_if_it_were_not_there(digits: Splits) -> None:
    _, _, memory = carried_out(spec_of("kd", *CNN, recipe={**HALF, "finetune_lr": 0.5}), digits)
    assert [(e.stage, e.learning_rate) for e in memory.epochs] == [("train", 0.02)] * 2 + [("finetune", 0.01)] * 2
    _, _, plain = carried_out(spec_of("kd", *CNN, recipe={**HALF, "finetune": 0.0}), digits)
    assert [epoch.stage for epoch in plain.epochs] == ["train"] * 4
    assert [e.losses for e in plain.epochs[:2]] == [e.losses for e in memory.epochs[:2]]


@pytest.mark.parametrize(("method", "classes"), [("kd", 10), ("vild", 7)])
def test_finetuning_goes_on_from_the_students_weights_by_the_headlines_cross_entropy(
    method: str, classes: int, digits: Splits
) -> None:
    run = started(spec_of(method, *CNN, recipe=HALF), digits)
    before = run.students[0].network
    seen, shown = run.watch(), headlines(run)
    run.train()
    run.enter(1)
    assert run.students[0].network is before and run.students[0].auxiliary is run.auxiliary
    assert not any(state for state in run.students[0].optimizer.state.values())
    weights = {name: value.clone() for name, value in before.named_parameters()}
    run.train()
    assert any(not torch.equal(value, weights[name]) for name, value in before.named_parameters())
    stage, step, losses = seen[-1]
    assert stage == "finetune" and step.targets.dim() == 1 and not step.teachers
    assert losses.keys() == {"ce"}
    logits, labels = shown[-1]
    assert losses["ce"].item() == pytest.approx(F.cross_entropy(logits[:, :classes], labels).item())
    updates = [name for name, *_ in seen]
    assert updates[: 2 * run.steps] == updates[:1] * (2 * run.steps) and set(updates[2 * run.steps :]) == {"finetune"}


def test_finetuning_of_several_exits_trains_them_all(digits: Splits) -> None:
    run = started(spec_of("multi_exit", *CNN, recipe=HALF), digits)
    run.train()
    exits = {name: value.detach().clone() for name, value in run.auxiliary.named_parameters()}
    run.enter(1)
    seen = run.watch()
    run.train()
    assert all(not torch.equal(value, exits[name]) for name, value in run.auxiliary.named_parameters())
    _, step, losses = seen[-1]
    assert losses.keys() == {"ce"} and step.targets.dim() == 1


def test_finetuning_of_a_prediction_of_its_own_trains_the_modules_that_it_uses(digits: Splits) -> None:
    run = started(spec_of("vild", *CNN, recipe=HALF), digits)
    run.train()
    projection: Any = run.auxiliary["projection"].weight
    before, classes = projection.detach().clone(), run.auxiliary["classes"].vectors.clone()
    model: Any = run.students[0].network.model
    head = model.get_classifier().weight.detach().clone()
    run.enter(1)
    run.train()
    assert not torch.equal(projection, before) and torch.equal(run.auxiliary["classes"].vectors, classes)
    assert torch.equal(model.get_classifier().weight, head)
    outcome, _ = run.result()
    assert list(outcome.scores["last"].part("test")["student"]) == ["similarity"]


def test_every_student_of_the_last_stage_is_finetuned(digits: Splits) -> None:
    _, _, memory = carried_out(spec_of("dml", *CNN, recipe=QUARTER), digits)
    assert set(memory.epochs[-1].losses) == {"student/ce", "student.peer_1/ce"}
    _, _, memory = carried_out(spec_of("tolerant_teacher", *CNN, recipe=HALF), digits)
    assert [epoch.stage for epoch in memory.epochs] == ["gen_0"] * 2 + ["gen_1"] * 2 + ["finetune"] * 2
    assert set(memory.epochs[-1].losses) == {"student/ce"}


@pytest.mark.parametrize("method", ["kd", "vild", "multi_exit", "dml", "tinybert", "distilbert"])
def test_run_interrupted_in_finetuning_goes_on_to_the_same_weights(method: str, digits: Splits) -> None:
    spec = spec_of(method, *models(method), recipe=HALF)
    outcome, files, memory = carried_out(spec, digits)
    for stop in (2, 3):
        first = memory_of(spec, digits, stop_after=stop)
        with pytest.raises(Stopped):
            kdbench.bench.training.engine.run(spec, digits, first, CPU)
        resumed, same, rest = carried_out(spec, digits, resume=first.state)
        assert [epoch.stage for epoch in first.epochs + rest.epochs] == [epoch.stage for epoch in memory.epochs]
        assert [epoch.stage for epoch in rest.epochs] == ["finetune"] * (4 - stop)
        assert same == files and resumed.scores == outcome.scores
    assert outcome.scores["best"].epoch >= 3


def test_labelled_accuracy_counts_labelled_samples_alone() -> None:
    logits = torch.eye(4)
    rows = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0], [0.4, 0.6, 0, 0], [0, 0, 0, 0]])
    outputs = torch.tensor([[-1.0, -3, -2, -5], [-9, -3, 1, 0], [0, -1, -2, -3], [1, 2, 3, 4]])
    every = LabelledAccuracy()
    hits, labelled = 0, 0
    for labels, right, of in (
        (torch.tensor([0, 1, 2, 0]), 3, 4),
        (rows, 1, 2),
        (torch.zeros(4, 4), 0, 0),
        (outputs, 2, 4),
    ):
        alone = LabelledAccuracy()
        alone.update(logits, labels)
        assert (alone.correct.item(), alone.labelled.item()) == (right, of)
        assert alone.compute().item() == (right / of if of else 0)
        every.update(logits, labels)
        hits, labelled = hits + right, labelled + of
        assert every.compute().item() == pytest.approx(hits / labelled)


@pytest.mark.parametrize("method", ["multi_exit", "vild"])
def test_training_accuracy_is_the_headlines_on_labelled_images(method: str, digits: Splits) -> None:
    run = started(spec_of(method, *CNN, unlabelled=True, recipe={"epochs": 4, "lr": 0.1}), digits)
    shown = headlines(run)
    run.train()
    logits, labels = (torch.cat(each) for each in zip(*shown[-run.steps :], strict=True))
    labelled = labels.sum(dim=1) > 0
    assert 0 < labelled.sum() < len(labels) / 2
    hits = logits.argmax(dim=1) == labels.argmax(dim=1)
    assert hits[labelled].any() and hits[labelled].float().mean() != hits.float().mean()
    assert run.recorder.epochs[-1].train == pytest.approx(hits[labelled].float().mean().item())


@pytest.mark.parametrize(("method", "params", "withheld"), [("vild", {}, {7, 8, 9}), ("kd", {"omit": (3,)}, {3})])
def test_finetuning_withholds_the_labels_that_the_method_withholds(
    method: str, params: Any, withheld: set[int], digits: Splits
) -> None:
    run = started(spec_of(method, *CNN, recipe=HALF, **params), digits)
    seen = run.watch()
    run.finish()
    shown = {int(label) for stage, step, _ in seen if stage == "finetune" for label in step.targets}
    assert shown and not shown & withheld
