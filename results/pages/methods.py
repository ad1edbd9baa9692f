"""The registry of methods as reports: all of them, one in full, and the document of all in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kdbench.results.pages.numbers import rounded
from kdbench.results.pages.report import Block, Column, Report

INTRODUCTION = "# The methods\n\nMade by `make docs` from the files in `methods/`."

SETS = {"survey": "The survey's", "modern": "Those that today's papers compare with", "": "From outside"}
"""Titles of the sets, in their order."""


@dataclass(frozen=True)
class PaperFacts:
    """Where a method comes from."""

    title: str
    authors: str
    year: int
    link: str


@dataclass(frozen=True)
class HyperparameterFacts:
    """A hyperparameter of a method."""

    name: str
    default: Any
    space: str
    """What tuning searches, as "0.1 to 10, log"; empty if it does not."""


@dataclass(frozen=True)
class MethodFacts:
    """What a method says of itself."""

    id: str
    paper: PaperFacts
    knowledge: str
    needs: list[str]
    """Signals besides logits."""
    needs_teacher: bool
    hyperparameters: list[HyperparameterFacts]
    module: str
    """What its file says at its head."""
    about: str
    """What its class says: the loss, departures from the paper and choices."""
    equation: str = ""
    """The loss in LaTeX, a line for each equation; one from outside may have none."""
    collection: str = ""
    """Which set it belongs to: survey or modern; one from outside to none."""

    @property
    def needed(self) -> str:
        """Its needs as text."""
        return ", ".join(self.needs) or "logits alone"

    def values(self) -> dict[str, Any]:
        """All but the texts as JSON values."""
        return {name: value for name, value in asdict(self).items() if name not in ("module", "about")}


def methods_report(methods: Sequence[MethodFacts]) -> Report:
    """A line for each method, with what tuning searches; a table for each set."""
    columns = [Column("id", left=True), Column("paper", left=True), Column("knowledge", left=True)]
    columns.append(Column("searched (default)", left=True, wraps=True))
    rows: dict[str, list[list[str]]] = {title: [] for title in SETS.values()}
    for method in methods:
        defaults = {each.name: each.default for each in method.hyperparameters if each.space}
        searched = ", ".join(f"{name} ({rounded(value)})" for name, value in defaults.items())
        paper = f"{method.paper.authors.split(',')[0]} {method.paper.year}"
        rows[SETS[method.collection]].append([method.id, paper, method.knowledge, searched])
    values = {"methods": [method.values() for method in methods]}
    present = {title: each for title, each in rows.items() if each}
    blocks = [Block(title if len(present) > 1 else "", columns, each) for title, each in present.items()]
    return Report(name="methods", title="methods", blocks=blocks, values=values)


def method_report(method: MethodFacts, name: str) -> Report:
    """One method in full: its paper, what it says of itself, its hyperparameters.

    Args:
        method: what to show.
        name: how it was asked for, as a sum of methods may be.
    """
    columns = [Column(name, left=True, wraps=True) for name in ("hyperparameter", "default", "search space")]
    rows = [[each.name, str(each.default), each.space or "fixed"] for each in method.hyperparameters]
    paper, teacher = method.paper, "yes" if method.needs_teacher else "no"
    text = [
        f"{name}: {paper.title}",
        f"{paper.authors} ({paper.year}) {paper.link}",
        f"knowledge: {method.knowledge}; needs: {method.needed}; teacher: {teacher}",
        *method.equation.splitlines(),
        "",
        method.about,
    ]
    blocks = [Block("", columns, rows)]
    return Report(name="method", title=name, text=text, blocks=blocks, values=method.values())


def methods_document(methods: Sequence[MethodFacts], introduced: bool) -> Report:
    """Methods in full as a markdown document: paper, what each does and where it departs, hyperparameters.

    Args:
        methods: in the order of the document.
        introduced: whether the document starts with a title.
    """
    text = "\n\n".join([*([INTRODUCTION] if introduced else []), *map(_section, methods)])
    return Report(name="methods", title="The methods", text=[text])


def _section(method: MethodFacts) -> str:
    paper = method.paper
    cited = f"[{paper.title}]({paper.link})" if paper.link else paper.title
    rows = [f"| `{each.name}` | `{each.default}` | {each.space or 'fixed'} |" for each in method.hyperparameters]
    head = ["| hyperparameter | default | search space |", "| --- | --- | --- |"] if rows else []
    facts = f"Knowledge: {method.knowledge}. Needs: {method.needed}."
    lines = [f"## {method.id}", "", method.module, "", f"{paper.authors} ({paper.year}): {cited}.", facts]
    for equation in method.equation.splitlines():
        lines += ["", "```math", equation, "```"]
    return "\n".join([*lines, "", method.about, "", *head, *rows]).rstrip()
