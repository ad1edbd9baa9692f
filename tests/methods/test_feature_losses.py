"""Losses of feature maps and input gradients: slow loops in float64, values worked by hand, properties, bad shapes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdbench.methods.at import attention_loss, attention_map
from kdbench.methods.at_grad import symmetry_loss
from kdbench.methods.fsp import fsp_loss, fsp_matrix
from kdbench.methods.vid import variational_loss
from tests.methods.losses import Case, Shape, draw, has_finite_gradient, loop_pool, loop_unit, refuses

VARIANCE = torch.tensor([0.5, 1.5, 3.0], dtype=torch.float64)


def loop_map(feature: Tensor, p: float, form: str) -> list[list[float]]:
    maps = []
    for image in feature.flatten(2).tolist():
        powers = [[abs(value) ** p for value in position] for position in zip(*image, strict=True)]
        maps.append(loop_unit([max(values) if form == "max" else sum(values) for values in powers]))
    return maps


def loop_attention(student: Tensor, teacher: Tensor, p: float, form: str, normalisation: str) -> float:
    height, width = (min(student.shape[dim], teacher.shape[dim]) for dim in (2, 3))
    mine, theirs = (loop_map(loop_pool(feature, height, width), p, form) for feature in (student, teacher))
    squares = [[(a - b) ** 2 for a, b in zip(s, t, strict=True)] for s, t in zip(mine, theirs, strict=True)]
    if normalisation == "paper":
        return sum(math.sqrt(sum(row)) / 2 for row in squares) / len(student)
    return sum(sum(row) for row in squares) / (len(student) * height * width)


def loop_symmetry(grad: Tensor, mirrored: Tensor) -> float:
    return math.dist(grad.flatten().tolist(), mirrored.flatten().tolist()) ** 2 / 2 / len(grad)


def loop_variational(mean: Tensor, teacher: Tensor) -> float:
    total = 0.0
    for mean_image, teacher_image in zip(mean.flatten(2).tolist(), teacher.flatten(2).tolist(), strict=True):
        for variance, means, targets in zip(VARIANCE.tolist(), mean_image, teacher_image, strict=True):
            total += sum((t - m) ** 2 / variance + math.log(variance) for m, t in zip(means, targets, strict=True))
    return total / 2 / mean.numel()


def loop_fsp(first: Tensor, second: Tensor, pool: str) -> list[list[list[float]]]:
    height, width = (min(first.shape[dim], second.shape[dim]) for dim in (2, 3))
    images = (loop_pool(feature, height, width, pool).flatten(2).tolist() for feature in (first, second))
    return [
        [[sum(x * y for x, y in zip(a, b, strict=True)) / (height * width) for b in seconds] for a in firsts]
        for firsts, seconds in zip(*images, strict=True)
    ]


def pair(features: Tensor) -> tuple[Tensor, Tensor]:
    """Channels 0 to 1 as they are, and channels 2 to 4 pooled to half the size."""
    return features[:, :2], torch.nn.functional.avg_pool2d(features[:, 2:], 2)


def loop_fsp_loss(student: Tensor, teacher: Tensor, pool: str) -> float:
    mine, theirs = (loop_fsp(*pair(features), pool) for features in (student, teacher))
    rows = [(s, t) for ours, other in zip(mine, theirs, strict=True) for s, t in zip(ours, other, strict=True)]
    squares = [(a - b) ** 2 for s, t in rows for a, b in zip(s, t, strict=True)]
    return sum(squares) / len(squares)


def attention(p: float, form: str, normalisation: str, student_shape: Shape, teacher_shape: Shape) -> Case:
    return Case(
        lambda s, t: attention_loss(s, t, p=p, form=form, normalisation=normalisation),
        lambda s, t: loop_attention(s, t, p, form, normalisation),
        student_shape,
        teacher_shape,
    )


CASES: dict[str, Case] = {
    "attention": attention(2, "sum", "code", (5, 3, 2, 3), (5, 3, 2, 3)),
    "attention_paper": attention(2, "sum", "paper", (5, 3, 2, 3), (5, 7, 2, 3)),
    "attention_max": attention(2, "max", "code", (5, 3, 2, 3), (5, 7, 2, 3)),
    "attention_max_paper": attention(4, "max", "paper", (5, 3, 2, 3), (5, 7, 2, 3)),
    "attention_first_power": attention(1, "sum", "code", (5, 3, 2, 3), (5, 7, 2, 3)),
    "attention_third_power": attention(3, "sum", "paper", (5, 3, 2, 3), (5, 7, 2, 3)),
    "attention_larger_student": attention(2, "sum", "code", (5, 3, 4, 4), (5, 2, 2, 2)),
    "attention_larger_teacher": attention(2, "sum", "paper", (5, 3, 2, 3), (5, 2, 5, 6)),
    "attention_wide_and_high": attention(2, "max", "code", (5, 3, 2, 5), (5, 2, 4, 3)),
    "symmetry": Case(symmetry_loss, loop_symmetry, (5, 3, 2, 4), (5, 3, 2, 4)),
    "variational": Case(
        lambda s, t: variational_loss(s, VARIANCE.to(s), t), loop_variational, (5, 3, 2, 4), (5, 3, 2, 4), zero=False
    ),
    "variational_of_vectors": Case(
        lambda s, t: variational_loss(s, VARIANCE.to(s), t),
        lambda s, t: loop_variational(s[..., None], t[..., None]),
        (5, 3),
        (5, 3),
        zero=False,
    ),
    "fsp": Case(
        lambda s, t: fsp_loss(pair(s), pair(t)), lambda s, t: loop_fsp_loss(s, t, "avg"), (5, 5, 4, 4), (5, 5, 4, 4)
    ),
    "fsp_max": Case(
        lambda s, t: fsp_loss(pair(s), pair(t), pool="max"),
        lambda s, t: loop_fsp_loss(s, t, "max"),
        (5, 5, 4, 4),
        (5, 5, 2, 6),
    ),
}

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_case
def test_feature_loss_equals_the_loop(case: Case) -> None:
    assert case.value.item() == pytest.approx(case.loop(case.student, case.teacher), rel=1e-10)


@every_case
def test_feature_loss_is_a_scalar_of_the_inputs_type_and_right_in_float32(case: Case) -> None:
    single = case.loss(case.student.float(), case.teacher.float())
    assert (case.value.dtype, single.dtype) == (torch.float64, torch.float32)
    assert case.value.shape == single.shape == ()
    assert single.item() == pytest.approx(case.value.item(), rel=1e-5)


@every_case
def test_feature_loss_gradient_in_the_student_passes_gradcheck(case: Case) -> None:
    assert torch.autograd.gradcheck(lambda s: case.loss(s, case.teacher), (case.student.requires_grad_(),))


@every_case
def test_feature_loss_is_zero_for_equal_inputs_with_a_finite_gradient(case: Case) -> None:
    if case.zero:
        assert case.loss(case.student, case.student).item() == pytest.approx(0, abs=1e-14)
    assert case.value.item() > 1e-3
    assert has_finite_gradient(lambda s: case.loss(s, case.student), case.student, torch.zeros_like(case.student))


@every_case
def test_feature_loss_does_not_depend_on_the_order_of_the_batch(case: Case) -> None:
    order = torch.tensor([3, 0, 4, 1, 2])
    value = case.value.item()
    assert case.loss(case.student[order], case.teacher[order]).item() == pytest.approx(value, rel=1e-12)
    assert case.loss(case.student[order], case.teacher).item() != pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("fsp")])
def test_feature_loss_names_both_shapes_when_the_batches_differ(name: str) -> None:
    case, other = CASES[name], (1, *CASES[name].teacher_shape[1:])  # one image would broadcast
    refuses(lambda: case.loss(case.student, draw(*other)), case.student_shape, other)


@pytest.mark.parametrize("name", ["symmetry", "variational", "variational_of_vectors"])
def test_feature_loss_names_both_shapes_when_the_channels_differ(name: str) -> None:
    case, other = CASES[name], (5, 1, *CASES[name].teacher_shape[2:])
    refuses(lambda: case.loss(case.student, draw(*other)), case.student_shape, other)


@pytest.mark.parametrize("form", ["sum", "max"])
@pytest.mark.parametrize("p", [1, 2, 4])
def test_attention_map_equals_the_loop_in_rows_of_norm_one(p: int, form: str) -> None:
    attention = attention_map(draw(5, 3, 2, 4), p=p, form=form)
    assert attention.shape == (5, 8)
    assert torch.allclose(attention, attention.new_tensor(loop_map(draw(5, 3, 2, 4), p, form)), rtol=1e-10, atol=0)
    assert torch.allclose(attention.norm(dim=1), attention.new_ones(5), rtol=1e-12)


def test_attention_by_hand() -> None:
    # Two channels at two positions: (1, 4) and (-2, 0). p = 1: the sums are 3 and 4, norm 5: (0.6, 0.8); the maxima
    # are 2 and 4, norm sqrt 20: (0.447214, 0.894427). p = 2, by default: 5 and 16, norm sqrt 281: (0.298275, 0.954480).
    student = torch.tensor([[[[1.0, 4.0]], [[-2.0, 0.0]]]])
    assert attention_map(student, p=1)[0].tolist() == pytest.approx([0.6, 0.8])
    assert attention_map(student, p=1, form="max")[0].tolist() == pytest.approx([0.447214, 0.894427], abs=1e-6)
    assert attention_map(student)[0].tolist() == pytest.approx([0.298275, 0.954480], abs=1e-6)
    # Teacher (5, 0) -> (1, 0). Differences -0.4 and 0.8: squares 0.16 + 0.64 = 0.8; mean over two positions 0.4;
    # half the norm sqrt(0.8) / 2 = 0.447214.
    teacher = torch.tensor([[[[5.0, 0.0]]]])
    assert attention_loss(student, teacher, p=1).item() == pytest.approx(0.4)
    assert attention_loss(student, teacher, p=1, normalisation="paper").item() == pytest.approx(0.447214, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("attention")])
def test_attention_loss_ignores_scale_sign_and_order_of_channels_and_is_symmetric(name: str) -> None:
    case = CASES[name]
    value = case.value.item()
    assert case.loss(-7 * case.student, case.teacher / 3).item() == pytest.approx(value, rel=1e-10)
    assert case.loss(case.student[:, [2, 0, 1]], case.teacher).item() == pytest.approx(value, rel=1e-10)
    assert case.loss(case.teacher, case.student).item() == pytest.approx(value, rel=1e-10)


def test_full_activations_by_hand() -> None:
    # All four activations of the student, (3, 0, 0, 4), have norm 5: (0.6, 0, 0, 0.8); the teacher's are (1, 0, 0, 0).
    # Squares of the differences: 0.16 + 0.64 = 0.8, over two positions 0.4; half the norm is sqrt(0.8) / 2.
    student = torch.tensor([[[[3.0, 0.0]], [[0.0, 4.0]]]])
    teacher = torch.tensor([[[[7.0, 0.0]], [[0.0, 0.0]]]])
    assert attention_map(student, form="full")[0].tolist() == pytest.approx([0.6, 0.0, 0.0, 0.8])
    assert attention_loss(student, teacher, form="full").item() == pytest.approx(0.4)
    assert attention_loss(student, teacher, form="full", normalisation="paper").item() == pytest.approx(
        0.447214, abs=1e-6
    )
    refuses(lambda: attention_loss(student, teacher[:, :1], form="full"), (1, 2, 1, 2), (1, 1, 1, 2))


def test_attention_refuses_an_unknown_form_or_normalisation() -> None:
    feature = draw(5, 3, 2, 2)
    with pytest.raises(ValueError, match="median"):
        attention_map(feature, form="median")
    with pytest.raises(ValueError, match="median"):
        attention_loss(feature, feature, form="median")
    with pytest.raises(ValueError, match="median"):
        attention_loss(feature, feature, normalisation="median")


def test_symmetry_loss_by_hand() -> None:
    # First image: difference (3, 4), half of 9 + 16 = 12.5. Second: (1, 0), half of 1 = 0.5. Mean: 6.5.
    grad = torch.tensor([[3.0, 5.0], [2.0, 2.0]]).view(2, 1, 1, 2)
    mirrored = torch.tensor([[0.0, 1.0], [1.0, 2.0]]).view(2, 1, 1, 2)
    assert symmetry_loss(grad, mirrored).item() == pytest.approx(6.5)


def test_symmetry_loss_is_symmetric_and_grows_with_the_square() -> None:
    case = CASES["symmetry"]
    assert case.loss(case.teacher, case.student).item() == pytest.approx(case.value.item(), rel=1e-12)
    assert case.loss(3 * case.student, 3 * case.teacher).item() == pytest.approx(9 * case.value.item(), rel=1e-12)


def test_variational_loss_by_hand() -> None:
    # Channel 1, variance 4: (3 - 1)^2 / 4 + ln 4 = 2.386294. Channel 2, variance 1: (0 - 3)^2 + ln 1 = 9.
    # Mean 5.693147, half 2.846574.
    mean, teacher = torch.tensor([[[[1.0]], [[3.0]]]]), torch.tensor([[[[3.0]], [[0.0]]]])
    assert variational_loss(mean, torch.tensor([4.0, 1.0]), teacher).item() == pytest.approx(2.846574, abs=1e-6)


def test_variational_loss_is_least_at_the_teachers_feature_and_the_variance_of_the_error() -> None:
    mean, teacher = draw(5, 3, 2, 4), draw(5, 3, 2, 4, seed=1)
    assert variational_loss(teacher, VARIANCE, teacher) < variational_loss(mean, VARIANCE, teacher)
    errors = (mean - teacher).square().mean(dim=(0, 2, 3)).requires_grad_()
    (gradient,) = torch.autograd.grad(variational_loss(mean, errors, teacher), errors)
    assert torch.allclose(gradient, torch.zeros_like(gradient), atol=1e-14)


def test_variational_loss_gradient_in_the_variance_passes_gradcheck() -> None:
    mean, teacher, variance = draw(5, 3, 2, 4), draw(5, 3, 2, 4, seed=1), VARIANCE.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: variational_loss(mean, v, teacher), (variance,))


@pytest.mark.parametrize("channels", [1, 4])
def test_variational_loss_names_both_shapes_when_the_variance_is_not_of_each_channel(channels: int) -> None:
    mean, variance = draw(5, 3, 2, 4), torch.ones(channels, dtype=torch.float64)
    refuses(lambda: variational_loss(mean, variance, mean), (channels,), (5, 3, 2, 4))


@pytest.mark.parametrize("pool", ["avg", "max"])
@pytest.mark.parametrize("second", [(5, 4, 6, 4), (5, 4, 3, 2), (5, 4, 4, 3), (5, 4, 9, 8)], ids=str)
def test_fsp_matrix_equals_the_loop(second: Shape, pool: str) -> None:
    matrix = fsp_matrix(draw(5, 3, 6, 4), draw(*second, seed=1), pool=pool)
    expected = matrix.new_tensor(loop_fsp(draw(5, 3, 6, 4), draw(*second, seed=1), pool))
    assert matrix.shape == (5, 3, 4) and torch.allclose(matrix, expected, rtol=1e-10, atol=1e-13)


def test_fsp_by_hand() -> None:
    # One channel (1, 2) with channels (3, 4) and (0, 1): 3 + 8 = 11 and 0 + 2 = 2, over two positions: 5.5 and 1.
    # Against the teacher's 3.5 and 0: squares 4 and 1, mean 2.5.
    first, second = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0, 4.0]], [[0.0, 1.0]]]])
    assert fsp_matrix(first, second).tolist() == [[[5.5, 1.0]]]
    teacher = torch.ones(1, 1, 1, 1), torch.tensor([[[[3.5]], [[0.0]]]])
    assert fsp_loss((first, second), teacher).item() == pytest.approx(2.5)


def test_fsp_matrix_is_bilinear_turns_with_its_arguments_and_ignores_the_order_of_positions() -> None:
    first, second = draw(5, 3, 2, 4), draw(5, 4, 2, 4, seed=1)
    matrix = fsp_matrix(first, second)
    assert torch.allclose(fsp_matrix(2 * first, -3 * second), -6 * matrix, rtol=1e-12)
    assert torch.allclose(fsp_matrix(second, first), matrix.transpose(1, 2), rtol=1e-12)
    assert torch.allclose(fsp_matrix(first.flip(3), second.flip(3)), matrix, rtol=1e-10)


def test_fsp_refuses_unequal_batches_channels_and_an_unknown_pool() -> None:
    first, second = draw(5, 3, 2, 4), draw(5, 4, 2, 4)
    refuses(lambda: fsp_matrix(first, draw(1, 4, 2, 4)), (5, 3, 2, 4), (1, 4, 2, 4))
    refuses(lambda: fsp_loss((first, second), (first, first)), (5, 3, 4), (5, 3, 3))
    refuses(lambda: fsp_loss((first, second), (first, second[:, :1])), (5, 3, 4), (5, 3, 1))
    refuses(lambda: fsp_loss((first, second), (first[:1], second[:1])), (5, 3, 4), (1, 3, 4))
    with pytest.raises(ValueError, match="median"):
        fsp_matrix(first, second, pool="median")
