"""What the tests of public losses share: random tensors, slow references in float64, and a loss with its reference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

LN3 = math.log(3)

Loss = Callable[[Tensor, Tensor], Tensor]
Loop = Callable[[Tensor, Tensor], float]
Shape = tuple[int, ...]


def draw(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def loop_softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    largest = max(row)
    powers = [math.exp((value - largest) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def loop_divergence(p: list[float], q: list[float]) -> float:
    return sum(p_k * math.log(p_k / q_k) for p_k, q_k in zip(p, q, strict=True))


def loop_kd(student: Tensor, teacher: Tensor, temperature: float) -> float:
    total = 0.0
    for student_row, teacher_row in zip(student.tolist(), teacher.tolist(), strict=True):
        total += loop_divergence(loop_softmax(teacher_row, temperature), loop_softmax(student_row, temperature))
    return temperature**2 * total / len(student)


def loop_unit(row: list[float]) -> list[float]:
    norm = math.sqrt(sum(value * value for value in row))
    return [value / norm for value in row]


def loop_pool(feature: Tensor, height: int, width: int, pool: str = "avg") -> Tensor:
    """A map (B, C, H, W) pooled to (B, C, height, width); windows overlap where the sizes do not divide."""
    rows, columns = feature.shape[2:]
    pooled = feature.new_zeros(*feature.shape[:2], height, width)
    for i in range(height):
        for j in range(width):
            window = feature[
                :,
                :,
                i * rows // height : math.ceil((i + 1) * rows / height),
                j * columns // width : math.ceil((j + 1) * columns / width),
            ]
            pooled[:, :, i, j] = window.amax(dim=(2, 3)) if pool == "max" else window.mean(dim=(2, 3))
    return pooled


def loop_cross_entropy(logits: Tensor, labels: Tensor) -> float:
    values: list[float] = []
    for row, probabilities in zip(logits.tolist(), labels.tolist(), strict=True):
        log_q = [math.log(q) for q in loop_softmax(row)]
        values += [-sum(p * v for p, v in zip(probabilities, log_q, strict=True))] if any(probabilities) else []
    return sum(values) / len(values)


def loop_top_gap(logits: Tensor, k: int) -> float:
    rows = [sorted(loop_softmax(row), reverse=True) for row in logits.tolist()]
    return sum(row[0] - sum(row[1:k]) / (k - 1) for row in rows) / len(rows)


def loop_averaged_kd(student: Tensor, teachers: list[Tensor], temperature: float) -> float:
    total = 0.0
    for student_row, *teacher_rows in zip(student.tolist(), *(t.tolist() for t in teachers), strict=True):
        softened = [loop_softmax(row, temperature) for row in teacher_rows]
        p = [sum(values) / len(values) for values in zip(*softened, strict=True)]
        total += loop_divergence(p, loop_softmax(student_row, temperature))
    return temperature**2 * total / len(student)


def loop_distances(feature: Tensor) -> list[list[float]]:
    rows = [loop_unit(row) for row in feature.flatten(1).tolist()]
    return [[sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) for second in rows] for first in rows]


def loop_dissimilarity(student: Tensor, teachers: list[Tensor], margin: float) -> float:
    distances, votes_of = loop_distances(student), [loop_distances(teacher) for teacher in teachers]
    values = []
    for i, j, k in itertools.permutations(range(len(student)), 3):
        votes = sum(1 if d[i][k] > d[i][j] else -1 if d[i][k] < d[i][j] else 0 for d in votes_of)
        if j < k and votes:
            values.append(max(0.0, margin - math.copysign(1, votes) * (distances[i][k] - distances[i][j])))
    return sum(values) / len(values)


def loop_embedding(student: Tensor, teacher: Tensor) -> float:
    pairs = [(loop_unit(s), loop_unit(t)) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    return sum(abs(a - b) for s, t in pairs for a, b in zip(s, t, strict=True)) / len(pairs)


def loop_cosines(first: Tensor, second: Tensor) -> list[list[float]]:
    rows, columns = ([loop_unit(row) for row in tensor.tolist()] for tensor in (first, second))
    return [[sum(a * b for a, b in zip(row, column, strict=True)) for column in columns] for row in rows]


def loop_nearest(rows: list[list[float]]) -> list[int]:
    others = [[j for j in range(len(rows)) if j != i] for i in range(len(rows))]
    return [min(js, key=lambda j, row=row: math.dist(row, rows[j])) for row, js in zip(rows, others, strict=True)]  # type: ignore[misc]


@dataclass(frozen=True)
class Case:
    """A loss of a student tensor and a teacher tensor, its slow reference, and the shapes to draw."""

    loss: Loss
    loop: Loop
    student_shape: Shape = (5, 4)
    teacher_shape: Shape = (5, 4)
    zero: bool = True
    """Whether the loss of a tensor and itself is zero."""

    @property
    def student(self) -> Tensor:
        return draw(*self.student_shape)

    @property
    def teacher(self) -> Tensor:
        return draw(*self.teacher_shape, seed=1)

    @property
    def value(self) -> Tensor:
        return self.loss(self.student, self.teacher)


def refuses(call: Callable[[], object], *shapes: Shape) -> None:
    """Asserts that a call raises a ValueError that names these shapes."""
    with pytest.raises(ValueError) as caught:
        call()
    for shape in shapes:
        assert str(shape) in str(caught.value)


def has_finite_gradient(loss: Callable[[Tensor], Tensor], *at: Tensor) -> bool:
    """Whether the loss and its gradient at each of these tensors are finite."""
    for point in at:
        variable = point.clone().requires_grad_()
        value = loss(variable)
        (gradient,) = torch.autograd.grad(value, variable)
        if not (value.isfinite() and gradient.isfinite().all()):
            return False
    return True
