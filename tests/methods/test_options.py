"""Each named option of a method on logits, features or data does what the method's docstring says."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.bench.configure import configure
from kdbench.bench.data.splits import Splits
from kdbench.bench.evaluation.cost import Costs
from kdbench.bench.spec import ModelSpec
from kdbench.methods.at import attention_loss
from kdbench.methods.base import TEACHER, Signals, features_of
from kdbench.methods.dml import mutual_loss
from kdbench.methods.functional import kd_loss
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


def test_kd_omit_shows_no_omitted_label_and_scores_the_groups_apart(digits: Splits) -> None:
    run = started(spec_of("kd", *CNN, omit=(3, 7), recipe={"epochs": 2}), digits)
    seen = run.watch()
    outcome, _ = run.finish()
    assert {int(label) for _, step, _ in seen for label in step.targets} == {0, 1, 2, 4, 5, 6, 8, 9}
    omitted = torch.isin(digits.test.targets, torch.tensor([3, 7])).float().mean().item()
    predictions = outcome.scores["last"].part("test")["student"]
    assert list(predictions) == ["logits", "bias_corrected"]
    for scores in (*predictions.values(), outcome.teacher["test"]):
        parts = omitted * scores["accuracy_omitted"] + (1 - omitted) * scores["accuracy_seen"]
        assert parts == pytest.approx(scores["accuracy"])
    assert predictions["logits"] != predictions["bias_corrected"]


def test_kd_bias_corrected_is_the_logits_raised_by_the_bias_at_omitted_classes() -> None:
    student, auxiliary = signals(0), step_of(signals(0)).auxiliary
    predictions = configure("kd", {"omit": [1, 4]}).predictions(student, auxiliary)
    raised = torch.tensor([0, 3.5, 0, 0, 3.5]).expand(6, 5)
    assert torch.equal(predictions["logits"], student.logits)
    assert torch.equal(predictions["bias_corrected"], student.logits + raised)
    assert list(configure("kd", {}).predictions(student, auxiliary)) == ["logits"]


def test_kd_mse_has_the_gradient_of_kd_at_high_temperature() -> None:
    student, teacher = signals(0).logits.double().requires_grad_(), signals(1).logits.double()
    step = step_of(Signals(student), Signals(teacher))
    losses = configure("kd", {"form": "mse", "alpha": 1.0}).loss(step)
    (found,) = torch.autograd.grad(losses["kd"], student)
    (expected,) = torch.autograd.grad(kd_loss(student, teacher, 1e4), student)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().mean()))


@pytest.mark.parametrize(("omit", "word"), [(tuple(range(10)), "no class"), ((2, 10), "[10]")])
def test_kd_omit_of_all_or_of_unknown_classes_is_unsupported(omit: Any, word: str, digits: Splits) -> None:
    outcome, _, _ = carried_out(spec_of("kd", *CNN, omit=omit), digits)
    assert outcome.status == "unsupported" and word in outcome.reason


def test_dml_in_turn_teaches_the_second_by_what_the_first_predicts_once_updated(digits: Splits) -> None:
    turned, joint = (started(spec_of("dml", SMALL, in_turn=each), digits) for each in (True, False))
    first, second = turned.students
    before = {name: value.clone() for name, value in first.network.state_dict().items()}
    images = next(turned.trainer.batches().epoch(turned.setup.spec.seed, 1)).inputs
    own = second.network.train()(images).detach()
    seen = turned.watch()
    for run in (turned, joint):
        run.one_update()
    weights = [[dict(student.network.named_parameters()) for student in run.students] for run in (turned, joint)]
    assert all(torch.equal(value, weights[1][0][name]) for name, value in weights[0][0].items())
    assert not all(torch.equal(value, weights[1][1][name]) for name, value in weights[0][1].items())
    updated = first.network.train()(images).detach()
    first.network.load_state_dict(before)
    stale = first.network.train()(images).detach()
    losses = [values(losses)["mutual"] for _, _, losses in seen]
    assert losses[1] == pytest.approx(mutual_loss(own, [updated]).item(), rel=1e-4)
    assert abs(losses[1] - mutual_loss(own, [stale]).item()) > 1e-3 * losses[1]
    torch.testing.assert_close(seen[0][1].student.logits, stale)


def test_dml_takes_several_peers_of_either_architecture(digits: Splits) -> None:
    run = started(spec_of("dml", *CNN, peer_models=("student", "teacher")), digits)
    counts = [student.network.parameter_count() for student in run.students]
    assert counts[0] == counts[1] < counts[2]
    _, step, losses = run.one_update()
    assert len(step.teachers) == 2
    by_hand = mutual_loss(step.student.logits, [peer.logits for peer in step.teachers])
    assert values(losses)["mutual"] == pytest.approx(by_hand.item())
    outcome, _, _ = carried_out(spec_of("dml", *CNN, peer_models=("student", "teacher")), digits)
    assert list(outcome.scores["last"].part("test")) == ["student", "student.peer_1", "teacher.peer_2"]


def test_eskd_distills_until_the_stop_and_no_longer(digits: Splits) -> None:
    _, _, memory = carried_out(spec_of("eskd", *CNN, stop=0.5, recipe={"epochs": 4}), digits)
    soft = [epoch.losses["student/kd"] for epoch in memory.epochs]
    assert min(soft[:2]) > 0 and soft[2:] == [0, 0]
    run = started(spec_of("eskd", *CNN, stop=0.5, alpha=0.9), digits)
    _, step, _ = run.one_update()
    for progress, weight in ((0.49, 0.1), (0.5, 1.0)):
        late = step_of(step.student, step.teacher, labels=step.targets, progress=progress)
        hard = F.cross_entropy(step.student.logits, step.targets)
        assert values(run.method.loss(late))["ce"] == pytest.approx(weight * hard.item())


def test_eskd_with_teacher_epochs_learns_from_a_teacher_of_its_own(digits: Splits) -> None:
    spec = spec_of("eskd", *CNN, teacher_epochs=0.5, recipe={"epochs": 2})
    _, files, memory = carried_out(spec, digits)
    assert [epoch.stage for epoch in memory.epochs] == ["teacher", "train", "train"]
    assert set(memory.epochs[0].losses) == {"teacher.early/ce"}
    run = started(spec, digits, weights_seed=7)
    seen = run.watch()
    _, same = run.finish()
    assert same == files  # whatever the pair's teacher is
    early = run.networks.built["teacher.early"].eval()
    assert early.parameter_count() == run.networks.teacher(TEACHER).parameter_count()
    torch.testing.assert_close(seen[-1][1].teacher.logits, early(seen[-1][1].inputs).detach())
    _, other, _ = carried_out(spec_of("eskd", *CNN, recipe={"epochs": 2}), digits)
    assert other != files


def test_tolerant_teacher_generations_are_taught_each_by_the_one_before(digits: Splits) -> None:
    spec = spec_of("tolerant_teacher", *CNN, generations=2, first="teacher", recipe={"epochs": 3})
    run = started(spec, digits)
    seen = run.watch()
    run.finish()
    assert list(dict.fromkeys(stage for stage, _, _ in seen)) == ["gen_0", "gen_1", "gen_2"]
    networks = run.networks.built
    assert networks["teacher.gen_0"].parameter_count() > networks["student.gen_1"].parameter_count()
    for name, before in (("gen_1", "teacher.gen_0"), ("gen_2", "student.gen_1")):
        step = next(step for stage, step, _ in seen if stage == name)
        torch.testing.assert_close(step.teacher.logits, networks[before].eval()(step.inputs).detach())
    assert {tuple(values(losses)) for stage, _, losses in seen if stage == "gen_0"} == {("ce", "gap")}


def test_multi_exit_unlabelled_lets_images_without_labels_take_part(digits: Splits) -> None:
    distinct = {}
    for unlabelled in (False, True):
        run = started(spec_of("multi_exit", SMALL, unlabelled=unlabelled, recipe={"epochs": 3}), digits)
        seen = run.watch()
        run.finish()
        images = torch.cat([step.inputs for _, step, _ in seen]).flatten(1)
        distinct[unlabelled] = len(images.unique(dim=0))
        rows = [row for _, step, _ in seen for row in step.targets]
        assert unlabelled == any(row.dim() and not row.any() for row in rows)
        assert len(seen) == 3 * run.steps
    assert distinct[False] <= len(digits.train.inputs) < 2 * len(digits.train.inputs) < distinct[True]


def test_multi_exit_without_weight_teaches_exits_by_labels_alone(digits: Splits) -> None:
    _, step, losses = started(spec_of("multi_exit", SMALL, weight=0.0, exit_width=6), digits).one_update()
    assert step.auxiliary["stage_2"][0].out_channels == 6 and losses["exits"].item() == 0 < losses["ce"].item()


@pytest.mark.parametrize("student", [LARGE, vit(depth=3)], ids=["cnn", "vit"])
def test_multi_exit_costs_rise_with_the_stage_and_stay_below_the_whole_network(student: Any, digits: Splits) -> None:
    outcome, _, _ = carried_out(spec_of("multi_exit", student), digits)
    predictions = outcome.scores["last"].part("test")["student"]
    costs = [scores["multiply_adds"] for name, scores in predictions.items() if name.startswith("stage_")]
    costs += [outcome.cost["multiply_adds"]]
    assert len(costs) == 3 and costs[0] > 0
    assert all(first < second for first, second in itertools.pairwise(costs))
    assert predictions["last"]["multiply_adds"] == costs[-1] < predictions["ensemble"]["multiply_adds"]


@pytest.mark.parametrize(("width", "heads"), [(0, (40, 80)), (6, (4812, 2112))])
def test_multi_exit_costs_are_of_the_heads_that_a_prediction_uses(
    width: int, heads: tuple[int, int], digits: Splits
) -> None:
    """By hand: 4 and 8 channels on 8 and 4 pixels; convolutions of stride 2, as 9 (4 6 4^2 + 6 6 2^2) + 6 10."""
    run = started(spec_of("multi_exit", SMALL, anytime=True, exit_width=width), digits)
    two, three = heads
    student, names = run.students[0], ["last", "stage_2", "stage_3", "upto_stage_3", "ensemble"]
    costs = Costs(run.setup.task, run.method, student.network, student.auxiliary, digits.validation.inputs)
    stages = {"stage_2": 2, "stage_3": 3, "upto_stage_3": 3}
    whole = costs.of_predictions(names)
    assert {name: whole[name] - costs.multiply_adds(stages.get(name, 0)) for name in names} == {
        "last": 0,
        "stage_2": two,
        "stage_3": three,
        "upto_stage_3": two + three,
        "ensemble": two + three,
    }
    (scores,) = run.result()[0].scores["last"].validation.values()
    assert scores["last"]["multiply_adds"] == costs.multiply_adds()
    assert scores["stage_2"]["multiply_adds"] == costs.multiply_adds(2) + two
    assert scores["ensemble"]["multiply_adds"] - scores["last"]["multiply_adds"] == two + three


def test_multi_exit_anytime_scores_the_ensemble_of_the_first_exits(digits: Splits) -> None:
    outcome, _, _ = carried_out(spec_of("multi_exit", SMALL, anytime=True), digits)
    predictions = outcome.scores["last"].part("test")["student"]
    assert list(predictions) == ["last", "stage_2", "stage_3", "upto_stage_3", "ensemble"]
    assert outcome.combined == ("upto_stage_3", "ensemble")
    run = started(spec_of("multi_exit", SMALL, anytime=True), digits)
    _, step, _ = run.one_update()
    logits = run.method.predictions(step.student, step.auxiliary)
    mean = (logits["stage_2"].softmax(dim=1) + logits["stage_3"].softmax(dim=1)) / 2
    torch.testing.assert_close(logits["upto_stage_3"].exp(), mean)


@pytest.mark.parametrize(
    ("student", "exits"),
    [
        (SMALL, ["stage_2", "stage_3"]),
        (ModelSpec(name="cifar_mobilenetv1"), ["stage_2", "stage_3", "stage_4"]),
        (vit(depth=3), ["stage_1", "stage_2"]),
        (ModelSpec(name="cifar_msdnet", args={"input_size": 32}), [f"stage_{i}" for i in range(1, 11)]),
    ],
    ids=lambda value: value.name if isinstance(value, ModelSpec) else "",
)
def test_multi_exit_has_no_exit_on_a_bare_stem(student: ModelSpec, exits: list[str], digits: Splits) -> None:
    run = started(spec_of("multi_exit", student), digits)
    assert [name for name in run.auxiliary if name != "temperature"] == exits


def test_multi_teacher_learns_from_teachers_of_different_architecture(digits: Splits) -> None:
    run = started(spec_of("multi_teacher", SMALL, LARGE, vit()), digits)
    _, step, losses = run.one_update()
    assert len(step.teachers) == 2
    for name, taught in zip(("teacher", "teacher_2"), step.teachers, strict=True):
        torch.testing.assert_close(taught.logits, run.networks.built[name](step.inputs).detach())
    softened = torch.stack([(taught.logits / 4).softmax(dim=1) for taught in step.teachers]).mean(dim=0)
    log_student = (step.student.logits / 4).log_softmax(dim=1)
    by_hand = 0.9 * 16 * F.kl_div(log_student, softened, reduction="batchmean")
    assert values(losses)["kd"] == pytest.approx(by_hand.item(), rel=1e-5)


def test_method_of_one_teacher_refuses_two(digits: Splits) -> None:
    outcome, _, memory = carried_out(spec_of("kd", SMALL, LARGE, vit()), digits)
    assert outcome.status == "unsupported" and "takes one teacher, and the run has 2" in outcome.reason
    assert not memory.epochs


def test_fitnets_one_stage_is_cross_entropy_and_the_squared_hint_at_once(digits: Splits) -> None:
    spec = spec_of("fitnets", *CNN, one_stage=True, hint_weight=50.0, recipe={"epochs": 2})
    _, _, memory = carried_out(spec, digits)
    assert [(epoch.stage, set(epoch.losses)) for epoch in memory.epochs] == [
        ("joint", {"student/ce", "student/hint"})
    ] * 2
    run = started(spec, digits)
    regressor = copy.deepcopy(run.auxiliary["regressor"])
    _, step, losses = run.one_update()
    guided, hint = features_of(step.student)[2], features_of(step.teacher)[2]
    by_hand = 50 * F.mse_loss(regressor(guided), hint)
    assert values(losses)["hint"] == pytest.approx(by_hand.item(), rel=1e-5)
    assert values(losses)["ce"] == pytest.approx(F.cross_entropy(step.student.logits, step.targets).item())


def at_by_hand(step: Any, pairs: list[tuple[int, int]], beta: float = 1000.0, **form: Any) -> Tensor:
    mine, theirs = features_of(step.student), features_of(step.teacher)
    return beta * torch.stack([attention_loss(mine[i], theirs[j], **form) for i, j in pairs]).sum()


@pytest.mark.parametrize(
    ("params", "pairs", "by_hand"),
    [
        ({}, [(1, 1), (2, 2), (3, 3)], {}),
        ({"form": "max"}, [(1, 1), (2, 2), (3, 3)], {"form": "max"}),
        ({"normalisation": "paper"}, [(1, 1), (2, 2), (3, 3)], {"normalisation": "paper"}),
        ({"p": 4.0, "beta": 7.0}, [(1, 1), (2, 2), (3, 3)], {"p": 4.0, "beta": 7.0}),
        ({"decay": "linear"}, [(1, 1), (2, 2), (3, 3)], {"beta": 250.0}),
        ({"depths": [0.0, 1.0], "teacher_depths": [0.3, 0.7]}, [(0, 1), (3, 2)], {}),
    ],
)
def test_at_options_choose_map_norm_layers_and_weight(params: Any, pairs: Any, by_hand: Any) -> None:
    step = step_of(signals(0, 2, 3, 4, 5), signals(1, 6, 7, 8, 9), progress=0.75)
    losses = configure("at", params).loss(step)
    torch.testing.assert_close(losses["at"], at_by_hand(step, pairs, **by_hand))
    others = [configure("at", {}).loss(step)["at"]] if params else []
    assert all(abs(losses["at"] - other) > 1e-3 * other for other in others)
    assert set(losses) == {"ce", "at"}


def test_at_full_compares_whole_activations_through_regressors_where_channels_differ() -> None:
    method = configure("at", {"form": "full", "decay": "linear"})
    mine, theirs = signals(0, 2, 3, 4, 5), signals(1, 6, 3, 8, 9)
    auxiliary = method.auxiliary_modules(mine, (theirs,))
    widths = {name: tuple(head.weight.shape[:2][::-1]) for name, head in auxiliary.items()}
    channels = [(features_of(mine)[i].shape[1], features_of(theirs)[i].shape[1]) for i in (1, 2, 3)]
    assert widths == {f"regressor_{i}": pair for i, pair in enumerate(channels) if pair[0] != pair[1]} and widths
    step = step_of(mine, theirs, progress=0.75)
    step = dataclasses.replace(step, auxiliary=auxiliary)
    terms = []
    for i, stage in enumerate((1, 2, 3)):
        feature = features_of(mine)[stage]
        feature = auxiliary[f"regressor_{i}"](feature) if f"regressor_{i}" in auxiliary else feature
        terms.append(attention_loss(feature, features_of(theirs)[stage], form="full"))
    torch.testing.assert_close(method.loss(step)["at"], 250 * torch.stack(terms).sum())
    assert not configure("at", {}).auxiliary_modules(mine, (theirs,))


def test_at_alpha_adds_soft_targets_and_takes_as_much_from_the_hard_ones() -> None:
    step = step_of(signals(0, 2, 3), signals(1, 4, 5))
    losses = configure("at", {"alpha": 0.9, "temperature": 3.0}).loss(step)
    torch.testing.assert_close(losses["kd"], 0.9 * kd_loss(step.student.logits, step.teacher.logits, 3.0))
    torch.testing.assert_close(losses["ce"], 0.1 * F.cross_entropy(step.student.logits, step.targets))


def test_at_grad_symmetry_adds_the_distance_to_the_mirrored_gradient(digits: Splits) -> None:
    run = started(spec_of("at_grad", *CNN, symmetry=3.0), digits)
    _, step, losses = run.one_update()
    assert step.student.input_grad is not None and step.student.mirrored_grad is not None
    distance = (step.student.input_grad - step.student.mirrored_grad).flatten(1).square().sum(dim=1).mean()
    assert values(losses)["symmetry"] == pytest.approx(1.5 * distance.item(), rel=1e-5)
    outcome, _, memory = carried_out(spec_of("at_grad", *CNN, symmetry=3.0), digits)
    assert outcome.status == "done" and memory.epochs[0].losses["student/symmetry"] > 0
    _, _, plain = carried_out(spec_of("at_grad", *CNN), digits)
    assert set(plain.epochs[0].losses) == {"student/ce", "student/at_grad"}


def test_vid_without_logit_weight_has_no_head_for_logits(digits: Splits) -> None:
    for weight, head in ((0.0, set()), (2.0, {"logits"})):
        run = started(spec_of("vid", *CNN, logit_weight=weight), digits)
        assert set(run.auxiliary) == {"head_0", "head_1", "head_2"} | head
        _, _, losses = run.one_update()
        assert set(losses) == {"ce", "vid"} | ({"vid_logits"} if head else set())


@pytest.mark.parametrize(
    ("student", "adapted"),
    [("cifar_resnet8_quarter", {0, 1, 2, 3}), ("cifar_resnet14", set()), ("wrn_16_2", {1, 2, 3})],
)
def test_fsp_adapts_channels_only_where_they_differ(student: str, adapted: set[int], digits: Splits) -> None:
    run = started(spec_of("fsp", SMALL.model_copy(update={"name": student}), LARGE), digits)
    assert set(run.auxiliary) == {f"adapter_{index}" for index in adapted}
    _, _, losses = run.one_update()
    assert set(losses) == {"fsp"} and values(losses)["fsp"] > 0
