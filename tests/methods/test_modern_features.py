"""Modern losses of pooled features and of maps: slow loops in float64, values by hand, invariances, bad shapes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from kdbench.methods import cc, ickd, nst, pkt, rkd
from tests.methods.losses import Case, draw, loop_pool, loop_unit, refuses
from tests.methods.modern import gradient, mean


def huber(first: float, second: float) -> float:
    apart = abs(first - second)
    return apart**2 / 2 if apart < 1 else apart - 0.5


def dot(first: list[float], second: list[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def loop_distances(vectors: Tensor) -> list[list[float]]:
    rows = vectors.tolist()
    apart = [[math.dist(a, b) for b in rows] for a in rows]
    average = mean([apart[i][j] for i, j in itertools.permutations(range(len(rows)), 2)])
    return [[value / average for value in row] for row in apart]


def loop_distance(student: Tensor, teacher: Tensor) -> float:
    pairs = zip(loop_distances(student), loop_distances(teacher), strict=True)
    return mean([huber(a, b) for s, t in pairs for a, b in zip(s, t, strict=True)])


def loop_angles(vectors: Tensor) -> list[float]:
    rows, angles = vectors.tolist(), []
    for i, j, k in itertools.product(range(len(rows)), repeat=3):
        first, second = ([b - a for a, b in zip(rows[i], rows[other], strict=True)] for other in (j, k))
        norms = math.hypot(*first) * math.hypot(*second)
        angles.append(dot(first, second) / norms if norms else 0.0)
    return angles


def loop_angle(student: Tensor, teacher: Tensor) -> float:
    return mean([huber(a, b) for a, b in zip(loop_angles(student), loop_angles(teacher), strict=True)])


def loop_neighbours(vectors: Tensor) -> list[list[float]]:
    rows = [[x / (math.hypot(*row) + 1e-7) for x in row] for row in vectors.tolist()]
    alike = [[(dot(a, b) + 1) / 2 for b in rows] for a in rows]
    return [[value / sum(row) for value in row] for row in alike]


def loop_pkt(student: Tensor, teacher: Tensor) -> float:
    pairs = zip(loop_neighbours(student), loop_neighbours(teacher), strict=True)
    return mean([t * math.log((t + 1e-7) / (s + 1e-7)) for m, n in pairs for s, t in zip(m, n, strict=True)])


def loop_congruence(student: Tensor, teacher: Tensor) -> float:
    apart = [
        [abs(a - b) for a, b in zip(s, t, strict=True)] for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    return mean([dot(a, b) for a, b in itertools.pairwise(apart)])


def loop_kernel(student: Tensor, teacher: Tensor) -> float:
    kernels = []
    for vectors in (student, teacher):
        rows = [loop_unit(row) for row in vectors.tolist()]
        kernels.append([math.exp(-0.8) * (1 + 0.8 * dot(a, b) + 0.32 * dot(a, b) ** 2) for a in rows for b in rows])
    return mean([(a - b) ** 2 for a, b in zip(*kernels, strict=True)])


def loop_nst(student: Tensor, teacher: Tensor) -> float:
    height, width = (min(student.shape[dim], teacher.shape[dim]) for dim in (2, 3))
    both = [
        [[loop_unit(channel) for channel in image] for image in loop_pool(each, height, width).flatten(2).tolist()]
        for each in (student, teacher)
    ]
    total = 0.0
    for s, t in zip(*both, strict=True):
        for sign, first, second in ((1, t, t), (1, s, s), (-2, s, t)):
            total += sign * mean([dot(a, b) ** 2 for a in first for b in second])
    return total / len(student)


def loop_channels(feature: Tensor) -> list[list[list[float]]]:
    images = feature.flatten(2).tolist()
    return [[loop_unit([dot(a, b) for b in image]) for a in image] for image in images]


def loop_ickd(student: Tensor, teacher: Tensor) -> float:
    mine, theirs = (list(itertools.chain(*itertools.chain(*loop_channels(each)))) for each in (student, teacher))
    squares = sum((a - b) ** 2 for a, b in zip(mine, theirs, strict=True))
    return squares / (student.shape[0] * student.shape[1])


MAPS = (5, 3, 2, 3)
CASES: dict[str, Case] = {
    "distance": Case(rkd.distance_loss, loop_distance, (5, 3), (5, 7)),
    "angle": Case(rkd.angle_loss, loop_angle, (5, 3), (5, 7)),
    "pkt": Case(pkt.pkt_loss, loop_pkt, (5, 3), (5, 7)),
    "congruence": Case(cc.congruence_loss, loop_congruence, (5, 3), (5, 3)),
    "kernel": Case(cc.kernel_congruence_loss, loop_kernel, (5, 3), (5, 7)),
    "nst": Case(nst.nst_loss, loop_nst, MAPS, (5, 4, 2, 3)),
    "nst_larger_teacher": Case(nst.nst_loss, loop_nst, MAPS, (5, 4, 5, 6)),
    "nst_larger_student": Case(nst.nst_loss, loop_nst, (5, 3, 4, 4), (5, 3, 2, 2)),
    "ickd": Case(ickd.channel_correlation_loss, loop_ickd, MAPS, MAPS),
    "ickd_other_size": Case(ickd.channel_correlation_loss, loop_ickd, MAPS, (5, 3, 4, 4)),
}
RELATIONS = ["distance", "angle", "pkt", "kernel"]
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_case
def test_loss_equals_the_loop_and_is_right_in_float32(case: Case) -> None:
    single = case.loss(case.student.float(), case.teacher.float())
    assert case.value.item() == pytest.approx(case.loop(case.student, case.teacher), rel=1e-9)
    assert (case.value.dtype, single.dtype) == (torch.float64, torch.float32)
    assert case.value.shape == single.shape == ()
    assert single.item() == pytest.approx(case.value.item(), rel=1e-3)


@every_case
def test_gradient_in_the_student_passes_gradcheck(case: Case) -> None:
    assert torch.autograd.gradcheck(lambda s: case.loss(s, case.teacher), (case.student.requires_grad_(),))


@every_case
def test_loss_is_zero_for_equal_features_and_finite_wherever_they_lie(case: Case) -> None:
    assert case.loss(case.student, case.student).item() == pytest.approx(0, abs=1e-12)
    assert abs(case.value.item()) > 1e-5
    same = case.student[:1].expand_as(case.student)
    for point in (case.student, torch.zeros_like(case.student), same, 1e4 * case.student, case.student[:1]):
        assert case.loss(point, case.teacher[: len(point)]).isfinite()
        assert gradient(lambda s: case.loss(s, case.teacher[: len(s)]), point).isfinite().all()


@pytest.mark.parametrize("name", [name for name in CASES if name != "congruence"])
def test_images_may_come_in_any_order(name: str) -> None:
    case, order = CASES[name], torch.tensor([3, 0, 4, 1, 2])
    assert case.loss(case.student[order], case.teacher[order]).item() == pytest.approx(case.value.item(), rel=1e-10)
    assert case.loss(case.student[order], case.teacher).item() != pytest.approx(case.value.item(), rel=1e-4)


@every_case
def test_batches_that_differ_are_named(case: Case) -> None:
    other = (1, *case.teacher_shape[1:])
    refuses(lambda: case.loss(case.student, draw(*other)), case.student_shape, other)


@pytest.mark.parametrize("name", RELATIONS)
def test_relations_do_not_depend_on_a_rotation_or_the_scale_of_the_space(name: str) -> None:
    case = CASES[name]
    rotation = torch.linalg.qr(draw(3, 3, seed=5)).Q
    turned = case.loss(3 * case.student @ rotation, case.teacher / 2)
    assert turned.item() == pytest.approx(case.value.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["distance", "angle"])
def test_distances_and_angles_do_not_depend_on_where_features_lie(name: str) -> None:
    case = CASES[name]
    moved = case.loss(case.student + draw(1, 3, seed=6), case.teacher - 1)
    assert moved.item() == pytest.approx(case.value.item(), rel=1e-8)


def test_distances_and_angles_by_hand() -> None:
    # Student at 0, 1, 3 on a line: distances 1, 3, 2, mean 2. Teacher at 0, 1, 2: 1, 2, 1, mean 4/3. Over their means
    # 0.5, 1.5, 1 and 0.75, 1.5, 0.75: Huber 1/32, 0, 1/32, each twice, over 9: 1/72.
    student, teacher = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    assert rkd.distance_loss(student, teacher).item() == pytest.approx(1 / 72, rel=1e-5)
    assert rkd.angle_loss(student, teacher).item() == pytest.approx(0, abs=1e-7)
    # A right angle at the first image, of 45 degrees at the others, against a line with the first in the middle:
    # cosines 0, r, r (r = 0.707107) against -1, 1, 1. Huber of 1: 0.5; of 0.292893: 0.042893. Each twice of 27.
    corner, line = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0], [1.0], [-1.0]])
    expected = 2 * (0.5 + 2 * 0.042893) / 27
    assert rkd.angle_loss(corner, line).item() == pytest.approx(expected, rel=1e-4)


def test_angles_in_parts_are_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    case, at_once = CASES["angle"], CASES["angle"].value.item()
    whole = gradient(lambda s: case.loss(s, case.teacher), case.student)
    for numbers in (1, 80):
        monkeypatch.setattr(rkd, "AT_ONCE", numbers)
        assert case.value.item() == pytest.approx(at_once, rel=1e-12)
        parts = gradient(lambda s: case.loss(s, case.teacher), case.student)
        assert torch.allclose(parts, whole, rtol=1e-9, atol=1e-15)


def test_pkt_by_hand() -> None:
    # Student at 60 degrees: (1, 3/4) / 1.75 = (4/7, 3/7). Teacher at right angles: (1, 1/2) / 1.5 = (2/3, 1/3).
    # Each row 2/3 ln(7/6) + 1/3 ln(7/9) = 0.018996, two rows over four entries: 0.009498.
    student, teacher = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    assert pkt.pkt_loss(student, teacher).item() == pytest.approx(0.009498, abs=1e-6)


def test_congruence_by_hand() -> None:
    # Differences (1, 2), (3, 0), (1, 1): products 3 and 3, mean 3.
    student = torch.tensor([[1.0, -2.0], [3.0, 0.0], [-1.0, 1.0]])
    assert cc.congruence_loss(student, torch.zeros(3, 2)).item() == pytest.approx(3)
    assert cc.congruence_loss(student[:1], torch.zeros(1, 2)).item() == 0
    refuses(lambda: cc.congruence_loss(student, torch.zeros(3, 1)), (3, 2), (3, 1))
    # Kernels: equal directions e^-0.8 (1 + 0.8 + 0.32), right angles e^-0.8: squares of the difference at two of four.
    apart = (math.exp(-0.8) * 1.12) ** 2 / 2
    assert cc.kernel_congruence_loss(torch.ones(2, 1), torch.eye(2)).item() == pytest.approx(apart, rel=1e-5)


def test_nst_by_hand_and_its_invariances() -> None:
    # One channel at position 1, the teacher's at both: 1 + 1 - 2 (1 / sqrt 2)^2 = 1.
    student, teacher = torch.tensor([[[[5.0, 0.0]]]]), torch.tensor([[[[1.0, 1.0]]]])
    assert nst.nst_loss(student, teacher).item() == pytest.approx(1.0, rel=1e-6)
    case = CASES["nst"]
    scaled = case.loss(-2 * case.student[:, [2, 0, 1]], case.teacher * draw(1, 4, 1, 1, seed=3))
    assert scaled.item() == pytest.approx(case.value.item(), rel=1e-9)


def test_ickd_by_hand_and_its_invariances() -> None:
    # Two channels at one position, (3, 4): both rows (0.6, 0.8). The teacher's (1, 0): rows (1, 0) and, of zeros, none.
    # Squares 0.16 + 0.64 and 0.36 + 0.64, sum 1.8, over two channels 0.9.
    student, teacher = torch.tensor([[[[3.0]], [[4.0]]]]), torch.tensor([[[[1.0]], [[0.0]]]])
    assert ickd.channel_correlation_loss(student, teacher).item() == pytest.approx(0.9)
    case = CASES["ickd"]
    moved = case.loss(2 * case.student.flip(3), -case.teacher)
    assert moved.item() == pytest.approx(case.value.item(), rel=1e-9)
    refuses(lambda: ickd.channel_correlation_loss(student, teacher[:, :1]), (1, 2, 2), (1, 1, 1))
