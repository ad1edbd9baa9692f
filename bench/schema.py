"""The base of every schema that is written to a file or a database: typed, immutable, strict about names."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Finite(Frozen):
    """Of which every number is finite: what a person may set."""

    model_config = ConfigDict(allow_inf_nan=False)
