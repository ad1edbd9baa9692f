"""Options of methods on tokens, attention, class embeddings, schedules and synthetic images."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.bench.configure import configure
from kdbench.bench.data.splits import Splits
from kdbench.bench.spec import ModelSpec
from kdbench.methods.base import STUDENT, TEACHER, Net
from kdbench.methods.checks import require
from kdbench.methods.functional import kd_loss
from kdbench.methods.minilm import attention_relation_loss, relation_heads
from kdbench.methods.tinybert import attention_scores
from tests.methods.options import (
    CNN,
    LARGE,
    SMALL,
    carried_out,
    signals,
    spec_of,
    started,
    step_of,
    values,
    vit,
)


@pytest.mark.parametrize(("student", "teacher", "origins"), [(2, 4, [1, 3]), (2, 5, [1, 4]), (3, 3, [0, 1, 2])])
def test_distilbert_starts_from_blocks_all_along_the_teacher(
    student: int, teacher: int, origins: list[int], digits: Splits
) -> None:
    run = started(spec_of("distilbert", vit(student), vit(teacher)), digits)
    mine, theirs = (run.networks.model(net).state_dict() for net in (STUDENT, TEACHER))
    for name, weight in mine.items():
        if name.startswith("blocks."):
            _, index, rest = name.split(".", 2)
            assert torch.equal(weight, theirs[f"blocks.{origins[int(index)]}.{rest}"]), name
        else:
            assert torch.equal(weight, theirs[name]), name
    assert not torch.equal(theirs["blocks.1.attn.qkv.weight"], theirs["blocks.0.attn.qkv.weight"])
    before = copy.deepcopy(theirs)
    run.one_update()
    assert all(torch.equal(before[name], value) for name, value in run.networks.model(TEACHER).state_dict().items())
    assert not torch.equal(run.networks.model(STUDENT).state_dict()["head.weight"], before["head.weight"])


@pytest.mark.parametrize(
    ("method", "student", "teacher", "words"),
    [
        ("distilbert", vit(2, width=24), vit(2, width=36), ("24", "36", "wide")),
        ("distilbert", vit(4), vit(2), ("4 blocks", "teacher of 2")),
        ("distilbert", vit(2, patch=2), vit(2), ("17 tokens", "teacher 5")),
        ("minilm", vit(2, patch=4), vit(2, patch=2), ("5 tokens", "teacher 17")),
        ("tinybert", vit(2, patch=4), vit(2, patch=2), ("5 tokens", "teacher 17")),
        ("tinybert", vit(3), vit(2), ("3 blocks", "teacher of 2")),
        ("minilm", SMALL, vit(2), ("no self-attention",)),
    ],
)
def test_tokens_that_do_not_fit_are_unsupported_and_both_sizes_named(
    method: str, student: ModelSpec, teacher: ModelSpec, words: tuple[str, ...], digits: Splits
) -> None:
    outcome, _, memory = carried_out(spec_of(method, student, teacher), digits)
    assert outcome.status == "unsupported" and not memory.epochs
    assert all(word in outcome.reason for word in words), outcome.reason


@pytest.mark.parametrize(("projection", "names"), [("code", {"hidden"}), ("paper", {"hidden", "embedding"})])
def test_tinybert_projections_are_one_or_two_and_heads_may_differ(
    projection: str, names: set[str], digits: Splits
) -> None:
    spec = spec_of("tinybert", vit(2, 24, heads=2), vit(4, 36, heads=3), projection=projection, recipe={"epochs": 2})
    run = started(spec, digits)
    auxiliary = run.auxiliary
    assert set(auxiliary) == names
    assert all((each.in_features, each.out_features) == (24, 36) for each in auxiliary.values())
    before = copy.deepcopy(auxiliary)
    _, step, losses = run.one_update()
    mine, theirs = require("tokens", step.student.tokens), require("tokens", step.teacher.tokens)
    embedding = before["embedding" if projection == "paper" else "hidden"](mine[0])
    assert values(losses)["embedding"] == pytest.approx(F.mse_loss(embedding, theirs[0]).item(), rel=1e-5)
    hidden = sum(F.mse_loss(before["hidden"](mine[m]), theirs[n]).item() for m, n in ((1, 2), (2, 4)))
    assert values(losses)["hidden"] == pytest.approx(hidden, rel=1e-5)
    queries = require("qkv", step.student.qkv), require("qkv", step.teacher.qkv)
    means = [[attention_scores(*each[:2]).mean(dim=1) for each in side] for side in queries]
    by_hand = sum(F.mse_loss(means[0][m], means[1][n]).item() for m, n in ((0, 1), (1, 3)))
    assert values(losses)["attention"] == pytest.approx(by_hand, rel=1e-5)
    outcome, _, memory = carried_out(spec, digits)
    assert outcome.status == "done" and [epoch.stage for epoch in memory.epochs] == ["intermediate", "prediction"]


@pytest.mark.parametrize("one_stage", [False, True])
@pytest.mark.parametrize("unlabelled", [False, True])
def test_tinybert_and_minilm_may_learn_from_images_without_labels(
    unlabelled: bool, one_stage: bool, digits: Splits
) -> None:
    for name in ("tinybert", "minilm"):
        params = {"unlabelled": unlabelled, "one_stage": one_stage}
        run = started(spec_of(name, vit(2), vit(4), **params), digits)
        uses = unlabelled and not (name == "minilm" and one_stage)
        assert run.method.uses_unlabelled() == uses
        assert ("class_targets" in run.method.needed()) == uses
        labelled = len(digits.train.targets)
        whole = labelled + uses * len(digits.train.unlabelled)
        counts = [len(stage.data(digits.train, run.networks).targets) for stage in run.stages]
        assert counts == {"tinybert": [whole, whole], "minilm": [whole, labelled]}[name][: len(counts)]
    assert not configure("kd", {}).uses_unlabelled()


def test_minilm_searches_the_length_of_a_stage_that_it_has() -> None:
    assert set(configure("minilm", {}).space()) == {"value_weight", "transfer_epochs"}
    assert set(configure("minilm", {"one_stage": True}).space()) == {"value_weight"}


def test_tinybert_gives_no_label_to_any_stage(digits: Splits) -> None:
    run = started(spec_of("tinybert", vit(2), vit(4), unlabelled=True, recipe={"epochs": 2}), digits)
    seen = run.watch()
    outcome, _ = run.finish()
    assert outcome.status == "done"
    rows = {
        stage: [bool(row.any()) for step_stage, step, _ in seen if step_stage == stage for row in step.targets]
        for stage in ("intermediate", "prediction")
    }
    assert all(set(each) == {False, True} for each in rows.values())
    assert all("ce" not in losses for _, _, losses in seen)


def test_last_states_are_taken_after_the_final_norm(digits: Splits) -> None:
    for name, params in (("distilbert", {"copy": False}), ("tinybert", {"one_stage": True})):
        run = started(spec_of(name, vit(2), vit(4), **params), digits)
        teacher: Any = run.networks.model(TEACHER)
        _, step, losses = run.one_update()
        tokens = require("tokens", step.teacher.tokens)
        with torch.no_grad():
            torch.testing.assert_close(tokens[-1], teacher.norm(teacher.blocks[-1](tokens[-2])))
        mine = require("tokens", step.student.tokens)
        if name == "distilbert":
            by_hand = (1 - F.cosine_similarity(mine[-1], tokens[-1], dim=-1)).mean()
            assert values(losses)["cosine"] == pytest.approx(by_hand.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher", "heads"),
    [((2, 24, 2), (4, 36, 3), 1), ((3, 24, 2), (2, 32, 4), 2), ((2, 36, 3), (2, 24, 3), 3)],
)
def test_minilm_takes_other_widths_depths_and_heads(student: Any, teacher: Any, heads: int, digits: Splits) -> None:
    spec = spec_of("minilm", vit(*student), vit(*teacher), recipe={"epochs": 2})
    _, step, losses = started(spec, digits).one_update()
    mine, theirs = require("qkv", step.student.qkv)[-1], require("qkv", step.teacher.qkv)[-1]
    cut = [[relation_heads(each, heads) for each in side[:2]] for side in (mine, theirs)]
    assert cut[0][0].shape[1:] == (heads, 5, student[1] // heads)
    by_hand = attention_relation_loss((cut[0][0], cut[0][1]), (cut[1][0], cut[1][1])).item()
    assert values(losses)["attention"] == pytest.approx(by_hand, rel=1e-4) and by_hand > 0
    outcome, _, memory = carried_out(spec, digits)
    assert outcome.status == "done" and [epoch.stage for epoch in memory.epochs] == ["transfer", "task"]


@pytest.mark.parametrize("unlabelled", [True, False])
def test_vild_withholds_labels_of_novel_classes(unlabelled: bool, digits: Splits) -> None:
    run = started(spec_of("vild", *CNN, unlabelled=unlabelled), digits)
    data = run.stages[0].data(digits.train, run.networks)
    count, labels = len(digits.train.targets), digits.train.targets
    assert len(data.inputs) == len(data.targets) == count + unlabelled * len(digits.train.unlabelled)
    known = labels < 7
    assert known.any() and not known.all()
    assert torch.equal(data.targets[:count][known], F.one_hot(labels[known], 10).float())
    assert not data.targets[:count][~known].any() and not data.targets[count:].any()


def test_vild_scores_base_and_novel_classes_and_leaves_the_students_classifier_alone(digits: Splits) -> None:
    spec = spec_of("vild", *CNN)
    run = started(spec, digits)
    network, auxiliary = run.students[0].network, run.auxiliary
    before = network.model.get_classifier().weight.clone()
    run.train()
    outcome, _ = run.result()
    assert network.model.get_classifier().weight.grad is None
    assert torch.equal(network.model.get_classifier().weight, before)
    assert auxiliary["projection"].weight.grad.abs().sum() > 0
    assert torch.equal(auxiliary["classes"].vectors, run.networks.model(TEACHER).get_classifier().weight)
    scores = outcome.scores["last"].part("test")["student"]["similarity"]
    novel = (digits.test.targets >= 7).float().mean().item()
    parts = novel * scores["accuracy_novel"] + (1 - novel) * scores["accuracy_base"]
    assert parts == pytest.approx(scores["accuracy"])
    everything, _, _ = carried_out(spec_of("vild", *CNN, novel_share=0.0), digits)
    assert everything.headline("last", "test", "accuracy_novel") is None
    assert everything.headline("last", "test", "accuracy_base") == everything.headline("last", "test")


@pytest.mark.parametrize(("clip", "norm"), [(True, 1.0), (True, 0.25), (False, 1.0)])
def test_scheduled_kd_clip_bounds_the_gradient_at_every_update(clip: bool, norm: float, digits: Splits) -> None:
    spec = spec_of("scheduled_kd", *CNN, form="practice", clip=clip, clip_norm=norm, recipe={"epochs": 2})
    run = started(spec, digits)
    norms: list[float] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        grads = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.cat(grads).norm()))

    run.students[0].optimizer.register_step_pre_hook(note)
    run.train()
    assert len(norms) == 2 * run.steps
    assert max(norms) <= norm + 1e-4 if clip else max(norms) > norm
    assert not clip or max(norms) > 0.9 * norm


@pytest.mark.parametrize(
    ("params", "progress", "temperature", "alpha"),
    [
        ({"ramp": False}, 0.0, 5.0, 0.9),
        ({"ramp": False}, 0.24, 5.0, 0.9),
        ({"ramp": False}, 0.25, 2.5, 0.9),
        ({"ramp": False}, 0.99, 1.0, 0.9),
        ({"ramp": False, "temperature": 8.0, "every": 0.1, "factor": 0.25}, 0.19, 2.0, 0.9),
        ({"ramp": False, "decay": False}, 0.99, 5.0, 0.9),
        ({"decay": False}, 0.0, 5.0, 0.1),
        ({"decay": False}, 0.25, 5.0, 0.5),
        ({"decay": False}, 0.75, 5.0, 0.5),
        ({"decay": False, "peak": 0.2}, 0.2, 5.0, 0.9),
        ({}, 0.5, 1.25, 0.9),
    ],
)
@pytest.mark.parametrize("normalise", [False, True])
def test_scheduled_kd_switches(params: Any, progress: float, temperature: float, alpha: float, normalise: bool) -> None:
    step = step_of(signals(0), signals(1), progress=progress)
    losses = configure("scheduled_kd", {"form": "practice", **params, "normalise": normalise}).loss(step)
    targets = step.teacher.logits
    targets = targets / targets.norm(dim=1, keepdim=True) if normalise else targets
    torch.testing.assert_close(losses["kd"], alpha * kd_loss(step.student.logits, targets, temperature))
    torch.testing.assert_close(losses["ce"], (1 - alpha) * F.cross_entropy(step.student.logits, step.targets))


def test_scheduled_kd_decays_with_the_share_of_the_run(digits: Splits) -> None:
    params: dict[str, Any] = {"form": "practice", "every": 1 / 3, "temperature": 8.0, "ramp": False, "clip": False}
    run = started(spec_of("scheduled_kd", *CNN, recipe={"epochs": 3}, **params), digits)
    seen = run.watch()
    run.train()
    for index, (_, step, losses) in enumerate(seen):
        temperature = (8.0, 4.0, 2.0)[index // run.steps]
        by_hand = 0.9 * kd_loss(step.student.logits, step.teacher.logits, temperature).item()
        assert values(losses)["kd"] == pytest.approx(by_hand, rel=1e-4)


def transfer_set(digits: Splits, seed: int = 1, **params: Any) -> tuple[Tensor, Tensor, Any]:
    run = started(spec_of("model_compression", SMALL, LARGE, vit(), seed=seed, **params), digits)
    data = run.stages[0].data(digits.train, run.networks)
    return data.inputs, data.targets, run


@pytest.mark.parametrize(("copies", "originals"), [(2, True), (2, False), (1, True)])
def test_model_compression_transfer_set_has_all_images_and_their_copies(
    copies: int, originals: bool, digits: Splits
) -> None:
    images, labels, run = transfer_set(digits, copies=copies, originals=originals)
    own = torch.cat([digits.train.inputs, digits.train.unlabelled])
    assert len(images) == len(labels) == (copies + originals) * len(own)
    parts = images.split(len(own))
    assert torch.equal(parts[0], own) == originals
    assert all(not torch.equal(part, own) for part in parts[originals:])
    outputs = [run.networks.predict(Net(name), images) for name in ("teacher", "teacher_2")]
    torch.testing.assert_close(labels, (outputs[0] + outputs[1]) / 2)


def test_model_compression_targets_may_be_mean_probabilities_and_follow_the_seed(digits: Splits) -> None:
    images, labels, run = transfer_set(digits, copies=1, target="probabilities")
    outputs = [run.networks.predict(Net(name), images).softmax(dim=1) for name in ("teacher", "teacher_2")]
    torch.testing.assert_close(labels, (outputs[0] + outputs[1]) / 2)
    again, same, _ = transfer_set(digits, copies=1, target="probabilities")
    assert torch.equal(again, images) and torch.equal(same, labels)
    assert not torch.equal(transfer_set(digits, seed=2, copies=1)[0], images)
    step = step_of(signals(0, classes=10), labels=labels[:6])
    mimic = (step.student.logits.softmax(dim=1) - labels[:6]).square().mean()
    torch.testing.assert_close(run.method.loss(step), {"mimic": mimic})
