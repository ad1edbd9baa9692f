"""The body of `kdbench new-method`: a method's starting file, and a test of it."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template

from kdbench.bench.atomic import write
from kdbench.bench.environment import command
from kdbench.bench.errors import InputError
from kdbench.methods import REGISTRY

METHOD = Template('''\
"""$title: one sentence that says what the student learns from the teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdbench.methods.base import Losses, Method, Paper, Step, loss_weight, method
from kdbench.methods.checks import non_negative, same_shape


def match_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The term of the loss, a pure function: mean squared difference of the logits, each image's mean removed.

    Args:
        student_logits: (B, K)
        teacher_logits: (B, K)

    Raises:
        ValueError: if the shapes differ.
    """
    same_shape(student_logits, teacher_logits)
    mine, theirs = (each - each.mean(dim=1, keepdim=True) for each in (student_logits, teacher_logits))
    return F.mse_loss(mine, theirs)


@method
class $cls(Method):
    """Loss = the task's + weight * match_loss(student's logits, teacher's logits).

    Say here the equation and its number, every choice where the paper leaves room, and every departure from it.
    """

    paper = Paper("Title of the paper", "Authors", 2025, "https://arxiv.org/abs/...")
    # Which kind it is: "response" (the default), "feature", "relation", "self-attention" or "cross-modal".
    # What it reads beyond logits, if anything:  needs = frozenset({"features"})   ("pooled", "tokens", "qkv", ...)

    # A weight of a loss is searched around the value at which its term pulls as hard as the labels.
    weight: float = loss_weight(1.0, "match")
    # Another hyperparameter names its range:  temperature: float = tuned(4.0, FloatDistribution(1.0, 20.0, log=True))

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(weight=self.weight)

    # Modules that are trained along with the student, as a projection, come from `auxiliary_modules`; several stages,
    # students or kinds of data from `stages`. methods/base.py has both.

    def loss(self, step: Step) -> Losses:
        """Hard targets, and the teacher's logits (M, K)."""
        matched = match_loss(step.student.logits, step.teacher.logits)
        return {**step.task_loss(), "match": self.weight * matched}
''')
TEST = Template('''\
"""$cls: its term against a naive loop and a value worked by hand."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from kdbench.bench.outside import Source, load

HERE = Path(__file__).parent / "$name.py"
match_loss = load(Source("$name", HERE.read_bytes(), str(HERE))).match_loss


def naive(student: Tensor, teacher: Tensor) -> float:
    total = 0.0
    for mine, theirs in zip(student.tolist(), teacher.tolist()):
        for a, b in zip(mine, theirs):
            total += ((a - sum(mine) / len(mine)) - (b - sum(theirs) / len(theirs))) ** 2
    return total / student.numel()


def test_term_is_what_a_loop_gives() -> None:
    student, teacher = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    assert math.isclose(match_loss(student, teacher), naive(student, teacher), rel_tol=1e-5)


def test_term_worked_by_hand() -> None:
    # Without their means (1, -1) and (-1, 1): squares of 2 and -2, their mean is 4.
    assert match_loss(torch.tensor([[3.0, 1.0]]), torch.tensor([[0.0, 2.0]])) == 4.0
''')


def write_method(name: str, folder: Path) -> str:
    """Writes NAME.py and test_NAME.py; returns what to do next.

    Raises:
        InputError: if the name is none for a file, that of a built-in method, or the files are there.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise InputError(f"a method's file is named in small letters, digits and _, as my_method, but got {name!r}.")
    cls = "".join(part.capitalize() for part in name.split("_"))
    if name in REGISTRY or cls.lower() in REGISTRY:
        raise InputError(f"{name} is a built-in method: choose another name, so that tables tell them apart.")
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder} to write {name}.py into.")
    files = {folder / f"{name}.py": METHOD, folder / f"test_{name}.py": TEST}
    if there := [str(path) for path in files if path.exists()]:
        raise InputError(f"{' and '.join(there)} would be overwritten: remove it, or choose another name.")
    for path, template in files.items():
        write(path, template.substitute(name=name, cls=cls, title=name.replace("_", " ").capitalize()).encode())
    path, test = files
    kdbench = command("kdbench")
    return (
        f"{path} and {test} are written. Write the loss, then:\n"
        f"  {kdbench} check {path}\n  {command('pytest')} {test}\n  {kdbench} sweep digits --methods student,kd,{path}"
    )
