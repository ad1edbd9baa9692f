"""Where gradients go: to all that is trained, and to nothing else."""

from __future__ import annotations

import safetensors.torch
import torch
from torch import nn

from kdbench.bench.contract.open_run import OpenRun
from kdbench.bench.contract.rules import rule
from kdbench.bench.contract.toy import Toy, toy_data
from kdbench.bench.networks.signals import observe
from kdbench.methods.base import Net


def gradients_reach_what_they_should(toy: Toy) -> None:
    """They reach every part of the student that predicts and every auxiliary module; the teacher stands still."""
    opened = toy.opened()
    touched: set[str] = set()
    for _ in opened.all_updates():
        touched.update(name for name, value in parameters(opened) if has_gradient(value))
    own = {name for name, value in parameters(opened) if "/auxiliary/" in name and value.requires_grad}
    idle = sorted(own - touched)
    rule(not idle, f"no gradient reaches {_some(idle)}: use it in the loss, or leave it out of auxiliary_modules")
    wanted = deployed(opened)
    lost = sorted(wanted - touched)
    rule(bool(wanted), "no prediction depends on the student: predictions must use the student's signals")
    rule(not lost, f"no gradient reaches {_some(lost)}: the loss must use the student's signals, not detached ones")
    teacher = opened.networks.teacher(Net("teacher"))
    pulled = [name for name, value in teacher.named_parameters() if value.grad is not None]
    rule(not pulled, f"gradients reach the teacher's {_some(pulled)}: a teacher is asked by its signals alone")
    before, state = safetensors.torch.load(toy.teacher), teacher.state_dict()
    moved = [key for key in before if not torch.equal(state[key], before[key])]
    rule(not moved, f"the teacher's {_some(moved)} changed: only stages' students may be trained or written")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def parameters(opened: OpenRun) -> list[tuple[str, nn.Parameter]]:
    """Those of the students of the stage, and of their auxiliary modules, by student/part/name."""
    return [
        (f"{student.net.name}/{part}/{name}", value)
        for student in opened.students
        for part, module in (("network", student.network), ("auxiliary", student.auxiliary))
        for name, value in module.named_parameters()
    ]


def has_gradient(value: nn.Parameter) -> bool:
    """Whether a gradient that is not zero has reached a parameter."""
    return value.grad is not None and bool(value.grad.abs().sum() > 0)


def deployed(opened: OpenRun) -> set[str]:
    """The parameters on which any student's predictions depend."""
    found = set()
    held_out = toy_data().validation
    images, labels = held_out.inputs[:32].float() / 255, held_out.targets[:32]  # type: ignore[index]
    for student in opened.students:
        student.optimizer.zero_grad(set_to_none=True)
        signals = observe(student.network, images, labels, opened.setup.plan.needs, training=True)
        outputs = opened.method.predictions(signals, student.auxiliary).values()
        torch.stack([logits.square().sum() for logits in outputs]).sum().backward()
        found |= {name for name, value in parameters(opened) if value.grad is not None}
    return found
