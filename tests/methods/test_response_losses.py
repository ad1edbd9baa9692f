"""Losses, schedules and data of response methods: slow loops in float64, values by hand, properties, bad shapes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from kdbench.methods.eskd import still_distilling
from kdbench.methods.functional import kd_loss, labelled_cross_entropy
from kdbench.methods.model_compression import munge, munge_images
from kdbench.methods.multi_teacher import averaged_kd_loss, relative_dissimilarity_loss
from kdbench.methods.scheduled_kd import alpha_at, annealed_loss, rising_temperature, temperature_at
from kdbench.methods.tolerant_teacher import top_gap
from kdbench.methods.vild import embedding_loss, similarity_logits
from tests.methods.losses import (
    LN3,
    Case,
    Shape,
    draw,
    has_finite_gradient,
    loop_averaged_kd,
    loop_cosines,
    loop_cross_entropy,
    loop_dissimilarity,
    loop_embedding,
    loop_kd,
    loop_nearest,
    loop_top_gap,
    refuses,
)

PEERS = [draw(5, 4, seed=seed) for seed in (2, 3)]
FEATURES = [draw(5, 3, seed=2), draw(5, 6, seed=3)]
EXACT = 1e12
"""A local variance at which a draw is its mean."""


def some_labelled(scores: Tensor) -> Tensor:
    """Probabilities (B, K) of the scores, and rows of zeros for the second and the last image."""
    return scores.softmax(dim=1) * scores.new_tensor([1, 0, 1, 1, 0])[:, None]


def like(tensor: Tensor, others: list[Tensor]) -> list[Tensor]:
    return [other.to(tensor) for other in others]


def votes(others: list[Tensor], margin: float, student_shape: Shape = (5, 3), teacher_shape: Shape = (5, 4)) -> Case:
    return Case(
        lambda s, t: relative_dissimilarity_loss(s, [t, *like(s, others)], margin),
        lambda s, t: loop_dissimilarity(s, [t, *others], margin),
        student_shape,
        teacher_shape,
        zero=False,
    )


def loop_annealed(student: Tensor, teacher: Tensor, share: float) -> float:
    pairs = zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)
    return sum((s - share * t) ** 2 for s, t in pairs) / student.numel()


CASES: dict[str, Case] = {
    "labelled": Case(
        lambda s, t: labelled_cross_entropy(s, t.softmax(dim=1)),
        lambda s, t: loop_cross_entropy(s, t.softmax(dim=1)),
        zero=False,
    ),
    "some_labelled": Case(
        lambda s, t: labelled_cross_entropy(s, some_labelled(t)),
        lambda s, t: loop_cross_entropy(s, some_labelled(t)),
        zero=False,
    ),
    "labelled_by_class": Case(
        lambda s, t: labelled_cross_entropy(s, t.argmax(dim=1)),
        lambda s, t: loop_cross_entropy(s, F.one_hot(t.argmax(dim=1), 4)),
        zero=False,
    ),
    "one_teacher": Case(lambda s, t: averaged_kd_loss(s, [t], 3.0), lambda s, t: loop_kd(s, t, 3.0)),
    "three_teachers": Case(
        lambda s, t: averaged_kd_loss(s, [t, *like(s, PEERS)], 0.5),
        lambda s, t: loop_averaged_kd(s, [t, *PEERS], 0.5),
        zero=False,
    ),
    "one_vote": votes([], 0.4),
    "two_votes": votes(FEATURES[:1], 0.4, (5, 3, 2, 2), (5, 4, 1, 2)),
    "three_votes": votes(FEATURES, 0.1),
    "embedding": Case(embedding_loss, loop_embedding),
    "annealed": Case(
        lambda s, t: annealed_loss(s, t, 3, 4),
        lambda s, t: loop_annealed(s, t, 0.75),
        zero=False,
    ),
}

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_case
def test_response_loss_equals_the_loop(case: Case) -> None:
    assert case.value.item() == pytest.approx(case.loop(case.student, case.teacher), rel=1e-10)


@every_case
def test_response_loss_is_a_scalar_of_the_inputs_type_and_right_in_float32(case: Case) -> None:
    single = case.loss(case.student.float(), case.teacher.float())
    assert (case.value.dtype, single.dtype) == (torch.float64, torch.float32)
    assert case.value.shape == single.shape == ()
    assert single.item() == pytest.approx(case.value.item(), rel=1e-5)


@every_case
def test_response_loss_gradient_in_the_student_passes_gradcheck(case: Case) -> None:
    assert torch.autograd.gradcheck(lambda s: case.loss(s, case.teacher), (case.student.requires_grad_(),))


@every_case
def test_response_loss_is_zero_for_equal_inputs_with_a_finite_gradient(case: Case) -> None:
    if case.zero:
        assert case.loss(case.student, case.student.clone()).item() == pytest.approx(0, abs=1e-14)
    assert case.value.item() > 1e-3
    assert has_finite_gradient(lambda s: case.loss(s, case.teacher), torch.zeros_like(case.student))


@pytest.mark.parametrize("other", [(1, 4), (7, 4), (5, 1), (5, 6)], ids=str)
@pytest.mark.parametrize("name", ["labelled", "one_teacher", "three_teachers", "embedding", "annealed"])
def test_response_loss_names_both_shapes_when_they_differ(name: str, other: tuple[int, int]) -> None:
    refuses(lambda: CASES[name].loss(draw(5, 4), draw(*other)), (5, 4), other)


def test_labelled_cross_entropy_by_hand() -> None:
    # Probabilities (3/4, 1/4), (1/2, 1/2), (3/4, 1/4). Classes 0, 1, 1: (ln 4/3 + ln 2 + ln 4) / 3 = 0.789041.
    # Labels (1/2, 1/2), none, (0, 1): ((ln 4/3 + ln 4) / 2 + ln 4) / 2 = 1.111641.
    logits = torch.tensor([[LN3, 0.0], [0.0, 0.0], [LN3, 0.0]])
    assert labelled_cross_entropy(logits, torch.tensor([0, 1, 1])).item() == pytest.approx(0.789041, abs=1e-6)
    some = torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.0, 1.0]])
    assert labelled_cross_entropy(logits, some).item() == pytest.approx(1.111641, abs=1e-6)


def test_labelled_cross_entropy_counts_images_without_a_label_for_nothing() -> None:
    logits, labels = draw(5, 4).requires_grad_(), some_labelled(draw(5, 4, seed=1))
    (gradient,) = torch.autograd.grad(labelled_cross_entropy(logits, labels), logits)
    labelled = [0, 2, 3]
    assert not gradient[[1, 4]].any() and gradient[labelled].all()
    expected = F.cross_entropy(logits[labelled], labels[labelled])
    assert labelled_cross_entropy(logits, labels).item() == pytest.approx(expected.item(), rel=1e-12)
    nothing = labelled_cross_entropy(logits, torch.zeros_like(labels))
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert nothing.item() == 0 and torch.equal(gradient, torch.zeros_like(gradient))
    refuses(lambda: labelled_cross_entropy(logits, torch.tensor([0])), (5, 4), (1,))


@pytest.mark.parametrize("k", [2, 3, 6])
def test_top_gap_equals_the_loop_and_ignores_labels_order_and_shift(k: int) -> None:
    logits, labels = draw(5, 6), torch.zeros(5, dtype=torch.long)
    value = top_gap(logits, labels, k)
    assert value.item() == pytest.approx(loop_top_gap(logits, k), rel=1e-10) and 0 < value.item() < 1
    assert torch.equal(top_gap(logits, labels + 3, k), value) and value.dtype == torch.float64
    assert top_gap(logits.float(), labels, k).item() == pytest.approx(value.item(), rel=1e-5)
    assert top_gap(logits.flip(0, 1) + 7, labels, k).item() == pytest.approx(value.item(), rel=1e-10)
    assert torch.autograd.gradcheck(lambda z: top_gap(z, labels, k), (logits.requires_grad_(),))


def test_top_gap_by_hand() -> None:
    # Outputs 1/2, 1/4, 1/8, 1/8. k = 2: 1/2 - 1/4; k = 3: 1/2 - (3/8) / 2 = 5/16; k = 4: 1/2 - (1/2) / 3 = 1/3.
    logits, labels = torch.tensor([[1.0, 4.0, 1.0, 2.0]]).log(), torch.tensor([1])
    assert [top_gap(logits, labels, k).item() for k in (2, 3, 4)] == pytest.approx([1 / 4, 5 / 16, 1 / 3])
    assert top_gap(torch.zeros(3, 4), torch.zeros(3, dtype=torch.long), 3).item() == pytest.approx(0, abs=1e-7)
    for k in (-1, 0, 1, 5):
        with pytest.raises(ValueError, match=str(k)):
            top_gap(logits, labels, k)


def test_averaged_kd_loss_by_hand() -> None:
    # T = 2. Teachers (2 ln 3, 0) and its mirror -> (3/4, 1/4) and (1/4, 3/4), mean (1/2, 1/2). Student (3/4, 1/4):
    # KL = 1/2 ln(2/3) + 1/2 ln 2 = 0.143841, times 4: 0.575364. The mean of the two divergences would not do.
    teacher = torch.tensor([[2 * LN3, 0.0]])
    assert averaged_kd_loss(teacher, [teacher, teacher.flip(1)], 2.0).item() == pytest.approx(0.575364, abs=1e-6)


def test_averaged_kd_loss_is_kd_loss_for_one_teacher_and_ignores_the_order_of_teachers() -> None:
    student, teachers = draw(5, 4), [draw(5, 4, seed=1), *PEERS]
    for several in (teachers[:1], teachers[:1] * 3):
        expected = kd_loss(student, teachers[0], 4.0).item()
        assert averaged_kd_loss(student, several, 4.0).item() == pytest.approx(expected, rel=1e-12)
    expected = averaged_kd_loss(student, teachers, 4.0).item()
    assert averaged_kd_loss(student, teachers[::-1], 4.0).item() == pytest.approx(expected, rel=1e-12)
    refuses(lambda: averaged_kd_loss(student, [student, draw(5, 1)], 4.0), (5, 4), (5, 1))
    with pytest.raises(ValueError):
        averaged_kd_loss(student, [], 4.0)


def test_relative_dissimilarity_loss_by_hand() -> None:
    # Teacher on the unit circle: d(0,1) = 2, d(0,2) = 4, d(1,2) = 2. Votes: (0;1,2) 4 - 2 -> +1; (1;0,2) 2 - 2, a tie;
    # (2;0,1) 2 - 4 -> -1. Student: d(0,1) = 4, d(0,2) = 2, d(1,2) = 2. Margin 1: 1 - (2 - 4) = 3 and 1 + (2 - 2) = 1.
    teacher, student = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([[3.0, 0], [-2, 0], [0, 1]])
    assert relative_dissimilarity_loss(student, [teacher], 1.0).item() == pytest.approx(2.0, rel=1e-6)
    # A second teacher with points 1 and 2 exchanged votes against (0;1,2), breaks the tie of (1;0,2) to -1, and of
    # (2;0,1) votes 0: left are -1 for (1;0,2), 1 + (2 - 4) < 0 -> 0, and -1 for (2;0,1), 1. Mean 1/2.
    teachers = [teacher, teacher[[0, 2, 1]]]
    assert relative_dissimilarity_loss(student, teachers, 1.0).item() == pytest.approx(0.5, rel=1e-6)


def test_relative_dissimilarity_loss_is_zero_without_violations_and_without_votes() -> None:
    feature = draw(5, 3, 2, 2)
    value = relative_dissimilarity_loss(feature, FEATURES, 0.3).item()
    scaled = feature * draw(5, 1, 1, 1, seed=4).abs()
    assert relative_dissimilarity_loss(scaled, FEATURES[::-1], 0.3).item() == pytest.approx(value, rel=1e-10)
    assert relative_dissimilarity_loss(feature, [feature.flatten(1)], 0.0).item() == pytest.approx(0, abs=1e-14)
    for size, teacher in [(5, torch.ones(5, 2).double()), (2, FEATURES[0]), (1, FEATURES[0])]:
        variable = feature[:size].clone().requires_grad_()
        none = relative_dissimilarity_loss(variable, [teacher[:size]], 0.3)
        (gradient,) = torch.autograd.grad(none, variable)
        assert none.item() == 0 and torch.equal(gradient, torch.zeros_like(gradient))
    refuses(lambda: relative_dissimilarity_loss(draw(5, 3), [draw(7, 4)], 0.3), (5, 3), (7, 4))


def test_vild_by_hand_and_against_the_loop() -> None:
    # Cosines of (3, 4) with (1, 0) and (0, -2): 0.6 and -0.8; over 0.5: 1.2 and -1.6. L1 of (0.6, 0.8) - (1, 0): 1.2.
    embedding, classes = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, -2.0]])
    assert similarity_logits(embedding, classes, 0.5)[0].tolist() == pytest.approx([1.2, -1.6])
    assert embedding_loss(embedding, classes[:1]).item() == pytest.approx(1.2)
    many, names = draw(5, 3), draw(4, 3, seed=1)
    logits = similarity_logits(many, names, 0.1)
    assert torch.allclose(logits, 10 * logits.new_tensor(loop_cosines(many, names)), rtol=1e-10)
    assert torch.allclose(similarity_logits(7 * many.float(), names.float() / 3, 0.1).double(), logits, atol=1e-4)
    assert torch.autograd.gradcheck(lambda e: similarity_logits(e, names, 0.1), (many.clone().requires_grad_(),))
    assert embedding_loss(5 * many, many / 3).item() == pytest.approx(0, abs=1e-14)
    refuses(lambda: similarity_logits(draw(5, 3), draw(4, 1), 0.1), (5, 3), (4, 1))


def test_schedules_by_hand() -> None:
    # From 8 by halves at every tenth, not below 0.75: 8, 8, 4, 2, 1 and then 0.5, which is too low.
    temperatures = [temperature_at(progress, 8.0, 0.5, 0.1, 0.75) for progress in (0, 0.0999, 0.1, 0.255, 0.3, 0.4, 1)]
    assert temperatures == pytest.approx([8, 8, 4, 2, 1, 0.75, 0.75])
    assert [rising_temperature(progress, 4) for progress in (0, 0.24, 0.25, 0.5, 0.75, 0.999, 1)] == [
        *(1, 1, 2, 3, 4, 4, 4)
    ]
    assert [rising_temperature(epoch / 200, 10) for epoch in range(200)] == [1 + epoch // 20 for epoch in range(200)]
    # Low 0.2, high 0.8: a quarter of progress is half of the way to a peak at a half.
    progress = (0, 0.25, 0.5, 0.75, 1)
    for peak, expected in {
        0.5: [0.2, 0.5, 0.8, 0.5, 0.2],
        1.0: [0.2, 0.35, 0.5, 0.65, 0.8],
        0.0: [0.8, 0.65, 0.5, 0.35, 0.2],
        0.25: [0.2, 0.8, 0.6, 0.4, 0.2],
    }.items():
        assert [alpha_at(p, 0.2, 0.8, peak) for p in progress] == pytest.approx(expected)
    assert [still_distilling(p, 0.5) for p in progress] == [True, True, False, False, False]
    assert still_distilling(0.999, 1.0) and not still_distilling(0.0, 0.0)


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.mark.parametrize("of_images", [False, True])
def test_munge_exact_cases(of_images: bool) -> None:
    images = torch.randint(0, 256, (20, 3, 5, 7), generator=generator(9), dtype=torch.uint8)
    given = images if of_images else draw(30, 4).float()

    def munged(rows: list[int], probability: float, variance: float, seed: int = 0) -> Tensor:
        if of_images:
            return munge_images(given[rows], probability, variance, 2, generator(seed))
        return munge(given[rows], probability, variance, generator(seed))

    every, before = list(range(len(given))), given.clone()
    some = munged(every, 0.5, 1.0)
    assert some.dtype == given.dtype and some.shape == given.shape
    assert torch.equal(some, munged(every, 0.5, 1.0)) and not torch.equal(some, munged(every, 0.5, 1.0, seed=1))
    assert torch.equal(munged(every, 0.0, 1.0), given)
    nearest = given[loop_nearest(given.flatten(1).tolist())]
    assert torch.allclose(munged(every, 1.0, EXACT).float(), nearest.float(), rtol=0, atol=1e-6)
    assert torch.equal(munged([3, 3], 1.0, 0.1), given[[3, 3]])
    # Of two duplicates each is the other's nearest; the third moves to them, and is not its own neighbour.
    assert torch.allclose(munged([3, 3, 5], 1.0, EXACT).float(), given[[3, 3, 3]].float(), rtol=0, atol=1e-6)
    assert torch.equal(given, before)


def test_munge_draws_a_share_of_attributes_around_the_nearest() -> None:
    # Two examples, 0 and 3 in 40000 attributes: a share of 0.3 is drawn around the other with deviation 3 / 2.
    count, probability, deviation = 40000, 0.3, 1.5
    vectors = torch.tensor([[0.0], [3.0]], dtype=torch.float64).repeat(1, count)
    for row, own, other in zip(munge(vectors, probability, 2.0, generator()), (0.0, 3.0), (3.0, 0.0), strict=True):
        drawn = row[row != own]
        assert abs(len(drawn) / count - probability) < 4 * math.sqrt(probability * (1 - probability) / count)
        assert abs(drawn.mean().item() - other) < 4 * deviation / math.sqrt(len(drawn))
        assert abs(drawn.std().item() - deviation) < 4 * deviation / math.sqrt(2 * len(drawn))


def test_munge_images_changes_blocks_as_a_whole() -> None:
    # 0 and 200: the share of blocks of 4 x 4 that are exchanged is 0.3, and none is exchanged in part.
    images = torch.tensor([0, 200], dtype=torch.uint8).view(2, 1, 1, 1).repeat(1, 3, 160, 200)
    changed = munge_images(images, 0.3, EXACT, 4, generator()) != images
    blocks = changed.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3)
    assert torch.equal(blocks.all(dim=3), blocks.any(dim=3))
    for share in blocks.all(dim=3).flatten(1).double().mean(dim=1).tolist():
        assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / (40 * 50))
    assert not torch.equal(changed[0], changed[1])


@pytest.mark.parametrize(("own", "other", "variance"), [(100, 101, 5.0), (250, 255, 1.0), (40, 200, 8.0)])
def test_munge_images_rounds_and_clamps_what_it_draws(own: int, other: int, variance: float) -> None:
    images = torch.tensor([own, other], dtype=torch.uint8).view(2, 1, 1, 1).repeat(1, 1, 100, 200)
    drawn = munge_images(images, 1.0, variance, 5, generator())[0].flatten().double()
    noise = torch.randn(1_000_000, dtype=torch.float64, generator=generator(1))
    reference = (other + abs(own - other) / variance * noise).round().clamp(0, 255)
    error = reference.std().item() / math.sqrt(len(drawn))
    assert abs(drawn.mean().item() - reference.mean().item()) < 4.5 * error
    assert drawn.std().item() == pytest.approx(reference.std().item(), rel=0.2)
