"""What a method says of itself: its paper, its search space, what it is given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdbench.bench.configure import configure
from kdbench.bench.contract.rules import rule
from kdbench.bench.contract.toy import Toy
from kdbench.methods.base import KNOWLEDGE, SAMPLES, SIGNALS, Data, Net


def says_where_it_comes_from(toy: Toy) -> None:
    """It names its paper, and its docstring says the loss."""
    cls = type(toy.method)
    paper = cls.paper
    rule(bool(paper.title and paper.authors), "its paper lacks a title or authors: Paper(title, authors, year, link)")
    rule(1980 < paper.year < 2100, f"its paper is of the year {paper.year}")
    own = cls.__dict__.get("__doc__") or ""
    rule(
        len(own) > 80 and not own.startswith(f"{cls.__name__}("),
        "its class's docstring must say the loss as an equation, its choices and its departures from the paper",
    )
    unknown = toy.method.needed() - SIGNALS - SAMPLES
    rule(not unknown, f"it needs {sorted(unknown)}; there are {sorted(SIGNALS | SAMPLES)}")
    rule(cls.knowledge in KNOWLEDGE, f"its knowledge is one of {KNOWLEDGE}")


def defaults_lie_in_the_search_space(toy: Toy) -> None:
    """Every default is one that tuning could draw."""
    parameters = toy.method.hyperparameters()
    for name, space in toy.method.space().items():
        rule(name in parameters, f"space() names {name}, which is no hyperparameter")
        value = parameters[name]
        inside = space._contains(space.to_internal_repr(value))
        rule(inside, f"the default {name}={value} is outside of {space}: widen the range given to tuned()")


def says_what_it_is_given(toy: Toy) -> None:
    """It says whether its data have images without labels."""
    data = Data(inputs=_dark(6), targets=torch.arange(6) % 3, unlabelled=_dark(9) + 200, classes=3)
    options: list[dict[str, Any]] = [{"unlabelled": value} for value in (True, False)]
    for params in options if "unlabelled" in toy.method.hyperparameters() else [{}]:
        method = configure(toy.name, params)
        given = [stage.data(data, Oracle()).inputs for stage in method.stages((Net("teacher"),))]
        uses = any(bool((images > 200).any()) for images in given if isinstance(images, Tensor))
        says = method.uses_unlabelled()
        rule(uses == says, f"uses_unlabelled() says {says}, but its stages' data {'have' if uses else 'lack'} them")


def _dark(count: int) -> Tensor:
    """Images of at most 50, all of them different."""
    return torch.randint(0, 50, (count, 1, 8, 8), generator=torch.Generator().manual_seed(count), dtype=torch.uint8)


class Oracle:
    """The networks of a run as a stage's data may use them: each is sure of class 0."""

    def predict(self, net: Net, inputs: Any) -> Tensor:
        """Logits (N, 3)."""
        return torch.tensor([9.0, 0.0, 0.0]).expand(len(inputs), 3)

    def generator(self, name: str) -> torch.Generator:
        """Seeded."""
        return torch.Generator().manual_seed(0)

    def model(self, net: Net) -> torch.nn.Module:
        """None is needed for data."""
        raise NotImplementedError("a stage's data depend on what networks predict, not on their parts.")

    def share_normalisation(self, net: Net, source: Net) -> None:
        """Nothing to share."""
