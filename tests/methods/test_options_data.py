"""What methods make of the data that they are given: pseudo-labels, noise, images without labels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kdbench.bench.configure import configure
from kdbench.bench.data.splits import Splits
from kdbench.bench.errors import InputError
from kdbench.bench.spec import ModelSpec
from kdbench.methods.base import Net
from kdbench.methods.functional import kd_loss
from kdbench.methods.kd import logit_loss
from tests.methods.options import CNN, LARGE, SMALL, carried_out, spec_of, started, values

MLP = ModelSpec(name="mlp_800_800")


def test_noisy_student_gives_every_round_the_whole_schedule(digits: Splits) -> None:
    spec = spec_of("noisy_student", *CNN, rounds=2, recipe={"epochs": 2})
    run = started(spec, digits)
    seen = run.watch()
    run.finish()
    assert [stage for stage, _, _ in seen] == ["round_1"] * 2 * run.steps + ["round_2"] * 2 * run.steps
    (stage,) = configure("noisy_student", {}).stages((Net("teacher"),))
    assert stage.epochs == 1.0 and stage.students == (Net(model_args=stage.students[0].model_args),)


@pytest.mark.parametrize(
    ("magnitude", "recipe", "augment"),
    [
        (0, "none", "none"),
        (0, "crop+flip", "crop+flip"),
        (9, "none", "randaugment"),
        (9, "crop+flip", "crop+flip+randaugment"),
    ],
)
def test_noisy_student_without_a_magnitude_augments_as_the_recipe_does(
    magnitude: int, recipe: str, augment: str, digits: Splits
) -> None:
    run = started(spec_of("noisy_student", *CNN, magnitude=magnitude, recipe={"augment": recipe}), digits)
    data = run.trainer.batches().data
    assert data.augment == augment and data.magnitude == magnitude


def test_noisy_student_without_noise_has_none(digits: Splits) -> None:
    (stage,) = configure("noisy_student", {"dropout": 0, "stochastic_depth": 0}).stages((Net("teacher"),))
    assert stage.students == (Net(),)


@pytest.mark.parametrize(("student", "notes"), [(SMALL, ()), (MLP, ("student does not take drop_path_rate",))])
def test_noisy_student_leaves_out_the_noise_that_a_network_does_not_take_and_says_so(
    student: ModelSpec, notes: tuple[str, ...], digits: Splits
) -> None:
    outcome, _, _ = carried_out(spec_of("noisy_student", student, LARGE), digits)
    assert outcome.status == "done" and outcome.notes == notes


def test_noisy_student_learns_labels_and_what_the_teacher_says_of_the_rest(digits: Splits) -> None:
    run = started(spec_of("noisy_student", *CNN, threshold=0.0, balance=False), digits)
    data, given = run.trainer.batches().data, digits.train
    labelled = len(given.targets)
    assert torch.equal(data.targets[:labelled].argmax(dim=1), given.targets)
    assert len(data.targets) == labelled + len(given.unlabelled)
    said = run.networks.predict(Net("teacher"), given.unlabelled).softmax(dim=1)
    order = said.amax(dim=1).argsort(descending=True, stable=True)
    assert torch.equal(data.targets[labelled:], said[order])


@pytest.mark.parametrize("form", ["kl", "mse"])
def test_kd_on_unlabelled_images_learns_the_teachers_logits_of_all_and_the_labels_of_some(
    form: str, digits: Splits
) -> None:
    run = started(spec_of("kd", *CNN, unlabelled=True, form=form, alpha=0.4), digits)
    data = run.trainer.batches().data
    assert len(data.inputs) == len(digits.train.targets) + len(digits.train.unlabelled)
    seen = run.watch()
    run.train()
    mixed = 0
    for _, step, losses in seen:
        has_label = step.targets.sum(dim=1) > 0
        mine, theirs = step.student.logits, step.teacher.logits
        soft = kd_loss(mine, theirs, 4.0) if form == "kl" else logit_loss(mine, theirs)
        assert values(losses)["kd"] == pytest.approx(0.4 * soft.item(), rel=1e-5)
        if has_label.any():
            hard = F.cross_entropy(mine[has_label], step.targets[has_label].argmax(dim=1))
            assert values(losses)["ce"] == pytest.approx(0.6 * hard.item(), rel=1e-5)
        mixed += bool(has_label.any() and not has_label.all())
    assert mixed


def test_kd_on_unlabelled_images_needs_targets_of_one_class_and_keeps_every_class() -> None:
    assert configure("kd", {"unlabelled": True}).needed() == {"class_targets"} and not configure("kd", {}).needed()
    with pytest.raises(InputError, match="unlabelled images are of all classes"):
        configure("kd", {"unlabelled": True, "omit": [3]})
    assert "temperature" in configure("kd", {}).space()
    assert set(configure("kd", {"form": "mse"}).space()) == {"alpha"}
