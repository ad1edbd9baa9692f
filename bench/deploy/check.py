"""Whether an exported student answers as ours does, and how good it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.bench.data.splits import EVALUATION_BATCH, Part
from kdbench.bench.deploy.formats import Answer
from kdbench.bench.deploy.student import Student
from kdbench.bench.errors import InputError
from kdbench.methods.rows import count, split, whole

TOLERANCE = 1e-3
"""The largest absolute difference between two logits of one image that an export may have."""
RECORDED = 0.02
"""The most by which a metric of the network alone may differ from what the run recorded, of one above 1 as a share:
a run in bfloat16 is of bfloat16, and here all is float32."""


@dataclass(frozen=True)
class Scored:
    """Answers for all images of a part."""

    logits: Tensor
    """(M, K), a row for each decision."""
    score: float
    """The task's primary metric."""


@torch.no_grad()
def scored(student: Student, answer: Answer, part: Part) -> Scored:
    """What an answer is worth on a part, batch by batch."""
    batches = [answer(whole(batch)).float() for batch in split(part.inputs, EVALUATION_BATCH)]
    logits = torch.cat([batch.movedim(1, -1).flatten(0, -2) for batch in batches])
    return Scored(logits, student.task.primary_value(logits, part.targets))


def difference(ours: Scored, theirs: Scored, what: str) -> float:
    """The largest absolute difference of two logits.

    Raises:
        InputError: if it is above the tolerance.
    """
    alike = ours.logits.shape == theirs.logits.shape
    worst = float((ours.logits - theirs.logits).abs().max()) if alike else float("nan")
    if not worst <= TOLERANCE:
        raise InputError(
            f"what was written as {what} does not answer as ours does: logits differ by up to {worst:.2g} on the test "
            f"part, more than {TOLERANCE:g}; nothing is kept. Export it in another format."
        )
    return worst


def check_recorded(student: Student, ours: Scored, part: Part, recorded: Callable[[str], float | None]) -> None:
    """Checks that the network alone is as good as its run recorded, by the primary metric and by what it is unsure of.

    Args:
        student: what was trained.
        ours: what it answers for the test part.
        part: the test part.
        recorded: gives the value of a metric that its run recorded, None for another.

    Raises:
        InputError: if it is not, as where a method decides with modules of its own.
    """
    found = student.task.evaluate(ours.logits, part.targets)
    for name in dict.fromkeys((student.task.primary.name, *found)):
        before = recorded(name)
        if before is not None and abs(found[name] - before) > RECORDED * max(1.0, abs(before)):
            raise InputError(
                f"the network alone has {name} {found[name]:.4g} on the test part, and its run recorded {before:.4g}: "
                f"{student.spec.method} decides with modules of its own beside the network, which no format carries."
            )


def one_of(part: Part) -> Tensor:
    """The first image (1, C, S, S) of a part."""
    assert count(part.inputs)
    first: Tensor = whole(next(iter(split(part.inputs, 1))))
    return first
