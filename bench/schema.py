"""The base of every schema that is written to a file or a database: typed, immutable, strict about names."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Finite(Frozen):
    """Of which every number is finite: what a person may set."""

    model_config = ConfigDict(allow_inf_nan=False)


def schema_at(schema: type[BaseModel], place: Sequence[int | str]) -> type[BaseModel] | None:
    """The schema of a table in a file, by the keys and indices that lead to it; None if it has none of its own."""
    found: type[BaseModel] | None = schema
    for step in place:
        if found is not None and step in found.model_fields:
            found = next(_schemas(found.model_fields[str(step)].annotation), None)
    return found


def _schemas(kind: Any) -> Iterator[type[BaseModel]]:
    """The schemas that a type is made of."""
    if inspect.isclass(kind) and issubclass(kind, BaseModel):
        yield kind
    for each in typing.get_args(kind):
        yield from _schemas(each)
