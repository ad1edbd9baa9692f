"""What a terminal shows of the registry of methods; imports little, as it is often asked."""

from __future__ import annotations

import inspect
import sys
from dataclasses import asdict
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from rich import box
from rich.console import Console
from rich.table import Table

from bench.configure import configure
from methods import REGISTRY
from methods.base import Method


def method_values(name: str | None) -> dict[str, Any]:
    """The registry, or one method, as JSON values."""
    if name:
        return _values(configure(name, {}))
    return {"methods": [_values(configure(each, {})) for each in sorted(REGISTRY)]}


def methods_page() -> str:
    """The registry as a table."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("id", "paper", "knowledge", "searched (default)"):
        table.add_column(column, no_wrap=column in ("id", "paper", "knowledge"))
    for value in method_values(None)["methods"]:
        searched = ", ".join(f"{h['name']} ({h['default']})" for h in value["hyperparameters"] if h["space"])
        paper = f"{value['paper']['authors'].split(',')[0]} {value['paper']['year']}"
        table.add_row(value["id"], paper, value["knowledge"], searched)
    return _captured(table)


def method_page(name: str) -> str:
    """One method in full: its paper, what it says of itself, its hyperparameters."""
    method = configure(name, {})
    value = _values(method)
    paper = value["paper"]
    table = Table("hyperparameter", "default", "search space", box=box.SIMPLE_HEAD)
    for each in value["hyperparameters"]:
        table.add_row(each["name"], str(each["default"]), each["space"] or "fixed")
    head = f"{name}: {paper['title']}\n{paper['authors']} ({paper['year']}) {paper['link']}"
    needs = ", ".join(value["needs"]) or "logits alone"
    facts = f"knowledge: {value['knowledge']}; needs: {needs}; teacher: {'yes' if method.needs_teacher else 'no'}"
    return f"{head}\n{facts}\n\n{inspect.getdoc(type(method)) or ''}\n{_captured(table)}"


def methods_in_full(name: str | None) -> str:
    """The registry, or one method, as markdown: paper, what it does and where it departs, hyperparameters."""
    sections = []
    for value in [method_values(name)] if name else method_values(None)["methods"]:
        paper, method = value["paper"], configure(value["id"], {})
        module = inspect.getdoc(sys.modules[type(method).__module__]) or ""
        rows = [
            f"| `{each['name']}` | `{each['default']}` | {each['space'] or 'fixed'} |"
            for each in value["hyperparameters"]
        ]
        table = ["| hyperparameter | default | search space |", "| --- | --- | --- |", *rows] if rows else []
        cited = f"[{paper['title']}]({paper['link']})" if paper["link"] else paper["title"]
        facts = f"Knowledge: {value['knowledge']}. Needs: {', '.join(value['needs']) or 'logits alone'}."
        text = inspect.getdoc(type(method)) or ""
        sections.append(
            "\n".join(
                [
                    f"## {value['id']}",
                    "",
                    module,
                    "",
                    f"{paper['authors']} ({paper['year']}): {cited}.",
                    facts,
                    "",
                    text,
                    "",
                    *table,
                ]
            ).rstrip()
        )
    if name is None:
        sections.insert(0, "# The methods\n\nMade by `make docs` from the files in `methods/`.")
    return "\n\n".join(sections)


def _values(method: Method) -> dict[str, Any]:
    space = method.space()
    return {
        "id": method.id,
        "paper": asdict(method.paper),
        "knowledge": method.knowledge,
        "needs": sorted(method.needs),
        "needs_teacher": method.needs_teacher,
        "hyperparameters": [
            {"name": name, "default": value, "space": _space(space[name]) if name in space else ""}
            for name, value in method.hyperparameters().items()
        ],
    }


def _space(space: Any) -> str:
    if isinstance(space, CategoricalDistribution):
        return "one of " + ", ".join(map(str, space.choices))
    assert isinstance(space, FloatDistribution | IntDistribution)
    return f"{space.low:g} to {space.high:g}" + (", log" if space.log else "")


def _captured(table: Table) -> str:
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()
