"""Every key of suites' and protocols' TOML files as a page: python -m kdbench.sweeps.cli.toml_reference, or make docs.

Types, defaults and meanings are those of the schemas that read the files; examples are of the bundled files.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
import tomllib
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from kdbench.bench.spec import DataSpec, Recipe
from kdbench.sweeps.protocols.own_numbers import EXAMPLE, KEY, OwnNumber
from kdbench.sweeps.protocols.protocol import Number, Pairing, PaperNetwork, Protocol, Row, Short, Subset
from kdbench.sweeps.suites.suite import Pair, Suite
from kdbench.sweeps.suites.tuning import Range, Tuning

FILLED_IN = {"name", "fingerprint", "warm", "warm_trials"}
"""Keys that kdbench fills in by itself; the name of the whole is the file's, that of other tables a user's."""
LONGEST = 200
"""Characters of a default that is shown."""
HEAD = """# All keys of TOML files

Made by `make docs` from the schemas that read the files. A key that is not here is refused; a value
of another type or out of range is refused with the rule. Examples are from the files that come with kdbench.
"""
SUITE_HEAD = """\
A suite is what `kdbench sweep` takes: see [your own data, pair and suite](own.md). `extends = "digits"` on top starts
from another suite's values; tables within it are changed key by key, so what is not said is taken over, as
the teachers' learning rate; lists are replaced."""
PROTOCOL_HEAD = "A protocol is what `kdbench reproduce` takes: see [papers' tables](reproduce.md)."


@dataclass(frozen=True)
class Table:
    """A table of a file, and what the bundled files say in it."""

    header: str
    model: type[BaseModel]
    said: list[dict[str, Any]]


@dataclass(frozen=True)
class Key:
    """A key of a table."""

    name: str
    type: str
    default: str
    meaning: str
    example: Any
    """A value that it may have."""


def page() -> str:
    """The page as markdown."""
    parts = [HEAD]
    for title, head, tables in (
        ("A suite", SUITE_HEAD, suite_tables()),
        ("A protocol", PROTOCOL_HEAD, protocol_tables()),
    ):
        parts.append(f"## {title}\n\n{head}\n")
        for table in tables:
            rows = "\n".join(
                f"| `{key.name}` | {_cell(key.type)} | {_cell(key.default)} | {_cell(key.meaning)} | "
                f"`{_cell(toml(key.example))}` |"
                for key in keys_of(table)
            )
            columns = "| key | type | default | meaning | example |\n| --- | --- | --- | --- | --- |"
            parts.append(f"### {table.header}\n\n{columns}\n{rows}\n")
    return "\n".join(parts)


def suite_tables() -> list[Table]:
    """The tables of a suite."""
    said = list(_bundled("suites"))
    tuning = _within(said, "tuning")
    return [
        Table("At the top", Suite, said),
        Table("[[pairs]]", Pair, _within(said, "pairs")),
        Table("[data]", DataSpec, _within(said, "data")),
        Table("[recipe], and in part [teacher]", Recipe, _within(said, "recipe")),
        Table("[tuning]", Tuning, tuning),
        Table("[tuning.search] and [tuning.ranges.ROW], for each number", Range, _values(tuning, "search")),
    ]


def protocol_tables() -> list[Table]:
    """The tables of a protocol; its data and recipe are those of a suite."""
    said = [*_bundled("protocols"), {KEY: [EXAMPLE]}]
    cells = _within(said, "cells")
    return [
        Table("At the top", Protocol, said),
        Table("[networks], for each of the paper's names", PaperNetwork, _values(said, "networks")),
        Table("[[pairs]]", Pairing, _within(said, "pairs")),
        Table(f"[[{KEY}]], or the columns of a CSV file", OwnNumber, [EXAMPLE]),
        Table("[[parts]]", Subset, _within(said, "parts")),
        Table("[[cells]]", Row, cells),
        Table("[[cells.numbers]]", Number, _within(cells, "numbers")),
        Table("[short]", Short, _within(said, "short")),
    ]


def keys_of(table: Table) -> Iterator[Key]:
    """The keys of a table that a person writes."""
    meanings = _meanings(table.model)
    top = table.model in (Suite, Protocol)
    for name, field in table.model.model_fields.items():
        if name in FILLED_IN and (top or name != "name"):
            continue
        default = "required" if field.is_required() else toml(field.get_default(call_default_factory=True))
        if len(default) > LONGEST:
            default = "all methods"
        yield Key(name, _type(field), default, meanings.get(name, ""), _example(name, field, table.said))


def toml(value: Any) -> str:
    """A value as a TOML file has it; a default table is said to be empty or by its own defaults."""
    if isinstance(value, BaseModel):
        return "by its keys"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_name(key)} = {toml(each)}" for key, each in value.items()) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _name(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() else json.dumps(key)


def _example(name: str, field: FieldInfo, said: list[dict[str, Any]]) -> Any:
    """The shortest value that a bundled file gives it, else the default."""
    values = [table[name] for table in said if table.get(name) not in (None, {}, []) and _whole(field, table[name])]
    if values:
        value = min(values, key=lambda value: len(toml(value)))
        return value[:1] if isinstance(value, list) and isinstance(value[0], dict) else value
    return field.get_default(call_default_factory=True)


def _whole(field: FieldInfo, value: Any) -> bool:
    """Whether a value stands alone, without what a suite that its own extends says."""
    try:
        TypeAdapter(field.annotation or Any).validate_python(value)
    except ValidationError:
        return False
    return True


def _type(field: FieldInfo) -> str:
    """A field's type with its limits, as a person says it."""
    limits = [rule for each in field.metadata if (rule := _rule(each))]
    return ", ".join([_spelt(field.annotation), *limits])


def _rule(constraint: Any) -> str:
    signs = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most", "min_length": "of at least"}
    return ", ".join(f"{sign} {getattr(constraint, name)}" for name, sign in signs.items() if hasattr(constraint, name))


def _spelt(kind: Any, several: bool = False) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " or ".join(map(toml, arguments))
    if origin is typing.Annotated:
        return _spelt(arguments[0], several)
    if origin is tuple:
        return f"list{'s' * several} of {_spelt(arguments[0], True)}"
    if origin is dict:
        return f"table{'s' * several} of {_spelt(arguments[1], True)}"
    if arguments:
        return " or ".join(_spelt(each) for each in arguments if each is not type(None))
    if inspect.isclass(kind) and issubclass(kind, BaseModel):
        return "table" + "s" * several
    names = {str: "text", int: "whole number", float: "number"}
    return "true or false" if kind is bool else names.get(kind, "value") + "s" * several


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """The sentences below the fields of a schema and of those that it extends."""
    found: dict[str, str] = {}
    for each in reversed([base for base in model.__mro__ if issubclass(base, BaseModel) and base.model_fields]):
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


def _bundled(kind: str) -> Iterator[dict[str, Any]]:
    for path in sorted((resources.files("kdbench.sweeps") / kind).iterdir(), key=lambda path: path.name):
        if path.name.endswith(".toml"):
            yield tomllib.loads(path.read_text())


def _within(tables: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The tables of this name in tables; those of an array one by one."""
    found = [table[name] for table in tables if name in table]
    return [each for value in found for each in (value if isinstance(value, list) else [value])]


def _values(tables: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """What stands in the tables of this name, under whatever keys."""
    return [each for table in _within(tables, name) for each in table.values() if isinstance(each, dict)]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
