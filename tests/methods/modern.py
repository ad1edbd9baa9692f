"""What the tests of modern losses share: labels, checks, and slow references in plain Python from the papers' sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.methods.losses import draw, loop_softmax

Row = list[float]
LABELS = torch.tensor([1, 0, 3, 2, 1])
"""Classes of five images among four."""
EXTREME = 1e4
"""Of logits that are far apart."""


def rows_of(*tensors: Tensor) -> Sequence[tuple[Row, ...]]:
    return list(zip(*(tensor.tolist() for tensor in tensors), strict=True))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def kl(p: Row, q: Row) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def without(row: Row, place: int) -> Row:
    return row[:place] + row[place + 1 :]


def loop_dkd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float, beta: float) -> float:
    values = []
    for (s, t), y in zip(rows_of(student, teacher), labels.tolist(), strict=True):
        p_s, p_t = loop_softmax(s, temperature), loop_softmax(t, temperature)
        target = kl([p_t[y], sum(without(p_t, y))], [p_s[y], sum(without(p_s, y))])
        q_s, q_t = ([p / sum(without(row, y)) for p in without(row, y)] for row in (p_s, p_t))
        values.append(temperature**2 * (alpha * target + beta * kl(q_t, q_s)))
    return mean(values)


def loop_standard(row: Row) -> Row:
    average = mean(row)
    deviation = math.sqrt(sum((z - average) ** 2 for z in row) / (len(row) - 1))
    return [(z - average) / (1e-7 + deviation) for z in row]


def loop_pearson(first: Row, second: Row) -> float:
    a, b = ([value - mean(row) for value in row] for row in (first, second))
    norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / (norms + 1e-8)


def loop_dist(student: Tensor, teacher: Tensor, temperature: float, beta: float, gamma: float) -> float:
    p_s, p_t = ([loop_softmax(row, temperature) for row in each.tolist()] for each in (student, teacher))
    rows = mean([loop_pearson(s, t) for s, t in zip(p_s, p_t, strict=True)])
    columns = [[list(column) for column in zip(*each, strict=True)] for each in (p_s, p_t)]
    over_images = mean([loop_pearson(s, t) for s, t in zip(*columns, strict=True)])
    return temperature**2 * (beta * (1 - rows) + gamma * (1 - over_images))


def loop_nkd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, gamma: float) -> float:
    values = []
    for (s, t), y in zip(rows_of(student, teacher), labels.tolist(), strict=True):
        target = -loop_softmax(t)[y] * math.log(loop_softmax(s)[y])
        q_s, q_t = (loop_softmax(without(row, y), temperature) for row in (s, t))
        others = -sum(a * math.log(b) for a, b in zip(q_t, q_s, strict=True))
        values.append(target + gamma * temperature**2 * others)
    return mean(values)


def loop_ttm(student: Tensor, teacher: Tensor, power: float, weighted: bool) -> float:
    values = []
    for s, t in rows_of(student, teacher):
        powers = [p**power for p in loop_softmax(t)]
        whole = sum(powers)
        apart = kl([h / whole for h in powers], loop_softmax(s))
        values.append(whole * apart if weighted else apart)
    return mean(values)


def loop_wsld(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, weight: float) -> float:
    values = []
    for (s, t), y in zip(rows_of(student, teacher), labels.tolist(), strict=True):
        mine, theirs = (-math.log(loop_softmax(row)[y]) for row in (s, t))
        soft = [
            -a * math.log(b) for a, b in zip(loop_softmax(t, temperature), loop_softmax(s, temperature), strict=True)
        ]
        values.append((1 - math.exp(-mine / (theirs + 1e-7))) * sum(soft))
    return weight * temperature**2 * mean(values)


def loop_rld(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float, beta: float) -> float:
    values = []
    for (s, t), y in zip(rows_of(student, teacher), labels.tolist(), strict=True):
        p_s, largest = loop_softmax(s), max(loop_softmax(t))
        sure = kl([largest, 1 - largest], [p_s[y], 1 - p_s[y]])
        below = [k for k in range(len(t)) if t[k] < t[y]]
        q_s, q_t = (loop_softmax([row[k] for k in below], temperature) if below else [] for row in (s, t))
        values.append(alpha * sure + beta * temperature**2 * kl(q_t, q_s))
    return mean(values)


def loop_abkd(student: Tensor, teacher: Tensor, temperature: float, a: float, b: float) -> float:
    values = []
    for s, t in rows_of(student, teacher):
        pairs = zip(loop_softmax(t, temperature), loop_softmax(s, temperature), strict=True)
        terms = [p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b) for p, q in pairs]
        values.append(-sum(terms) / (a * b))
    return mean(values)


def loop_virtual(
    student: Tensor, labels: Tensor, alpha: float, temperature: float, multiplier: float, correct: float
) -> float:
    hard, entries = [], []
    for s, y in zip(student.tolist(), labels.tolist(), strict=True):
        p = loop_softmax(s)
        rest = (1 - correct) / (len(p) - 1)
        targets = loop_softmax([correct if k == y else rest for k in range(len(p))], temperature)
        hard.append(-math.log(p[y]))
        entries += [v * math.log(v / q) for v, q in zip(targets, p, strict=True)]
    return (1 - alpha) * mean(hard) + alpha * multiplier * mean(entries)


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    variable = at.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(variable), variable)
    return found


def extremes() -> list[Tensor]:
    """Logits of five images and four classes of which one is 10,000 above or below the others."""
    one = torch.zeros(5, 4, dtype=torch.float64)
    one[:, 1] = EXTREME
    return [one, -one, EXTREME * draw(5, 4).sign(), one.float(), torch.zeros(5, 4)]
