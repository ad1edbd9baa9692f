"""Each public loss against a slow loop in float64, a value worked by hand, and its properties."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdbench.methods.at_grad import gradient_attention_loss
from kdbench.methods.dml import mutual_loss
from kdbench.methods.fitnets import hint_loss
from kdbench.methods.functional import at_depth, kd_loss
from kdbench.methods.multi_exit import Exit, Temperature, exit_loss
from kdbench.methods.noisy_student import select_confident
from kdbench.methods.sp import similarity_loss

LN3 = math.log(3)


def draw(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def loop_softmax(row: list[float], temperature: float) -> list[float]:
    largest = max(row)
    powers = [math.exp((value - largest) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def loop_kd(student: Tensor, teacher: Tensor, temperature: float) -> float:
    total = 0.0
    for student_row, teacher_row in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = loop_softmax(student_row, temperature), loop_softmax(teacher_row, temperature)
        total += sum(p_k * math.log(p_k / q_k) for p_k, q_k in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


def loop_gram(feature: Tensor) -> list[list[float]]:
    rows = feature.reshape(len(feature), -1).tolist()
    gram = [[sum(a * b for a, b in zip(first, second, strict=True)) for second in rows] for first in rows]
    return [[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in gram]


def loop_similarity(student: Tensor, teacher: Tensor) -> float:
    total, batch = 0.0, len(student)
    for student_row, teacher_row in zip(loop_gram(student), loop_gram(teacher), strict=True):
        total += sum((s - t) ** 2 for s, t in zip(student_row, teacher_row, strict=True))
    return total / batch**2


def loop_half_squares(student: Tensor, teacher: Tensor) -> float:
    return sum((s - t) ** 2 / 2 for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))


def loop_selection(probabilities: Tensor, threshold: float, balance: bool) -> list[int]:
    rows = probabilities.tolist()
    kept = sorted((i for i, row in enumerate(rows) if max(row) >= threshold), key=lambda i: -max(rows[i]))
    if not balance or not kept:
        return kept
    classes = len(rows[0])
    size = max(1, round(len(kept) / classes))
    chosen = []
    for label in range(classes):
        group = [i for i in kept if rows[i].index(max(rows[i])) == label]
        chosen += [group[place % len(group)] for place in range(size)] if group else []
    return chosen


Loss = Callable[[Tensor, Tensor], Tensor]

PAIR_LOSSES: dict[str, tuple[Loss, tuple[int, ...]]] = {
    "kd": (lambda s, t: kd_loss(s, t, 3.0), (5, 4)),
    "mutual": (lambda s, t: mutual_loss(s, [t]), (5, 4)),
    "exit": (lambda s, t: exit_loss([s], t, 3.0), (5, 4)),
    "similarity": (similarity_loss, (5, 3, 2, 2)),
    "gradient_attention": (gradient_attention_loss, (5, 3, 2, 2)),
    "hint": (hint_loss, (5, 3, 2, 2)),
}
"""Losses of a student tensor and a teacher tensor of one shape."""

every_pair_loss = pytest.mark.parametrize(("loss", "shape"), PAIR_LOSSES.values(), ids=PAIR_LOSSES)


@every_pair_loss
def test_pair_loss_is_zero_for_equal_inputs_and_positive_otherwise(loss: Loss, shape: tuple[int, ...]) -> None:
    student, teacher = draw(*shape), draw(*shape, seed=1)
    assert loss(student, student.clone()).item() == pytest.approx(0, abs=1e-14)
    assert loss(student, teacher).item() > 1e-3


@every_pair_loss
def test_pair_loss_is_a_scalar_of_the_inputs_type_and_right_in_float32(loss: Loss, shape: tuple[int, ...]) -> None:
    student, teacher = draw(*shape), draw(*shape, seed=1)
    double, single = loss(student, teacher), loss(student.float(), teacher.float())
    assert (double.dtype, single.dtype) == (torch.float64, torch.float32)
    assert double.shape == single.shape == ()
    assert single.item() == pytest.approx(double.item(), rel=1e-5)


@every_pair_loss
def test_pair_loss_gradient_in_the_student_passes_gradcheck(loss: Loss, shape: tuple[int, ...]) -> None:
    student, teacher = draw(*shape).requires_grad_(), draw(*shape, seed=1)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), (student,))


@every_pair_loss
def test_pair_loss_does_not_depend_on_the_order_of_the_batch(loss: Loss, shape: tuple[int, ...]) -> None:
    student, teacher = draw(*shape), draw(*shape, seed=1)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert loss(student[order], teacher[order]).item() == pytest.approx(loss(student, teacher).item(), rel=1e-12)
    assert loss(student[order], teacher).item() != pytest.approx(loss(student, teacher).item(), rel=1e-3)


@every_pair_loss
def test_pair_loss_of_a_doubled_batch_is_unchanged(loss: Loss, shape: tuple[int, ...]) -> None:
    # Each row of the doubled Gram matrix holds each value twice, so its norm grows by sqrt 2, the squared differences
    # shrink by 2, and the mean with them.
    factor = 0.5 if loss is similarity_loss else 1.0
    student, teacher = draw(*shape), draw(*shape, seed=1)
    doubled = loss(torch.cat([student, student]), torch.cat([teacher, teacher]))
    assert doubled.item() == pytest.approx(factor * loss(student, teacher).item(), rel=1e-12)


@every_pair_loss
def test_pair_loss_names_both_shapes_when_the_batches_differ(loss: Loss, shape: tuple[int, ...]) -> None:
    other = (shape[0] + 2, *shape[1:])
    with pytest.raises(ValueError) as caught:
        loss(draw(*shape), draw(*other))
    assert str(shape) in str(caught.value) and str(other) in str(caught.value)


@pytest.mark.parametrize("name", ["kd", "mutual", "exit", "gradient_attention", "hint"])
def test_pair_loss_names_both_shapes_when_the_widths_differ(name: str) -> None:
    loss, shape = PAIR_LOSSES[name]
    other = (shape[0], 1, *shape[2:])  # one column would broadcast
    with pytest.raises(ValueError) as caught:
        loss(draw(*shape), draw(*other))
    assert str(shape) in str(caught.value) and str(other) in str(caught.value)


@pytest.mark.parametrize("shape", [(4,), (5, 3, 4)], ids=str)
@pytest.mark.parametrize("name", ["kd", "mutual", "exit"])
def test_logit_loss_refuses_what_is_not_a_batch_of_logits(name: str, shape: tuple[int, ...]) -> None:
    loss, _ = PAIR_LOSSES[name]
    with pytest.raises(ValueError, match="shape|dimension"):
        loss(draw(*shape), draw(*shape, seed=1))


def test_similarity_loss_refuses_a_tensor_without_features() -> None:
    with pytest.raises(ValueError, match="shape|dimension"):
        similarity_loss(draw(4), draw(4, seed=1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_kd_loss_equals_the_loop(temperature: float) -> None:
    student, teacher = draw(7, 5, scale=4), draw(7, 5, seed=1, scale=4)
    assert kd_loss(student, teacher, temperature).item() == pytest.approx(
        loop_kd(student, teacher, temperature), rel=1e-12
    )


def test_kd_loss_by_hand() -> None:
    # T = 2. Teacher (2 ln 3, 0) / 2 -> (ln 3, 0) -> (3/4, 1/4); student (0, 0) -> (1/2, 1/2).
    # KL = 3/4 ln(3/2) + 1/4 ln(1/2) = 3/4 ln 3 - ln 2 = 0.130812; times T^2 = 4 -> 0.523248.
    student, teacher = torch.zeros(1, 2), torch.tensor([[2 * LN3, 0.0]])
    assert kd_loss(student, teacher, 2.0).item() == pytest.approx(0.523248, abs=1e-6)


def test_kd_loss_is_the_divergence_of_the_student_from_the_teacher_and_not_the_reverse() -> None:
    # KL(t || s) = 3/4 ln 3 - ln 2 = 0.130812 as above at T = 1; the reverse is 1/2 ln(2/3) + 1/2 ln 2 = 0.143841.
    flat, peaked = torch.zeros(1, 2), torch.tensor([[LN3, 0.0]])
    assert kd_loss(flat, peaked, 1.0).item() == pytest.approx(0.130812, abs=1e-6)
    assert kd_loss(peaked, flat, 1.0).item() == pytest.approx(0.143841, abs=1e-6)


def test_kd_loss_ignores_a_constant_added_to_the_logits_of_an_image() -> None:
    student, teacher = draw(6, 4), draw(6, 4, seed=1)
    moved = kd_loss(student + draw(6, 1, seed=2), teacher + draw(6, 1, seed=3), 4.0)
    assert moved.item() == pytest.approx(kd_loss(student, teacher, 4.0).item(), rel=1e-12)


def test_kd_loss_gradient_keeps_its_scale_as_the_temperature_rises() -> None:
    # Hinton et al. 2015, equation 4: for T far above the logits the gradient of T^2 KL is (z_s - z_t) / K, for
    # logits of mean zero, whatever T is; over a batch of B it is divided by B.
    student, teacher = (logits - logits.mean(dim=1, keepdim=True) for logits in (draw(6, 4), draw(6, 4, seed=1)))
    limit = (student - teacher) / 4 / 6
    for temperature in (1e3, 1e4):
        variable = student.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(kd_loss(variable, teacher, temperature), variable)
        assert torch.allclose(gradient, limit, rtol=0, atol=10 / temperature)


def test_kd_loss_gradient_is_the_difference_of_probabilities_times_temperature() -> None:
    student, teacher = draw(6, 4).requires_grad_(), draw(6, 4, seed=1)
    (gradient,) = torch.autograd.grad(kd_loss(student, teacher, 3.0), student)
    expected = 3.0 * ((student / 3).softmax(dim=1) - (teacher / 3).softmax(dim=1)) / 6
    assert torch.allclose(gradient, expected, rtol=0, atol=1e-14)


def test_kd_loss_takes_a_temperature_that_is_a_tensor() -> None:
    student, teacher = draw(6, 4), draw(6, 4, seed=1)
    assert kd_loss(student, teacher, torch.tensor(3.0)).item() == pytest.approx(
        kd_loss(student, teacher, 3.0).item(), rel=1e-12
    )


def test_kd_loss_is_finite_for_logits_that_leave_no_probability() -> None:
    student = torch.tensor([[1000.0, -1000.0], [0.0, 0.0]], requires_grad=True)
    loss = kd_loss(student, torch.tensor([[1000.0, -1000.0], [1000.0, -1000.0]]), 1.0)
    loss.backward()
    # First image: equal, 0. Second: KL((1, 0) || (1/2, 1/2)) = ln 2. Mean: ln 2 / 2.
    assert loss.item() == pytest.approx(math.log(2) / 2, rel=1e-6)
    assert student.grad is not None and student.grad.isfinite().all()


def test_mutual_loss_equals_the_loop_over_peers() -> None:
    student, peers = draw(6, 4), [draw(6, 4, seed=seed) for seed in (1, 2, 3)]
    expected = sum(loop_kd(student, peer, 1.0) for peer in peers) / 3
    assert mutual_loss(student, peers).item() == pytest.approx(expected, rel=1e-12)


def test_mutual_loss_by_hand() -> None:
    # Student (1/2, 1/2). First peer (3/4, 1/4): 0.130812 as in kd_loss. Second peer (1/2, 1/2): 0. Mean: 0.065406.
    peers = [torch.tensor([[LN3, 0.0]]), torch.zeros(1, 2)]
    assert mutual_loss(torch.zeros(1, 2), peers).item() == pytest.approx(0.065406, abs=1e-6)


def test_mutual_loss_does_not_depend_on_the_order_of_peers() -> None:
    student, peers = draw(6, 4), [draw(6, 4, seed=seed) for seed in (1, 2, 3)]
    assert mutual_loss(student, peers[::-1]).item() == pytest.approx(mutual_loss(student, peers).item(), rel=1e-12)


def test_mutual_loss_names_both_shapes_when_a_later_peer_differs() -> None:
    with pytest.raises(ValueError, match=r"\(6, 4\).*\(6, 5\)"):
        mutual_loss(draw(6, 4), [draw(6, 4, seed=1), draw(6, 5)])


def test_mutual_loss_refuses_no_peers() -> None:
    with pytest.raises(ValueError, match="at least one peer"):
        mutual_loss(draw(6, 4), [])


def test_similarity_loss_equals_the_loop_for_features_of_unequal_widths() -> None:
    student, teacher = draw(5, 3, 2, 2), draw(5, 7, 1, 3, seed=1)
    assert similarity_loss(student, teacher).item() == pytest.approx(loop_similarity(student, teacher), rel=1e-12)


def test_similarity_loss_by_hand() -> None:
    # Student: images (1, 0) and (0, 1): G = I, rows already of norm 1. Teacher: (1) and (1): G = ones, rows
    # (1, 1) / sqrt 2. Each row differs by (1 - 1/sqrt 2)^2 + 1/2 = 2 - sqrt 2; two rows over B^2 = 4 entries:
    # (2 - sqrt 2) / 2 = 0.292893.
    student, teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.ones(2, 1)
    assert similarity_loss(student, teacher).item() == pytest.approx(0.292893, abs=1e-6)


def test_similarity_loss_is_symmetric_and_ignores_scale_and_rotation() -> None:
    student, teacher = draw(5, 6), draw(5, 8, seed=1)
    rotation, _ = torch.linalg.qr(draw(6, 6, seed=2))
    expected = similarity_loss(student, teacher).item()
    assert similarity_loss(teacher, student).item() == pytest.approx(expected, rel=1e-12)
    assert similarity_loss(7 * student, teacher / 3).item() == pytest.approx(expected, rel=1e-12)
    assert similarity_loss(student @ rotation, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_similarity_loss_of_features_that_are_all_zero_has_a_finite_gradient() -> None:
    student = torch.zeros(4, 3, requires_grad=True)
    similarity_loss(student, torch.ones(4, 2)).backward()
    assert student.grad is not None and student.grad.isfinite().all()


def test_gradient_attention_loss_equals_the_loop() -> None:
    student, teacher = draw(5, 3, 4, 2), draw(5, 3, 4, 2, seed=1)
    expected = sum(loop_half_squares(s, t) for s, t in zip(student, teacher, strict=True)) / 5
    assert gradient_attention_loss(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_gradient_attention_loss_by_hand() -> None:
    # First image: difference (3, 4), half of 9 + 16 = 12.5. Second: (1, 0), half of 1 = 0.5. Mean: 6.5.
    student = torch.tensor([[3.0, 5.0], [2.0, 2.0]]).view(2, 1, 1, 2)
    teacher = torch.tensor([[0.0, 1.0], [1.0, 2.0]]).view(2, 1, 1, 2)
    assert gradient_attention_loss(student, teacher).item() == pytest.approx(6.5)


def test_gradient_attention_loss_is_symmetric_and_grows_with_the_square() -> None:
    student, teacher = draw(5, 3, 4, 2), draw(5, 3, 4, 2, seed=1)
    expected = gradient_attention_loss(student, teacher).item()
    assert gradient_attention_loss(teacher, student).item() == pytest.approx(expected, rel=1e-12)
    assert gradient_attention_loss(3 * student, 3 * teacher).item() == pytest.approx(9 * expected, rel=1e-12)


def test_hint_loss_equals_the_loop() -> None:
    regressed, hint = draw(5, 3, 4, 2), draw(5, 3, 4, 2, seed=1)
    expected = loop_half_squares(regressed, hint) / (5 * 3 * 4 * 2)
    assert hint_loss(regressed, hint).item() == pytest.approx(expected, rel=1e-12)


def test_hint_loss_by_hand() -> None:
    # Differences 3, 4, 1, 0: squares 9 + 16 + 1 + 0 = 26, mean 6.5, half 3.25.
    regressed = torch.tensor([3.0, 5.0, 2.0, 2.0]).view(1, 1, 2, 2)
    hint = torch.tensor([0.0, 1.0, 1.0, 2.0]).view(1, 1, 2, 2)
    assert hint_loss(regressed, hint).item() == pytest.approx(3.25)


def test_hint_loss_is_symmetric_and_ignores_a_common_shift() -> None:
    regressed, hint = draw(5, 3, 4, 2), draw(5, 3, 4, 2, seed=1)
    expected = hint_loss(regressed, hint).item()
    assert hint_loss(hint, regressed).item() == pytest.approx(expected, rel=1e-12)
    assert hint_loss(regressed + 5, hint + 5).item() == pytest.approx(expected, rel=1e-12)


def test_exit_loss_equals_the_loop_over_exits() -> None:
    exits, teacher = [draw(6, 4, seed=seed) for seed in (1, 2, 3)], draw(6, 4)
    expected = sum(loop_kd(logits, teacher, 2.5) for logits in exits) / 3
    assert exit_loss(exits, teacher, 2.5).item() == pytest.approx(expected, rel=1e-12)
    assert exit_loss(exits[::-1], teacher, 2.5).item() == pytest.approx(expected, rel=1e-12)


def test_exit_loss_by_hand() -> None:
    # T = 2, teacher exit (2 ln 3, 0) -> (3/4, 1/4). First exit (0, 0): 0.523248 as in kd_loss. Second: equal, 0.
    teacher = torch.tensor([[2 * LN3, 0.0]])
    assert exit_loss([torch.zeros(1, 2), teacher.clone()], teacher, 2.0).item() == pytest.approx(0.261624, abs=1e-6)


def test_exit_loss_sends_gradient_to_the_exits_and_none_to_the_teacher_exit() -> None:
    exits, teacher = [draw(6, 4, seed=seed).requires_grad_() for seed in (1, 2)], draw(6, 4).requires_grad_()
    exit_loss(exits, teacher, 2.0).backward()
    assert all(logits.grad is not None and logits.grad.abs().sum() > 0 for logits in exits)
    assert teacher.grad is None


def test_exit_loss_names_both_shapes_when_a_later_exit_differs() -> None:
    with pytest.raises(ValueError, match=r"\(6, 5\).*\(6, 4\)"):
        exit_loss([draw(6, 4, seed=1), draw(6, 5)], draw(6, 4), 2.0)


def test_exit_maps_a_feature_to_logits_by_the_mean_of_its_positive_part() -> None:
    exit_ = Exit(channels=2, classes=3).eval()
    torch.nn.init.ones_(exit_[4].weight)
    torch.nn.init.zeros_(exit_[4].bias)
    # Batch norm starts as division by sqrt(1 + 1e-5). Channel 1: (4, -4, 0, 0) -> positive part's mean 1;
    # channel 2: (-1, -1, -1, 5) -> 5/4. All weights 1: each logit is 2.25.
    feature = torch.tensor([[4.0, -4.0, 0.0, 0.0], [-1.0, -1.0, -1.0, 5.0]]).view(1, 2, 2, 2)
    assert torch.allclose(exit_(feature), torch.full((1, 3), 2.25), rtol=1e-4)


def test_exit_of_a_width_has_two_convolutions_that_quarter_the_map() -> None:
    exit_ = Exit(channels=3, classes=5, width=4)
    assert [tuple(p.shape) for p in exit_.parameters() if p.dim() > 1] == [(4, 3, 3, 3), (4, 4, 3, 3), (5, 4)]
    feature = torch.rand(2, 3, 8, 8)
    assert exit_(feature).shape == (2, 5)
    for layer in list(exit_)[:6]:
        feature = layer(feature)
    assert feature.shape == (2, 4, 2, 2)


@pytest.mark.parametrize("start", [1.0, 1.3, 6.0])
def test_temperature_update_equals_the_loop(start: float) -> None:
    logits = draw(7, 5, scale=3)
    confidence = sum(max(loop_softmax(row, start)) for row in logits.tolist()) / 7
    for limit in (confidence - 0.01, confidence + 0.01):
        temperature = Temperature(start)
        expected = start * 1.05 if confidence > limit else start
        assert temperature.update(logits, limit, 1.05).item() == pytest.approx(start, rel=1e-6)
        assert temperature.value.item() == pytest.approx(expected, rel=1e-6)


def test_temperature_update_by_hand() -> None:
    # Logits (ln 3, 0) and (0, 0) at T = 1: largest probabilities 3/4 and 1/2, mean 0.625: above 0.6 but not 0.65.
    logits = torch.tensor([[LN3, 0.0], [0.0, 0.0]])
    for limit, expected in ((0.6, 1.5), (0.65, 1.0)):
        temperature = Temperature(1.0)
        assert temperature.update(logits, limit, 1.5).item() == 1.0
        assert temperature.value.item() == pytest.approx(expected)


def test_temperature_rises_until_the_softened_teacher_is_not_too_confident_and_stays() -> None:
    temperature, logits = Temperature(1.0), draw(7, 5, scale=6).requires_grad_()
    values = [temperature.update(logits, 0.5, 1.1).item() for _ in range(60)]
    assert values == sorted(values) and values[0] == 1 < values[1] and values[-1] == values[-2]
    confidence = (logits / values[-1]).softmax(dim=1).amax(dim=1).mean().item()
    before = (logits / (values[-1] / 1.1)).softmax(dim=1).amax(dim=1).mean().item()
    assert confidence <= 0.5 < before


def test_temperature_is_a_constant_that_is_saved_and_its_value_is_not_overwritten_later() -> None:
    temperature, logits = Temperature(1.0), draw(7, 5, scale=6).requires_grad_()
    first = temperature.update(logits, 0.1, 2.0)
    assert temperature.update(logits, 0.1, 2.0).item() == 2.0
    assert first.item() == 1.0 and not first.requires_grad
    assert not list(temperature.parameters()) and temperature.state_dict()["value"].item() == 4.0


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.6, 0.9])
def test_select_confident_equals_the_loop(threshold: float, balance: bool) -> None:
    probabilities = draw(60, 4, scale=1.5).softmax(dim=1)
    chosen = select_confident(probabilities, threshold, balance)
    assert chosen.tolist() == loop_selection(probabilities, threshold, balance)
    assert select_confident(probabilities.float(), threshold, balance).tolist() == chosen.tolist()


def test_select_confident_by_hand() -> None:
    probabilities = torch.tensor(
        [
            [0.9, 0.05, 0.05],  # 0: class 0
            [0.1, 0.8, 0.1],  # 1: class 1
            [0.7, 0.2, 0.1],  # 2: class 0
            [0.3, 0.3, 0.4],  # 3: class 2, below the threshold
            [0.95, 0.03, 0.02],  # 4: class 0
            [0.2, 0.6, 0.2],  # 5: class 1
            [0.85, 0.1, 0.05],  # 6: class 0
        ]
    )
    # By confidence, at least 0.5: 4 (.95), 0 (.9), 6 (.85), 1 (.8), 2 (.7), 5 (.6).
    assert select_confident(probabilities, 0.5, balance=False).tolist() == [4, 0, 6, 1, 2, 5]
    # Six over three classes: two each. Class 0: 4, 0; class 1: 1, 5; class 2 has none.
    assert select_confident(probabilities, 0.5, balance=True).tolist() == [4, 0, 1, 5]
    # At 0.65 there are 4, 0, 6, 1, 2: round(5 / 3) = 2 each; class 1 has one, which is repeated.
    assert select_confident(probabilities, 0.65, balance=True).tolist() == [4, 0, 1, 1]


def test_select_confident_balanced_gives_every_class_that_has_any_the_same_number() -> None:
    probabilities = draw(200, 5, scale=1.5)
    probabilities[:, 0] += 3
    probabilities[:, 4] = -50
    chosen = select_confident(probabilities.softmax(dim=1), 0.3, balance=True)
    counts = probabilities[chosen].argmax(dim=1).bincount(minlength=5).tolist()
    assert counts[0] == counts[1] == counts[2] == counts[3] > 1 and counts[4] == 0


@pytest.mark.parametrize("balance", [False, True])
def test_select_confident_may_select_nothing(balance: bool) -> None:
    assert select_confident(torch.full((6, 4), 0.25), 0.3, balance).tolist() == []


def test_at_depth_by_hand() -> None:
    # Four stages: 0.5 * 3 = 1.5, which Python rounds to the even 2; 0.4 * 3 = 1.2 -> 1.
    assert [at_depth(4, depth) for depth in (0.0, 0.4, 0.5, 1.0)] == [0, 1, 2, 3]
    assert at_depth(1, 0.0) == at_depth(1, 1.0) == 0


@pytest.mark.parametrize("depth", [-0.1, 1.1, math.nan])
def test_at_depth_refuses_a_depth_outside_the_network(depth: float) -> None:
    with pytest.raises(ValueError, match=f"between 0 and 1, but got depth={depth}"):
        at_depth(4, depth)
