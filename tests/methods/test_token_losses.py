"""Losses of tokens, with and without padding: slow loops in float64, values by hand, properties, bad shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kdbench.methods.distilbert import cosine_loss
from kdbench.methods.minilm import attention_relation_loss, value_relation_loss
from kdbench.methods.tinybert import attention_score_loss, hidden_loss
from tests.methods.losses import LN3, Case, Shape, draw, has_finite_gradient, loop_divergence, loop_softmax, refuses

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 0]])
"""(B, N): padding at the end, and once at the start as well."""

TokenLoss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
TokenLoop = Callable[[Tensor, Tensor, list[list[int]]], float]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def loop_cosine(student: Tensor, teacher: Tensor, mask: list[list[int]]) -> float:
    values = []
    for present, students, teachers in zip(mask, student.tolist(), teacher.tolist(), strict=True):
        for kept, s, t in zip(present, students, teachers, strict=True):
            norms = math.sqrt(sum(a * a for a in s)) * math.sqrt(sum(b * b for b in t))
            values += [1 - sum(a * b for a, b in zip(s, t, strict=True)) / norms] if kept else []
    return mean(values)


def loop_hidden(student: Tensor, teacher: Tensor, mask: list[list[int]]) -> float:
    values = []
    for present, students, teachers in zip(mask, student.tolist(), teacher.tolist(), strict=True):
        for kept, s, t in zip(present, students, teachers, strict=True):
            values += [(a - b) ** 2 for a, b in zip(s, t, strict=True)] if kept else []
    return mean(values)


def loop_scores(student: Tensor, teacher: Tensor, mask: list[list[int]]) -> float:
    values = []
    for present, students, teachers in zip(mask, student.tolist(), teacher.tolist(), strict=True):
        kept = [position for position, here in enumerate(present) if here]
        for s, t in zip(students, teachers, strict=True):
            values += [(s[query][key] - t[query][key]) ** 2 for query in kept for key in kept]
    return mean(values)


def loop_relation(queries: list[list[float]], keys: list[list[float]], query: int, kept: list[int]) -> list[float]:
    width = math.sqrt(len(queries[query]))
    return loop_softmax([sum(a * b for a, b in zip(queries[query], keys[key], strict=True)) / width for key in kept])


def loop_attention_relation(student: Tensor, teacher: Tensor, mask: list[list[int]]) -> float:
    values = []
    for present, (s_q, s_k), (t_q, t_k) in zip(mask, student.tolist(), teacher.tolist(), strict=True):
        kept = [position for position, here in enumerate(present) if here]
        for head in range(len(s_q)):
            for query in kept:
                p = loop_relation(t_q[head], t_k[head], query, kept)
                values.append(loop_divergence(p, loop_relation(s_q[head], s_k[head], query, kept)))
    return mean(values)


def loop_value_relation(student: Tensor, teacher: Tensor, mask: list[list[int]]) -> float:
    return loop_attention_relation(torch.stack([student] * 2, dim=1), torch.stack([teacher] * 2, dim=1), mask)


def attention_relation(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Each (B, 2, heads, N, d): queries and keys."""
    return attention_relation_loss((student[:, 0], student[:, 1]), (teacher[:, 0], teacher[:, 1]), mask)


@dataclass(frozen=True)
class Tokens:
    """A loss of tokens, its slow reference, the shapes to draw, and which dimensions are the positions."""

    loss: TokenLoss
    loop: TokenLoop
    student_shape: Shape
    teacher_shape: Shape
    positions: tuple[int, ...]

    def case(self, mask: Tensor | None) -> Case:
        present = torch.ones_like(MASK) if mask is None else mask
        return Case(
            lambda s, t: self.loss(s, t, mask),
            lambda s, t: self.loop(s, t, present.tolist()),
            self.student_shape,
            self.teacher_shape,
        )

    def padding(self, tensor: Tensor) -> Tensor:
        """True at every element of the tensor that lies at a padded position."""
        padded = torch.zeros_like(tensor, dtype=torch.bool)
        for dim in self.positions:
            shape = [len(MASK)] + [4 if axis == dim else 1 for axis in range(1, tensor.dim())]
            padded |= (MASK == 0).view(shape)
        return padded


LOSSES: dict[str, Tokens] = {
    "cosine": Tokens(lambda s, t, m: cosine_loss(s, t, mask=m), loop_cosine, (5, 4, 3), (5, 4, 3), (1,)),
    "hidden": Tokens(lambda s, t, m: hidden_loss(s, t, mask=m), loop_hidden, (5, 4, 3), (5, 4, 3), (1,)),
    "scores": Tokens(
        lambda s, t, m: attention_score_loss(s, t, mask=m), loop_scores, (5, 2, 4, 4), (5, 2, 4, 4), (2, 3)
    ),
    "attention_relation": Tokens(attention_relation, loop_attention_relation, (5, 2, 2, 4, 3), (5, 2, 2, 4, 5), (3,)),
    "value_relation": Tokens(
        lambda s, t, m: value_relation_loss(s, t, mask=m), loop_value_relation, (5, 2, 4, 3), (5, 2, 4, 5), (2,)
    ),
}

every_loss = pytest.mark.parametrize("tokens", LOSSES.values(), ids=LOSSES)
every_mask = pytest.mark.parametrize("mask", [None, MASK, MASK.bool(), MASK.double()], ids=["all", "int", "bool", "1."])


@every_mask
@every_loss
def test_token_loss_equals_the_loop(tokens: Tokens, mask: Tensor | None) -> None:
    case = tokens.case(mask)
    assert case.value.item() == pytest.approx(case.loop(case.student, case.teacher), rel=1e-10)


@every_mask
@every_loss
def test_token_loss_is_a_scalar_of_the_inputs_type_and_right_in_float32(tokens: Tokens, mask: Tensor | None) -> None:
    case = tokens.case(None if mask is None else mask.float() if mask.is_floating_point() else mask)
    single = case.loss(case.student.float(), case.teacher.float())
    assert (case.value.dtype, single.dtype) == (torch.float64, torch.float32)
    assert case.value.shape == single.shape == ()
    assert single.item() == pytest.approx(case.value.item(), rel=1e-5)


@pytest.mark.parametrize("mask", [None, MASK.bool()], ids=["all", "mask"])
@every_loss
def test_token_loss_gradient_in_the_student_passes_gradcheck(tokens: Tokens, mask: Tensor | None) -> None:
    case = tokens.case(mask)
    assert torch.autograd.gradcheck(lambda s: case.loss(s, case.teacher), (case.student.requires_grad_(),))


@pytest.mark.parametrize("mask", [None, MASK.bool()], ids=["all", "mask"])
@every_loss
def test_token_loss_is_zero_for_equal_inputs_with_a_finite_gradient(tokens: Tokens, mask: Tensor | None) -> None:
    case = tokens.case(mask)
    assert case.loss(case.student, case.student.clone()).item() == pytest.approx(0, abs=1e-14)
    assert case.value.item() > 1e-3
    assert has_finite_gradient(lambda s: case.loss(s, case.student), case.student, torch.zeros_like(case.student))


@every_loss
def test_token_loss_does_not_depend_on_the_order_of_the_batch_or_of_positions(tokens: Tokens) -> None:
    case, order = tokens.case(None), torch.tensor([3, 0, 4, 1, 2])
    value = case.value.item()
    assert case.loss(case.student[order], case.teacher[order]).item() == pytest.approx(value, rel=1e-12)
    assert case.loss(case.student[order], case.teacher).item() != pytest.approx(value, rel=1e-4)
    student, teacher = case.student.flip(tokens.positions), case.teacher.flip(tokens.positions)
    assert case.loss(student, teacher).item() == pytest.approx(value, rel=1e-12)


@every_loss
def test_padded_positions_count_for_nothing_and_get_no_gradient(tokens: Tokens) -> None:
    case = tokens.case(MASK.bool())
    student, teacher = case.student, case.teacher
    changed = student.masked_fill(tokens.padding(student), 9.0).requires_grad_()
    value = case.loss(changed, teacher.masked_fill(tokens.padding(teacher), -50.0))
    assert value.item() == pytest.approx(case.value.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(value, changed)
    assert not gradient[tokens.padding(student)].any()
    assert gradient[~tokens.padding(student)].any()


@every_loss
def test_padding_at_the_end_of_all_images_is_as_if_it_were_cut_off(tokens: Tokens) -> None:
    case = tokens.case(None)
    cut_student, cut_teacher = case.student, case.teacher
    for dim in tokens.positions:
        cut_student, cut_teacher = cut_student.narrow(dim, 0, 3), cut_teacher.narrow(dim, 0, 3)
    mask = torch.tensor([[1, 1, 1, 0]] * 5)
    padded = tokens.loss(case.student, case.teacher, mask)
    assert padded.item() == pytest.approx(tokens.loss(cut_student, cut_teacher, None).item(), rel=1e-12)
    full = tokens.loss(case.student, case.teacher, torch.ones_like(MASK))
    assert full.item() == pytest.approx(case.value.item(), rel=1e-12)


@every_loss
def test_image_that_is_all_padding_is_as_if_it_were_not_there(tokens: Tokens) -> None:
    case, mask = tokens.case(None), MASK.clone()
    mask[2] = 0
    others = torch.tensor([0, 1, 3, 4])
    value = tokens.loss(case.student, case.teacher, mask).item()
    expected = tokens.loss(case.student[others], case.teacher[others], MASK[others]).item()
    assert value == pytest.approx(expected, rel=1e-12)
    assert has_finite_gradient(lambda s: tokens.loss(s, case.teacher, mask), case.student)


@pytest.mark.parametrize("mask_shape", [(5, 3), (1, 4), (5, 1), (4,)], ids=str)
@every_loss
def test_token_loss_names_the_shape_of_a_mask_that_does_not_fit(tokens: Tokens, mask_shape: Shape) -> None:
    case = tokens.case(torch.ones(mask_shape, dtype=torch.bool))
    refuses(lambda: case.value, mask_shape)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        *((name, other) for name in ("cosine", "hidden") for other in [(1, 4, 3), (5, 1, 3), (5, 4, 1), (5, 4)]),
        *(("scores", other) for other in [(1, 2, 4, 4), (5, 1, 4, 4), (5, 2, 1, 4), (5, 2, 4, 1), (5, 4, 4)]),
        *(("value_relation", other) for other in [(1, 2, 4, 3), (5, 1, 4, 3), (5, 2, 3, 3), (5, 4, 3)]),
    ],
    ids=str,
)
def test_token_loss_names_both_shapes_when_they_differ(name: str, other: Shape) -> None:
    tokens = LOSSES[name]
    case = tokens.case(None)
    refuses(lambda: case.loss(case.student, draw(*other)), tokens.student_shape, other)


@pytest.mark.parametrize("other", [(1, 2, 4, 3), (5, 1, 4, 3), (5, 2, 3, 3), (5, 4, 3)], ids=str)
def test_attention_relation_loss_names_both_shapes_when_they_differ(other: Shape) -> None:
    student, teacher = draw(5, 2, 4, 3), draw(*other)
    refuses(lambda: attention_relation_loss((student, student), (teacher, teacher)), (5, 2, 4, 3), other)


def test_cosine_loss_by_hand_ignores_the_length_of_each_vector() -> None:
    # Cosines of (1, 0) with (3, 4) and with (0, 1): 0.6 and 0. Mean of 0.4 and 1: 0.7; the second alone: 1.
    student, teacher = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), torch.tensor([[[3.0, 4.0], [0.0, 1.0]]])
    assert cosine_loss(student, teacher).item() == pytest.approx(0.7)
    assert cosine_loss(student, teacher, mask=torch.tensor([[0, 1]])).item() == pytest.approx(1.0)
    lengths = draw(1, 2, 1).abs().float() + 0.1
    assert cosine_loss(lengths * student, teacher / lengths).item() == pytest.approx(0.7)


def test_tinybert_losses_by_hand() -> None:
    # Differences 1, 2, 3, 4: squares 1, 4, 9, 16, mean 7.5. As scores, the first position alone keeps only its own
    # entry: 1. As hidden states, it keeps 1 and 4: mean 2.5.
    student, teacher = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.zeros(1, 2, 2)
    mask = torch.tensor([[True, False]])
    assert attention_score_loss(student[None], teacher[None]).item() == pytest.approx(7.5)
    assert attention_score_loss(student[None], teacher[None], mask=mask).item() == pytest.approx(1.0)
    assert hidden_loss(student, teacher).item() == pytest.approx(7.5)
    assert hidden_loss(student, teacher, mask=mask).item() == pytest.approx(2.5)


@pytest.mark.parametrize("name", ["cosine", "hidden", "scores"])
def test_distance_of_tokens_is_symmetric(name: str) -> None:
    case = LOSSES[name].case(MASK)
    assert case.loss(case.teacher, case.student).item() == pytest.approx(case.value.item(), rel=1e-12)


def test_minilm_losses_by_hand_and_not_the_reverse_divergence() -> None:
    # d = 4. Teacher's first query (2, 0, 0, 0), keys (ln 3, ...) and 0: 2 ln 3 / sqrt 4 = ln 3 and 0 -> (3/4, 1/4);
    # second query 0 -> (1/2, 1/2). Student, d = 1, zeros: (1/2, 1/2) twice. KL of the first row is 3/4 ln 3 - ln 2 =
    # 0.130812, of the second 0; mean over two rows 0.065406. The reverse is 1/2 ln(2/3) + 1/2 ln 2 = 0.143841, halved.
    query, key, zero = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 1)
    query[0, 0, 0, 0], key[0, 0, 0, 0] = 2.0, LN3
    assert attention_relation_loss((zero, zero), (query, key)).item() == pytest.approx(0.065406, abs=1e-6)
    assert attention_relation_loss((query, key), (zero, zero)).item() == pytest.approx(0.0719205, abs=1e-6)
    # Values sqrt(2 ln 3) and 0 at d = 4: 2 ln 3 / sqrt 4 = ln 3 and 0 again in the first row, zeros in the second.
    value = torch.zeros(1, 1, 2, 4)
    value[0, 0, 0, 0] = math.sqrt(2 * LN3)
    assert value_relation_loss(zero, value).item() == pytest.approx(0.065406, abs=1e-6)
    assert value_relation_loss(value, zero).item() == pytest.approx(0.0719205, abs=1e-6)
    # With the second position padded one key is left, which gets all the probability from both.
    assert value_relation_loss(zero, value, mask=torch.tensor([[1, 0]])).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("name", ["attention_relation", "value_relation"])
def test_minilm_losses_ignore_a_rotation_and_the_order_of_heads(name: str) -> None:
    case = LOSSES[name].case(MASK)
    rotation, _ = torch.linalg.qr(draw(3, 3, seed=2))
    assert case.loss(case.student @ rotation, case.teacher).item() == pytest.approx(case.value.item(), rel=1e-10)
    student, teacher = case.student.flip(-3), case.teacher.flip(-3)
    assert case.loss(student, teacher).item() == pytest.approx(case.value.item(), rel=1e-12)
