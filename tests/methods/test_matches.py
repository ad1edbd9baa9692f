"""TextBrewer's own terms against its formulas, written as slow loops, and as parts of a composition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.bench.configure import configure
from kdbench.bench.data.splits import Splits
from kdbench.bench.errors import InputError
from kdbench.methods.base import Signals
from kdbench.methods.matches import ATTENTION, HIDDEN, MATCHES, Heads, gram_loss, soft_mse_loss
from kdbench.methods.textbrewer import shift_to_labels
from tests.methods.losses import draw, has_finite_gradient, loop_softmax, refuses
from tests.methods.options import carried_out, signals, spec_of, started, step_of, values, vit

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
EVERY = torch.ones(3, 4, dtype=torch.long)
B, N, D, H = 3, 4, 5, 2


def loop_pairs(student: Any, teacher: Any, mask: Tensor) -> list[float]:
    """Squared differences of (B, N, N) at pairs of positions that are both real."""
    return [
        (float(student[b][i][j]) - float(teacher[b][i][j])) ** 2
        for b in range(B)
        for i in range(N)
        for j in range(N)
        if mask[b][i] and mask[b][j]
    ]


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def loop_hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> float:
    real = [(b, i) for b in range(B) for i in range(N) if mask[b, i]]
    return mean([(float(student[b, i, d]) - float(teacher[b, i, d])) ** 2 for b, i in real for d in range(D)])


def loop_cos(student: Tensor, teacher: Tensor, mask: Tensor) -> float:
    real = [(b, i) for b in range(B) for i in range(N) if mask[b, i]]
    return mean(
        [1 - float(student[b, i] @ teacher[b, i] / student[b, i].norm() / teacher[b, i].norm()) for b, i in real]
    )


def loop_pkd(student: Tensor, teacher: Tensor, mask: Tensor) -> float:
    rows = [(student[b, 0] / student[b, 0].norm(), teacher[b, 0] / teacher[b, 0].norm()) for b in range(B)]
    return mean([math.dist(mine.tolist(), theirs.tolist()) ** 2 for mine, theirs in rows])


def loop_gram(student: Tensor, teacher: Tensor, mask: Tensor) -> float:
    squares = []
    for b in range(B):
        real = [i for i in range(N) if mask[b, i]]
        for c in range(D):
            for d in range(D):
                products = [mean([float(each[b, i, c] * each[b, i, d]) for i in real]) for each in (student, teacher)]
                squares.append((products[0] - products[1]) ** 2)
    return mean(squares)


def loop_nst(student: Tensor, teacher: Tensor, mask: Tensor) -> float:
    grams = [
        [[[mean((each[b, i] * each[b, j]).tolist()) for j in range(N)] for i in range(N)] for b in range(B)]
        for each in (student, teacher)
    ]
    return mean(loop_pairs(*grams, mask))


def scores(heads: Heads) -> list[Tensor]:
    """(B, N, N) of each head."""
    query, key = heads
    return [query[:, h] @ key[:, h].transpose(1, 2) / math.sqrt(query.shape[-1]) for h in range(query.shape[1])]


def loop_attention_mse(student: Heads, teacher: Heads, mask: Tensor) -> float:
    heads = zip(scores(student), scores(teacher), strict=True)
    return mean([square for mine, theirs in heads for square in loop_pairs(mine, theirs, mask)])


def loop_attention_mse_sum(student: Heads, teacher: Heads, mask: Tensor) -> float:
    return mean(loop_pairs(sum(scores(student)), sum(scores(teacher)), mask))


def divergences(student: Tensor, teacher: Tensor, mask: Tensor) -> list[float]:
    found = []
    for b in range(B):
        real = [i for i in range(N) if mask[b, i]]
        for i in real:
            q, p = (loop_softmax([float(each[b, i, j]) for j in real]) for each in (student, teacher))
            found.append(sum(p_j * math.log(p_j / q_j) for p_j, q_j in zip(p, q, strict=True)))
    return found


def loop_attention_ce(student: Heads, teacher: Heads, mask: Tensor) -> float:
    heads = zip(scores(student), scores(teacher), strict=True)
    return mean([each for mine, theirs in heads for each in divergences(mine, theirs, mask)])


def loop_attention_ce_mean(student: Heads, teacher: Heads, mask: Tensor) -> float:
    first, second = (torch.stack(scores(each)).mean(dim=0) for each in (student, teacher))
    return mean(divergences(first, second, mask))


HIDDEN_LOOPS = {
    "hidden_mse": loop_hidden_mse,
    "cos": loop_cos,
    "pkd": loop_pkd,
    "gram": loop_gram,
    "nst": loop_nst,
}
ATTENTION_LOOPS = {
    "attention_mse": loop_attention_mse,
    "attention_mse_sum": loop_attention_mse_sum,
    "attention_ce": loop_attention_ce,
    "attention_ce_mean": loop_attention_ce_mean,
}


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize("name", HIDDEN)
def test_match_of_states_equals_the_loop(name: str, mask: Tensor | None) -> None:
    student, teacher = draw(B, N, D), draw(B, N, 7 if name == "nst" else D, seed=1)
    expected = HIDDEN_LOOPS[name](student, teacher, EVERY if mask is None else mask)
    assert HIDDEN[name](student, teacher, mask).item() == pytest.approx(expected, rel=1e-10)
    assert has_finite_gradient(lambda point: HIDDEN[name](point, teacher, mask), student)
    assert HIDDEN[name](teacher, teacher, mask).item() == pytest.approx(0, abs=1e-12)
    if name != "pkd" and mask is not None:
        refuses(lambda: HIDDEN[name](student, teacher, mask[:, 1:]), (3, 3))


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize("name", ATTENTION)
def test_match_of_attention_equals_the_loop(name: str, mask: Tensor | None) -> None:
    heads = 3 if name in ("attention_mse_sum", "attention_ce_mean") else H
    student, teacher = (
        (draw(B, H, N, D), draw(B, H, N, D, seed=1)),
        (draw(B, heads, N, 7, seed=2), draw(B, heads, N, 7)),
    )
    expected = ATTENTION_LOOPS[name](student, teacher, EVERY if mask is None else mask)
    assert ATTENTION[name](student, teacher, mask).item() == pytest.approx(expected, rel=1e-10)
    assert ATTENTION[name](teacher, teacher, mask).item() == pytest.approx(0, abs=1e-12)


def test_gram_by_hand_ignores_padded_positions_that_hold_anything() -> None:
    # Positions (1, 2) and (3, 0): products 1 + 9, 2, 2, 4, halved 5, 1, 1, 2, against 0: (25 + 1 + 1 + 4) / 4 = 7.75.
    student = torch.tensor([[[1.0, 2.0], [3.0, 0.0], [50.0, -7.0]]])
    mask = torch.tensor([[1, 1, 0]])
    assert gram_loss(student, torch.zeros(1, 3, 2), mask).item() == pytest.approx(7.75)


def test_soft_losses_are_textbrewers() -> None:
    student, teacher = (signals(seed).logits.double() for seed in (0, 1))
    step = step_of(Signals(student.requires_grad_()), Signals(teacher))
    losses = configure("textbrewer", {"losses": "kd_ce+kd_mse", "temperature": 3.0}).loss(step)
    assert losses["kd_mse"].item() == pytest.approx(((student - teacher) / 3).square().mean().item())
    cross_entropy = -((teacher / 3).softmax(dim=1) * (student / 3).log_softmax(dim=1)).sum(dim=1).mean()
    (expected,) = torch.autograd.grad(cross_entropy, student, retain_graph=True)
    (found,) = torch.autograd.grad(losses["kd_ce"], student, retain_graph=True)
    torch.testing.assert_close(found, expected)
    assert soft_mse_loss(torch.tensor([[4.0, 0.0]]), torch.zeros(1, 2), 2.0).item() == 2.0  # (2^2 + 0) / 2
    refuses(lambda: soft_mse_loss(student, teacher[:, :3], 2.0), (6, 5), (6, 3))


def test_defaults_are_textbrewers() -> None:
    method: Any = configure("textbrewer", {})
    step = step_of(signals(0, 2, 3, 4, 5), signals(1, 2, 3, 4, 5))
    losses = method.loss(step)
    assert list(losses) == ["ce", "kd_ce", "fsp"] and not losses["ce"]
    assert (method.weight, method.hard_weight, method.temperature, method.probability_shift) == (1, 0, 4, False)


def test_probability_shift_swaps_the_largest_logit_and_that_of_the_label() -> None:
    logits = torch.tensor([[5.0, 1.0, 2.0], [0.0, 7.0, 3.0], [4.0, 6.0, 1.0]])
    shifted = torch.tensor([[1.0, 5.0, 2.0], [0.0, 7.0, 3.0], [4.0, 1.0, 6.0]])
    assert torch.equal(shift_to_labels(logits, torch.tensor([1, 1, 2])), shifted)
    soft = torch.tensor([[0.1, 0.9, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # the second has no label
    assert torch.equal(shift_to_labels(logits, soft), shifted)
    student, teacher = signals(0), signals(1)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    step = step_of(student, teacher, labels=labels)
    method = configure("textbrewer", {"losses": "kd_mse", "probability_shift": True})
    expected = soft_mse_loss(student.logits, shift_to_labels(teacher.logits, labels), 4.0)
    torch.testing.assert_close(method.loss(step)["kd_mse"], expected)
    assert method.needed() == {"class_targets"} and configure("textbrewer", {"losses": "kd_mse"}).needed() == set()


@pytest.mark.parametrize("name", sorted(set(MATCHES) - {"kd_ce", "kd_mse"}))
def test_every_match_trains_on_transformers_of_unequal_widths(name: str, digits: Splits) -> None:
    losses = f"kd_ce+0.1*{name}(depths=[0.5,1.0])"
    outcome, _, memory = carried_out(spec_of("textbrewer", vit(2, 24), vit(4, 36), losses=losses), digits)
    assert outcome.status == "done", outcome.reason
    assert memory.epochs[0].losses[f"student/{name}"] > 0


@pytest.mark.parametrize(("projection", "after"), [("linear", ""), ("relu", "ReLU"), ("tanh", "Tanh")])
def test_states_are_projected_where_widths_differ_and_only_there(projection: str, after: str, digits: Splits) -> None:
    losses = f"hidden_mse(depths=[0.0,1.0],projection={projection})"
    run = started(spec_of("textbrewer", vit(2, 24), vit(4, 36), losses=losses), digits)
    modules = run.auxiliary["term_1_teacher_1"]
    assert list(modules) == ["layer_0", "layer_1"]
    assert {type(each[1]).__name__ for each in modules.values()} == {after or "Identity"}
    before = {name: [p.clone() for p in each.parameters()] for name, each in modules.items()}
    _, step, found = run.one_update()
    assert step.student.tokens is not None and step.teacher.tokens is not None
    total = 0.0
    for index, layer in enumerate((0, -1)):
        states = F.linear(step.student.tokens[layer], *before[f"layer_{index}"])
        states = {"relu": F.relu, "tanh": torch.tanh}.get(projection, torch.clone)(states)
        total += F.mse_loss(states, step.teacher.tokens[layer]).item()
    assert values(found)["hidden_mse"] == pytest.approx(total, rel=1e-5)
    assert not started(spec_of("textbrewer", vit(2), vit(4), losses="hidden_mse"), digits).auxiliary
    assert not started(spec_of("textbrewer", vit(2), vit(4, 36), losses="nst"), digits).auxiliary


@pytest.mark.parametrize(
    ("losses", "student", "teacher", "words"),
    [
        ("attention_ce", vit(2, 24, 2), vit(2, 24, 3), ("2", "3", "attention_ce_mean")),
        ("attention_mse", vit(2, 24, 2), vit(2, 24, 3), ("2", "3", "attention_mse_sum")),
        ("hidden_mse", vit(2, patch=2), vit(2), ("17 tokens", "teacher 5")),
    ],
)
def test_layers_that_cannot_be_matched_are_unsupported(
    losses: str, student: Any, teacher: Any, words: tuple[str, ...], digits: Splits
) -> None:
    outcome, _, _ = carried_out(spec_of("textbrewer", student, teacher, losses=losses), digits)
    assert outcome.status == "unsupported" and all(word in outcome.reason for word in words), outcome.reason


def test_weights_of_terms_are_searched_one_by_one() -> None:
    losses = "2*kd+at(depths=[0.0])+at(depths=[1.0])"
    step = step_of(signals(0, 2, 3), signals(1, 4, 5))
    plain: Any = configure("textbrewer", {"losses": losses})
    assert plain.loss_weights() == {"weights.kd": ("kd",), "weights.at": ("at",), "weights.at_3": ("at_3",)}
    assert set(plain.space()) == {"temperature"} and not configure("kd(temperature=2)+sp", {}).space()
    weighed = configure("textbrewer", {"losses": losses, "weights": '{"kd": 3, "at_3": 0.5}'})
    before, after = plain.loss(step), weighed.loss(step)
    for name, factor in {"kd": 3.0, "at": 1.0, "at_3": 0.5}.items():
        torch.testing.assert_close(after[name], factor * before[name])
    assert weighed.hyperparameters()["weights"] == {"kd": 3.0, "at_3": 0.5}
    with pytest.raises(InputError, match="weights names at_2, sp, but the terms of losses are kd, at, at_3"):
        configure("textbrewer", {"losses": losses, "weights": {"sp": 1.0, "at_2": 1.0}})
    with pytest.raises(InputError, match="weights.kd must not be negative, but got weights.kd=-1"):
        configure("textbrewer", {"losses": losses, "weights": {"kd": -1.0}})


def test_a_match_that_is_misnamed_or_given_what_it_lacks_is_an_error_that_names_the_term() -> None:
    for losses, words in {
        "hiden_mse": "there is no 'hiden_mse'; near: hidden_mse",
        "cos(kind=pkd)": "cos takes NAME=VALUE of depths, teacher_depths, projection",
        "cos(projection=gelu)": "projection must be one of linear, relu, tanh, but got projection=gelu",
        "attention_ce(depths=[2.0])": "depth must lie between 0 and 1",
        "kd_ce(temperature=0)": "temperature must be positive",
    }.items():
        with pytest.raises(InputError, match=words):
            configure("textbrewer", {"losses": losses})
