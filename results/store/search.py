"""What a search for a student has written beside its plan: the limits, and the candidates that are within them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from kdbench.bench.atomic import write
from kdbench.bench.errors import InputError
from kdbench.bench.schema import Frozen
from kdbench.bench.spec import explain

FILE = "search.json"


class Limits(Frozen):
    """Which students are looked at."""

    students: tuple[str, ...]
    """Names of models, or patterns as mobilenetv3*."""
    parameters: int | None = None
    """The most that a student may have."""
    latency_ms: float | None = None
    """The most milliseconds that one image may take."""

    @property
    def cost(self) -> Literal["latency", "parameters"]:
        """What accuracy is weighed against: latency where it is limited, else size."""
        return "parameters" if self.latency_ms is None else "latency"


class Candidate(Frozen):
    """A student within the limits, as it was measured once, before any training."""

    name: str
    parameters: int
    latency_ms: float
    """Median for one image."""
    latency_low: float
    """First quartile."""
    latency_high: float
    """Third quartile."""
    latency_quiet: bool = True
    """Whether the core was quiet: else the time is of other work too."""


class Search(Frozen):
    """A search for a student."""

    limits: Limits
    candidates: tuple[Candidate, ...]
    left_out: tuple[str, ...] = ()
    """Which students were left out, and why."""

    def cost(self, student: str) -> float:
        """What accuracy is weighed against, of a candidate by name."""
        found = next(each for each in self.candidates if each.name == student)
        return found.latency_ms if self.limits.cost == "latency" else float(found.parameters)


def keep_search(folder: Path, search: Search) -> None:
    """Writes a search beside a plan."""
    write(folder / FILE, search.model_dump_json(indent=1).encode())


def kept_search(folder: Path) -> Search | None:
    """The search that was written beside a plan; None if there is none.

    Raises:
        InputError: if it cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return Search.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(f"{path} cannot be read ({explain(error)}): remove it and run again.") from None
