"""Modern losses of logits: slow loops in float64, values by hand, zeros and bounds, invariances, logits far apart."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.methods import abkd, dist, dkd, logit_std, nkd, rld, tfkd, ttm, wsld
from kdbench.methods.base import Unsupported
from kdbench.methods.functional import kd_loss, target_or_not, warmed_up
from tests.methods.losses import LN3, Case, draw, loop_kd, refuses
from tests.methods.modern import (
    LABELS,
    extremes,
    gradient,
    loop_abkd,
    loop_dist,
    loop_dkd,
    loop_nkd,
    loop_rld,
    loop_standard,
    loop_ttm,
    loop_virtual,
    loop_wsld,
)


def standard(logits: Tensor) -> Tensor:
    return torch.tensor([loop_standard(row) for row in logits.tolist()], dtype=torch.float64)


CASES: dict[str, Case] = {
    "dkd": Case(
        lambda s, t: dkd.dkd_loss(s, t, LABELS, 4.0, 1.0, 8.0), lambda s, t: loop_dkd(s, t, LABELS, 4.0, 1.0, 8.0)
    ),
    "dkd_cold": Case(
        lambda s, t: dkd.dkd_loss(s, t, LABELS, 0.7, 2.0, 0.5), lambda s, t: loop_dkd(s, t, LABELS, 0.7, 2.0, 0.5)
    ),
    "logit_std": Case(
        lambda s, t: logit_std.standardised_kd_loss(s, t, 2.0), lambda s, t: loop_kd(standard(s), standard(t), 2.0)
    ),
    "dist": Case(lambda s, t: dist.dist_loss(s, t, 4.0, 1.0, 1.0), lambda s, t: loop_dist(s, t, 4.0, 1.0, 1.0)),
    "dist_cold": Case(lambda s, t: dist.dist_loss(s, t, 1.0, 2.0, 0.5), lambda s, t: loop_dist(s, t, 1.0, 2.0, 0.5)),
    "nkd": Case(
        lambda s, t: nkd.nkd_loss(s, t, LABELS, 1.0, 1.5), lambda s, t: loop_nkd(s, t, LABELS, 1.0, 1.5), zero=False
    ),
    "nkd_warm": Case(
        lambda s, t: nkd.nkd_loss(s, t, LABELS, 3.0, 3.5), lambda s, t: loop_nkd(s, t, LABELS, 3.0, 3.5), zero=False
    ),
    "ttm": Case(lambda s, t: ttm.ttm_loss(s, t, 0.1), lambda s, t: loop_ttm(s, t, 0.1, False), zero=False),
    "ttm_plain": Case(lambda s, t: ttm.ttm_loss(s, t, 1.0), lambda s, t: loop_kd(s, t, 1.0)),
    "wttm": Case(lambda s, t: ttm.weighted_ttm_loss(s, t, 0.2), lambda s, t: loop_ttm(s, t, 0.2, True), zero=False),
    "wttm_plain": Case(lambda s, t: ttm.weighted_ttm_loss(s, t, 1.0), lambda s, t: loop_kd(s, t, 1.0)),
    "wsld": Case(
        lambda s, t: wsld.wsld_loss(s, t, LABELS, 4.0, 2.25),
        lambda s, t: loop_wsld(s, t, LABELS, 4.0, 2.25),
        zero=False,
    ),
    "rld": Case(
        lambda s, t: rld.rld_loss(s, t, LABELS, 4.0, 1.0, 8.0),
        lambda s, t: loop_rld(s, t, LABELS, 4.0, 1.0, 8.0),
        zero=False,
    ),
    "abkd": Case(lambda s, t: abkd.abkd_loss(s, t, 4.0, 0.8, 0.3), lambda s, t: loop_abkd(s, t, 4.0, 0.8, 0.3)),
    "abkd_cold": Case(lambda s, t: abkd.abkd_loss(s, t, 1.0, 0.2, 1.2), lambda s, t: loop_abkd(s, t, 1.0, 0.2, 1.2)),
    "virtual": Case(
        lambda s, t: tfkd.virtual_teacher_loss(s, LABELS, 0.1, 20.0, 100.0, 0.99),
        lambda s, t: loop_virtual(s, LABELS, 0.1, 20.0, 100.0, 0.99),
        zero=False,
    ),
}
OF_LABELS = ["dkd", "nkd", "wsld", "rld", "virtual"]
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_case
def test_loss_equals_the_loop_and_is_right_in_float32(case: Case) -> None:
    single = case.loss(case.student.float(), case.teacher.float())
    assert case.value.item() == pytest.approx(case.loop(case.student, case.teacher), rel=1e-9)
    assert (case.value.dtype, single.dtype) == (torch.float64, torch.float32)
    assert case.value.shape == single.shape == ()
    assert single.item() == pytest.approx(case.value.item(), rel=1e-4)


@pytest.mark.parametrize("name", [name for name in CASES if name != "wsld"])
def test_gradient_in_the_student_passes_gradcheck(name: str) -> None:
    case = CASES[name]
    assert torch.autograd.gradcheck(lambda s: case.loss(s, case.teacher), (case.student.requires_grad_(),))


def test_wsld_has_the_gradient_of_its_soft_loss_at_fixed_weights() -> None:
    student, teacher = draw(5, 4), draw(5, 4, seed=1)
    weights = wsld.soft_label_weights(student, teacher, LABELS)
    assert ((weights > 0) & (weights <= 1)).all() and weights.std() > 0.1
    targets = (teacher / 4).softmax(dim=1)
    fixed = gradient(lambda s: 36 * (weights * F.cross_entropy(s / 4, targets, reduction="none")).mean(), student)
    assert torch.allclose(gradient(lambda s: wsld.wsld_loss(s, teacher, LABELS, 4.0, 2.25), student), fixed, rtol=1e-12)


@every_case
def test_loss_and_gradient_are_finite_for_logits_far_apart(case: Case) -> None:
    for one in extremes():
        for other in (draw(5, 4).to(one), *(each.to(one) for each in extremes())):
            for student, teacher in ((one, other), (other, one)):
                assert case.loss(student, teacher).isfinite()
                assert gradient(lambda s, t=teacher: case.loss(s, t), student).isfinite().all()  # type: ignore[misc]


@every_case
def test_equal_logits_give_zero_where_it_is_a_distance_and_more_otherwise(case: Case) -> None:
    equal = case.loss(case.student, case.student).item()
    assert abs(equal) < 1e-4 if case.zero else equal > 1e-3  # DIST adds 1e-8 to products of norms
    assert case.value.item() > 1e-3


@every_case
def test_images_and_shifts_of_logits_do_not_matter(case: Case) -> None:
    shifts = draw(5, 1, seed=7)
    shifted = case.loss(case.student + shifts, case.teacher - shifts)
    assert shifted.item() == pytest.approx(case.value.item(), rel=1e-9)


@pytest.mark.parametrize("name", OF_LABELS)
def test_rows_with_a_single_one_are_classes_and_mixed_or_missing_ones_are_refused(name: str) -> None:
    losses = {
        "dkd": lambda labels: dkd.dkd_loss(draw(5, 4), draw(5, 4, seed=1), labels, 4.0, 1.0, 8.0),
        "nkd": lambda labels: nkd.nkd_loss(draw(5, 4), draw(5, 4, seed=1), labels, 1.0, 1.5),
        "wsld": lambda labels: wsld.wsld_loss(draw(5, 4), draw(5, 4, seed=1), labels, 4.0, 2.25),
        "rld": lambda labels: rld.rld_loss(draw(5, 4), draw(5, 4, seed=1), labels, 4.0, 1.0, 8.0),
        "virtual": lambda labels: tfkd.virtual_teacher_loss(draw(5, 4), labels, 0.1, 20.0, 100.0, 0.99),
    }
    loss, rows = losses[name], F.one_hot(LABELS, 4).double()
    assert torch.equal(loss(rows), CASES[name].value)
    for bad in (0.9 * rows + 0.025, rows * torch.tensor([[1.0], [0], [1], [1], [1]]), rows + rows.flip(1)):
        with pytest.raises(Unsupported, match="mixed or missing"):
            loss(bad)
    refuses(lambda: loss(LABELS[:4]), (4,), (5, 4))


@pytest.mark.parametrize("name", [name for name in CASES if name != "virtual"])
def test_shapes_that_differ_are_named(name: str) -> None:
    for other in ((1, 4), (5, 1), (5, 3)):
        refuses(lambda other=other: CASES[name].loss(draw(5, 4), draw(*other)), (5, 4), other)  # type: ignore[misc]


def test_dkd_by_hand() -> None:
    # T = 1, label 0. Teacher (2/4, 1/4, 1/4), student (1/3, 1/3, 1/3). b: 1/2 ln(3/2) + 1/2 ln(3/4) = 0.058892;
    # q: both (1/2, 1/2), 0. Student (1/2, 3/8, 1/8): b equal, q = (3/4, 1/4): 1/2 ln(2/3) + 1/2 ln 2 = 0.143841.
    labels = torch.tensor([0])
    teacher = torch.tensor([[2.0, 1.0, 1.0]]).log()
    assert dkd.dkd_loss(torch.zeros(1, 3), teacher, labels, 1.0, 1.0, 8.0).item() == pytest.approx(0.058892, abs=1e-6)
    student = torch.tensor([[4.0, 3.0, 1.0]]).log()
    assert dkd.dkd_loss(student, teacher, labels, 1.0, 1.0, 8.0).item() == pytest.approx(8 * 0.143841, abs=1e-5)
    at_two = dkd.dkd_loss(2 * student, 2 * teacher, labels, 2.0, 1.0, 8.0).item()
    assert at_two == pytest.approx(4 * 8 * 0.143841, abs=1e-5)


def test_dkd_with_the_teachers_doubt_as_beta_is_kd() -> None:
    # Equation 6: KL = KL(b_t || b_s) + (1 - p_y of the teacher) KL(q_t || q_s), image by image.
    student, teacher = draw(5, 4), draw(5, 4, seed=1)
    total = 0.0
    for i, y in enumerate(LABELS.tolist()):
        doubt = 1 - (teacher[i] / 3).softmax(dim=0)[y].item()
        pair = student[i : i + 1], teacher[i : i + 1], LABELS[i : i + 1]
        total += dkd.dkd_loss(*pair, 3.0, 1.0, doubt).item() / 5
    assert total == pytest.approx(kd_loss(student, teacher, 3.0).item(), rel=1e-12)


def test_dkd_of_two_classes_is_its_target_alone_and_of_one_is_refused() -> None:
    student, teacher, labels = draw(5, 2), draw(5, 2, seed=1), LABELS % 2
    assert dkd.others_loss(student, teacher, labels, 4.0).item() == 0
    assert not gradient(lambda s: dkd.others_loss(s, teacher, labels, 4.0), student).any()
    value = dkd.dkd_loss(student, teacher, labels, 4.0, 1.0, 8.0).item()
    assert value == pytest.approx(kd_loss(student, teacher, 4.0).item(), rel=1e-12)
    refuses(lambda: dkd.dkd_loss(draw(5, 1), draw(5, 1), labels, 4.0, 1.0, 8.0), (5, 1))


def test_a_class_against_all_others_is_exact_next_to_one() -> None:
    log_b = target_or_not(torch.tensor([[200.0, 0.0, 0.0]], dtype=torch.float64), torch.tensor([0]))[0].tolist()
    assert log_b == pytest.approx([-2 * math.exp(-200), math.log(2) - 200], rel=1e-12)


def test_logit_standardisation_by_hand_and_its_invariances() -> None:
    # (2, 0) has mean 1 and, with K - 1, deviation sqrt 2: (1/sqrt 2, -1/sqrt 2); T = sqrt 2 / ln 3 leaves a margin of
    # ln 3: (3/4, 1/4). The student (0, 5) has the opposite: KL = 3/4 ln 3 - 1/4 ln 3 = 0.549306, times T^2.
    temperature = math.sqrt(2) / LN3
    value = logit_std.standardised_kd_loss(torch.tensor([[0.0, 5.0]]), torch.tensor([[2.0, 0.0]]), temperature)
    assert value.item() == pytest.approx(0.549306 * temperature**2, rel=1e-5)
    student, teacher = draw(5, 4), draw(5, 4, seed=1)
    scale, shift = draw(5, 1, seed=3).abs() + 0.5, draw(5, 1, seed=4)
    plain = logit_std.standardised_kd_loss(student, teacher, 2.0).item()
    moved = logit_std.standardised_kd_loss(scale * student + shift, 3 * teacher - shift, 2.0).item()
    assert moved == pytest.approx(plain, rel=1e-6)
    assert logit_std.standardised_kd_loss(scale * teacher + shift, teacher, 2.0).item() == pytest.approx(0, abs=1e-12)


def test_dist_by_hand_and_its_invariances() -> None:
    # Student (3/4, 1/4) and (1/4, 3/4); teacher (3/4, 1/4) twice. Rows: r = 1 and -1, mean 0. Columns of the teacher
    # are constant: r = 0. With beta 2 and gamma 3: 2 * 1 + 3 * 1 = 5, at T = 2 of doubled logits four times that.
    student, teacher = torch.tensor([[LN3, 0.0], [0.0, LN3]]), torch.tensor([[LN3, 0.0], [LN3, 0.0]])
    assert dist.dist_loss(student, teacher, 1.0, 2.0, 3.0).item() == pytest.approx(5.0, rel=1e-5)
    assert dist.dist_loss(2 * student, 2 * teacher, 2.0, 2.0, 3.0).item() == pytest.approx(20.0, rel=1e-5)
    assert 0 <= CASES["dist"].value.item() <= 4 * 16
    first, second = torch.rand(5, 4).double(), torch.rand(5, 4).double()
    expected = dist.correlations(first, second)
    assert torch.allclose(dist.correlations(3 * first + 1, second / 2 - 1), expected, rtol=1e-5)


def test_nkd_by_hand() -> None:
    # T = 1, label 0. Teacher (1/2, 1/4, 1/4), student (1/4, 3/8, 3/8): 1/2 ln 4 + gamma ln 2, q both (1/2, 1/2).
    student, teacher = torch.tensor([[2.0, 3.0, 3.0]]).log(), torch.tensor([[2.0, 1.0, 1.0]]).log()
    expected = math.log(4) / 2 + 1.5 * math.log(2)
    assert nkd.nkd_loss(student, teacher, torch.tensor([0]), 1.0, 1.5).item() == pytest.approx(expected, rel=1e-6)
    best = nkd.normalised_loss(teacher, teacher, torch.tensor([0]), 1.0)
    assert best.item() == pytest.approx(math.log(2), rel=1e-6)


def test_ttm_by_hand() -> None:
    # Teacher (4/5, 1/5), power 1/2: (2, 1) / sqrt 5, U = 3 / sqrt 5, (2/3, 1/3). Student (1/2, 1/2):
    # KL = 2/3 ln(4/3) + 1/3 ln(2/3) = 0.056633; weighed 0.075981.
    teacher = torch.tensor([[4.0, 1.0]]).log()
    assert ttm.ttm_loss(torch.zeros(1, 2), teacher, 0.5).item() == pytest.approx(0.056633, abs=1e-6)
    assert ttm.weighted_ttm_loss(torch.zeros(1, 2), teacher, 0.5).item() == pytest.approx(0.075981, abs=1e-6)
    half = ttm.ttm_loss(draw(5, 4), draw(5, 4, seed=1), 0.25).item()
    assert half == pytest.approx(kd_loss(draw(5, 4), draw(5, 4, seed=1) / 4, 1.0).item(), rel=1e-12)


def test_wsld_by_hand() -> None:
    # Label 0, T = 1. Student (1/2, 1/2): CE ln 2. Teacher (1/2, 1/2) too: the weight is 1 - 1/e, the loss ln 2.
    value = wsld.wsld_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), 1.0, 2.0).item()
    assert value == pytest.approx(2 * (1 - math.exp(-1)) * math.log(2), rel=1e-6)


def test_rld_by_hand() -> None:
    # Teacher (1/2, 3/8, 1/8), label 1: it is wrong, and only class 2 is below. Student (1/4, 1/2, 1/4): its label's
    # probability is the teacher's largest, and one class below says nothing: 0, where DKD is not.
    teacher, student = torch.tensor([[4.0, 3.0, 1.0]]).log(), torch.tensor([[1.0, 2.0, 1.0]]).log()
    labels = torch.tensor([1])
    assert rld.rld_loss(student, teacher, labels, 4.0, 1.0, 8.0).item() == pytest.approx(0, abs=1e-7)
    assert dkd.dkd_loss(student, teacher, labels, 4.0, 1.0, 8.0).item() > 0.1
    # Student (1/3, 1/3, 1/3): 1/2 ln(3/2) + 1/2 ln(3/4) = 0.058892. Label 0 is right: DKD's other classes at beta.
    assert rld.rld_loss(torch.zeros(1, 3), teacher, labels, 4.0, 1.0, 8.0).item() == pytest.approx(0.058892, abs=1e-6)
    right = rld.rld_loss(student, teacher, torch.tensor([0]), 2.0, 0.0, 1.0).item()
    assert right == pytest.approx(dkd.others_loss(student, teacher, torch.tensor([0]), 2.0).item(), rel=1e-6) and right


def test_rld_of_a_label_that_the_teacher_ranks_last_has_no_other_classes() -> None:
    teacher, student = draw(5, 4, seed=1), draw(5, 4)
    last = teacher.argmin(dim=1)
    assert rld.below_label_loss(student, teacher, last, 4.0).item() == 0
    assert not gradient(lambda s: rld.below_label_loss(s, teacher, last, 4.0), student).any()


def test_abkd_by_hand_and_near_its_limits() -> None:
    # P = (4/5, 1/5), Q = (1/2, 1/2), a = b = 1: half the squared distance, (0.09 + 0.09) / 2 = 0.09.
    teacher = torch.tensor([[4.0, 1.0]], dtype=torch.float64).log()
    student = torch.zeros(1, 2, dtype=torch.float64)
    assert abkd.abkd_loss(student, teacher, 1.0, 1.0, 1.0).item() == pytest.approx(0.09)
    forward, backward = kd_loss(student, teacher, 1.0).item(), kd_loss(teacher, student, 1.0).item()
    assert abkd.abkd_loss(student, teacher, 1.0, 1.0, 1e-6).item() == pytest.approx(forward, rel=1e-4)
    assert abkd.abkd_loss(student, teacher, 1.0, 1e-6, 1.0).item() == pytest.approx(backward, rel=1e-4)
    for bad in ((0.0, 1.0), (1.0, -0.5)):
        with pytest.raises(ValueError, match="must be positive"):
            abkd.abkd_loss(student, teacher, 1.0, *bad)


def test_virtual_teacher_by_hand() -> None:
    # Two classes, correct 3/4, T = 1/ln 9: softmax(3/4 ln 9, 1/4 ln 9) = (3/4, 1/4), from (1/2, 1/2):
    # 3/4 ln(3/2) + 1/4 ln(1/2) = 0.130812, over B * K: 0.065406. CE ln 2. 0.9 ln 2 + 0.1 * 2 * 0.065406.
    given = torch.zeros(1, 2), torch.tensor([0])
    value = tfkd.virtual_teacher_loss(*given, 0.1, 1 / math.log(9), 2.0, 0.75).item()
    assert value == pytest.approx(0.9 * math.log(2) + 0.1 * 0.130812, abs=1e-6)
    # The paper's: (9/10, 1/10) at T = 2 is (3/4, 1/4), and the student's logits at T = 2 are as before.
    assert tfkd.softened_divergence(*given, 2.0, 0.9).item() == pytest.approx(0.130812, abs=1e-6)


def test_warm_up_rises_and_stays() -> None:
    assert [warmed_up(progress, 0.2) for progress in (0, 0.1, 0.2, 1)] == pytest.approx([0, 0.5, 1, 1])
    assert warmed_up(0.0, 0.0) == 1
