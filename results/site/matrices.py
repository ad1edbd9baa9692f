"""Confusion matrices as tables of shares, those of student and teacher side by side."""

from __future__ import annotations

from dataclasses import dataclass

from kdbench.results.analysis.training import Confusion, Matrix

MOST = 20
"""Classes that are shown: of more, those that the student confuses most."""


@dataclass(frozen=True)
class Shares:
    """A confusion matrix: of each class, the percentage that each decision took."""

    title: str
    classes: list[int]
    rows: list[list[int]]
    """(K, K), whole per cent of a class; the rows of classes without a sample are zeros."""
    right: float
    """Per cent of all decisions, also of classes that are not shown."""


def shares_of(found: Confusion) -> list[Shares]:
    """The student's matrix, and its teacher's if there is one, of the same classes."""
    kept = _most_confused(found.student)
    shown = [_shares(f"student, {found.seeds} seed(s)", found.student, kept)]
    return shown + ([_shares(f"teacher, {found.teachers} of them", found.teacher, kept)] if found.teacher else [])


def _most_confused(matrix: Matrix) -> list[int]:
    """The classes that are shown, in order."""
    wrong = [sum(row) - row[label] for label, row in enumerate(matrix)]
    order = sorted(range(len(matrix)), key=lambda label: (-wrong[label], label))
    return sorted(order[:MOST])


def _shares(title: str, matrix: Matrix, kept: list[int]) -> Shares:
    totals = [max(1, sum(row)) for row in matrix]
    rows = [[round(100 * matrix[label][other] / totals[label]) for other in kept] for label in kept]
    right = sum(row[label] for label, row in enumerate(matrix))
    return Shares(title, kept, rows, 100 * right / max(1, sum(map(sum, matrix))))
