"""Modern methods of two views, of assistants and of two heads: loops, values by hand, and what a run of them shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.bench.configure import configure
from kdbench.bench.contract.toy import DISTILLED
from kdbench.bench.data.splits import Splits
from kdbench.bench.errors import InputError
from kdbench.bench.tasks import task_of
from kdbench.methods import mlkd, vkd
from kdbench.methods.base import STUDENT, TEACHER, Net, Signals, Unsupported
from kdbench.methods.functional import kd_loss
from tests.methods.losses import LN3, Case, draw, loop_kd, loop_softmax, refuses
from tests.methods.modern import LABELS, gradient, mean
from tests.methods.options import CNN, LARGE, SMALL, carried_out, memory_of, spec_of, started, step_of, values


def loop_correlation(student: Tensor, teacher: Tensor, temperature: float, classes: bool) -> float:
    both = [[loop_softmax(row, temperature) for row in each.tolist()] for each in (student, teacher)]
    if classes:
        both = [[list(column) for column in zip(*rows, strict=True)] for rows in both]
    grams = [[[sum(a * b for a, b in zip(p, q, strict=True)) for q in rows] for p in rows] for rows in both]
    squares = [(a - b) ** 2 for s, t in zip(*grams, strict=True) for a, b in zip(s, t, strict=True)]
    return sum(squares) / len(grams[0])


def loop_vkd(student: Tensor, teacher: Tensor) -> float:
    apart = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        variance = mean([(value - mean(t)) ** 2 for value in t])
        apart += [abs(a - (b - mean(t)) / (variance + 1e-5) ** 0.5) for a, b in zip(s, t, strict=True)]
    return mean([value**2 / 2 if value < 1 else value - 0.5 for value in apart])


CASES: dict[str, Case] = {
    "classes": Case(
        lambda s, t: mlkd.class_correlation_loss(s, t, 3.0), lambda s, t: loop_correlation(s, t, 3.0, True)
    ),
    "batch": Case(lambda s, t: mlkd.batch_correlation_loss(s, t, 3.0), lambda s, t: loop_correlation(s, t, 3.0, False)),
    "vkd": Case(vkd.vkd_loss, loop_vkd, zero=False),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_loss_equals_the_loop_and_passes_gradcheck(case: Case) -> None:
    expected = case.loop(case.student, case.teacher)
    assert case.value.item() == pytest.approx(expected, rel=1e-9) and expected > 1e-4
    assert torch.autograd.gradcheck(lambda s: case.loss(s, case.teacher), (case.student.requires_grad_(),))
    assert not case.zero or case.loss(case.student, case.student).item() == 0
    refuses(lambda: case.loss(case.student, draw(3, 4)), (5, 4), (3, 4))


def test_correlations_by_hand() -> None:
    # Student sure of class 0 and of class 1: both products are the identity. Teacher at 1/2 all over: products of
    # classes and of images 1/2 everywhere: squares of 1/2, four of them, over two.
    student, teacher = 1e3 * torch.eye(2), torch.zeros(2, 2)
    assert mlkd.class_correlation_loss(student, teacher, 1.0).item() == pytest.approx(0.5)
    assert mlkd.batch_correlation_loss(student, teacher, 1.0).item() == pytest.approx(0.5)
    # One image at (3/4, 1/4): its product 5/8 against 1/2, squared 1/64; by the first logit 2 * 1/8 * 3/16.
    one = torch.tensor([[LN3, 0.0]])
    assert mlkd.batch_correlation_loss(one, teacher[:1], 1.0).item() == pytest.approx(1 / 64, rel=1e-5)
    found = gradient(lambda s: mlkd.batch_correlation_loss(s, teacher[:1], 1.0), one)
    assert found.tolist()[0] == pytest.approx([3 / 64, -3 / 64], rel=1e-5)


def test_whitened_vectors_by_hand() -> None:
    # Layer norm of (1, 3) is (-1, 1): Huber of 0.5 is 1/8, of 3 2.5.
    loss = vkd.vkd_loss(torch.tensor([[-0.5, 4.0]]), torch.tensor([[1.0, 3.0]]))
    assert loss.item() == pytest.approx((0.125 + 2.5) / 2, rel=1e-4)


def test_unsure_images_and_classes_are_those_up_to_the_median() -> None:
    teacher = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 2.0], [4.0, 0.0, 0.0]])
    images, classes = mlkd.unsure(teacher)
    assert images.tolist() == [0, 1, 1, 0] and classes.tolist() == [0, 1, 1]


def views() -> tuple[Signals, Signals, tuple[Tensor, ...]]:
    """Logits of two views in turn, and of each view."""
    weak, strong, weak_t, strong_t = (draw(6, 4, seed=seed).float() for seed in range(4))
    both = [torch.stack(pair, dim=1).flatten(0, 1) for pair in ((weak, strong), (weak_t, strong_t))]
    return Signals(both[0]), Signals(both[1]), (weak, strong, weak_t, strong_t)


def test_program_takes_shares_and_the_weak_view_where_the_corrected_form_does_not() -> None:
    mine, theirs, (weak, strong, weak_t, strong_t) = views()
    labels = torch.tensor([1, 0, 3, 2, 1, 3])
    step = step_of(mine, theirs, labels=labels.repeat_interleave(2))
    losses = values(configure("mlkd", {}).loss(step))
    images, classes = (float(each.mean()) for each in mlkd.unsure(weak_t))
    expected = 0.0
    for t in (4.0, 3.0, 5.0, 2.0, 6.0):
        expected += images * loop_kd(weak, weak_t, t) + loop_kd(
            *((strong, strong_t) if t in (3, 4, 5) else (weak, weak_t)), t
        )
        expected += classes * loop_correlation(weak, weak_t, t, True) + images * loop_correlation(
            weak, weak_t, t, False
        )
    assert losses["mlkd"] == pytest.approx(0.9 * expected, rel=1e-5)
    hard = F.cross_entropy(weak, labels) + F.cross_entropy(strong, labels)
    assert losses["ce"] == pytest.approx(0.1 * hard.item(), rel=1e-5)
    corrected = configure("mlkd", {"form": "corrected", "temperatures": (2.0,), "weight": 1.0}).loss(step)
    masks = mlkd.unsure(weak_t)
    by_hand = (mlkd.instance_losses(weak, weak_t, 2.0) * masks[0]).mean() + kd_loss(strong, strong_t, 2.0)
    for pair in ((weak, weak_t), (strong, strong_t)):
        by_hand = by_hand + (mlkd.class_correlations(*pair, 2.0) * masks[1][:, None]).sum() / 4
        by_hand = by_hand + (mlkd.batch_correlations(*pair, 2.0) * masks[0][:, None]).sum() / 6
    assert values(corrected)["mlkd"] == pytest.approx(by_hand.item(), rel=1e-5)


def test_each_sample_is_shown_in_two_views_and_both_are_counted(digits: Splits) -> None:
    spec = spec_of("mlkd", *CNN)
    run = started(spec, digits)
    step, train = run.one_update().step, digits.train
    inputs, targets = train.inputs, train.targets
    assert isinstance(step.inputs, Tensor) and isinstance(step.targets, Tensor) and step.indices is not None
    assert isinstance(inputs, Tensor) and isinstance(targets, Tensor)
    assert len(step.inputs) == len(step.targets) == 2 * len(step.indices) == len(step.student.logits)
    weak, strong = step.inputs.unflatten(0, (-1, 2)).unbind(dim=1)
    assert torch.equal(weak, inputs[step.indices] / 255) and not torch.equal(weak, strong)
    assert torch.equal(step.targets, targets[step.indices].repeat_interleave(2))
    outcome, _, memory = carried_out(spec, digits)
    plain, _, other = carried_out(spec_of("kd", *CNN), digits)
    assert outcome.cost["samples"] == 2 * plain.cost["samples"]
    assert outcome.cost["teacher_forwards"] == 2 * plain.cost["teacher_forwards"]
    assert memory.epochs[0].train is not None and other.epochs[0].samples * 2 == memory.epochs[0].samples


def test_a_task_without_views_refuses_them() -> None:
    with pytest.raises(Unsupported, match="mlkd reads views, which the task segmentation does not have"):
        task_of("segmentation").check("mlkd", configure("mlkd", {}).needed())


@pytest.mark.parametrize("name", ["takd", "dgkd"])
def test_assistants_learn_first_and_teach_then(name: str, digits: Splits) -> None:
    learner = configure(name, {"architectures": ("cifar_resnet14", ""), "assistant_epochs": 0.5})
    first, second = Net("assistant_1"), Net("assistant_2")
    stages = list(learner.stages((TEACHER,)))
    assert [stage.students for stage in stages] == [(first,), (second,), (STUDENT,)]
    dense = name == "dgkd"
    taught = [(TEACHER,), (TEACHER, first), (TEACHER, first, second)] if dense else [(TEACHER,), (first,), (second,)]
    assert [stage.teachers for stage in stages] == taught and [each.epochs for each in stages] == [0.5, 0.5, 1.0]
    assert learner.assistants() == {"assistant_1": "cifar_resnet14", "assistant_2": ""}
    run = started(spec_of(name, *CNN, architectures=("cifar_resnet8_quarter", "cifar_resnet14")), digits)
    for stage in (1, 2):
        run.enter(stage)
    counts = {key: network.parameter_count() for key, network in run.networks.built.items()}
    assert counts["assistant_1"] == counts["student"] < counts["assistant_2"]
    with pytest.raises(InputError, match="at least one assistant"):
        configure(name, {"architectures": ()})


def test_an_unknown_assistant_is_named_before_training(digits: Splits) -> None:
    spec = spec_of("takd", *CNN, architectures=("cifar_resnet21",))
    with pytest.raises(InputError, match="did you mean cifar_resnet"):
        started(spec, digits)


def test_assistants_losses_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, *others = (Signals(draw(5, 4, seed=seed).float()) for seed in range(4))
    soft = [kd_loss(mine.logits, each.logits, 4.0).item() for each in others]
    hard = F.cross_entropy(mine.logits, LABELS).item()
    taught = values(configure("takd", {"alpha": 0.75}).loss(step_of(mine, others[0], labels=LABELS)))
    assert taught == pytest.approx({"ce": hard / 4, "kd": 0.75 * soft[0]}, rel=1e-5)
    dense = configure("dgkd", {"drop": False, "alpha": 0.5})
    found = values(dense.loss(step_of(mine, *others, labels=LABELS)))
    assert found == pytest.approx({"ce": hard / 2, "kd": sum(soft) / 2}, rel=1e-5)
    torch.manual_seed(0)
    dropped = {round(values(configure("dgkd", {}).loss(step_of(mine, *others)))["kd"], 3) for _ in range(40)}
    assert dropped == {round(sum(soft) - each, 3) for each in soft}
    assert values(configure("dgkd", {}).loss(step_of(mine, others[0])))["kd"] == pytest.approx(soft[0], rel=1e-5)


def test_each_head_has_its_teacher_and_their_mean_predicts(digits: Splits) -> None:
    spec = spec_of("deit", DISTILLED, LARGE)
    seen = started(spec, digits).one_update()
    student, teacher = seen.step.student, seen.step.teacher
    assert student.heads is not None and len(student.heads) == 2 and teacher.heads is not None
    torch.testing.assert_close(student.logits, (student.heads[0] + student.heads[1]) / 2)
    assert torch.equal(teacher.heads[0], teacher.logits) and len(teacher.heads) == 1
    labels: Any = seen.step.targets
    hard = F.cross_entropy(student.heads[0], labels).item() / 2
    decided = F.cross_entropy(student.heads[1], teacher.logits.argmax(dim=1)).item() / 2
    assert values(seen.losses) == pytest.approx({"ce": hard, "distilled": decided}, rel=1e-5)
    soft = configure("deit", {"form": "soft", "alpha": 0.1}).loss(seen.step)
    expected = 0.1 * kd_loss(student.heads[1], teacher.logits, 3.0).item() / 10
    assert values(soft) == pytest.approx({"ce": 1.8 * hard, "distilled": expected}, rel=1e-5)
    outcome, files, _ = carried_out(spec_of("kd", DISTILLED, SMALL), digits)
    assert outcome.status == "done" and set(files) == {"last", "best"}


def test_a_student_with_one_head_is_refused(digits: Splits) -> None:
    outcome, _, _ = carried_out(spec_of("deit", *CNN), digits)
    assert outcome.status == "unsupported" and "the student has one head" in outcome.reason
    spec = spec_of("rkd", DISTILLED, LARGE)
    assert memory_of(spec, digits).stored and "no linear classifier" in carried_out(spec, digits)[0].reason


@pytest.mark.parametrize("widths", [(3, 5), (5, 3), (4, 4)])
def test_projection_is_orthogonal_and_divergence_is_of_the_last_head(widths: tuple[int, int]) -> None:
    pair = [
        Signals(draw(5, 4, seed=i).float(), (draw(5, width, 2, 2, seed=i).float(),), heads=())
        for i, width in enumerate(widths)
    ]
    mine = replace(pair[0], heads=(draw(5, 4, seed=8).float(), draw(5, 4, seed=9).float()))
    learner: Any = configure("vkd", {"weight": 2.0})
    torch.manual_seed(0)
    step = replace(step_of(mine, pair[1], labels=LABELS), auxiliary=learner.auxiliary_modules(mine, (pair[1],)))
    projection = step.auxiliary["projection"]
    assert isinstance(projection, nn.Module) and isinstance(projection.weight, Tensor)
    weight = projection.weight if widths[1] <= widths[0] else projection.weight.T
    torch.testing.assert_close(weight @ weight.T, torch.eye(min(widths)), rtol=1e-4, atol=1e-5)
    assert mine.features and pair[1].features and mine.heads
    projected = mine.features[0].mean(dim=(2, 3)) @ projection.weight.T
    found = values(learner.loss(step))
    assert found["vkd"] == pytest.approx(
        2 * vkd.vkd_loss(projected, pair[1].features[0].mean(dim=(2, 3))).item(), rel=1e-5
    )
    assert found["kd"] == pytest.approx(kd_loss(mine.heads[1], pair[1].logits, 1.0).item(), rel=1e-5)
