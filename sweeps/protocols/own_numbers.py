"""Published numbers that a protocol brings itself, for a paper or a table that published.csv does not have."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from kdbench.bench.errors import InputError, unknown
from kdbench.bench.schema import Frozen
from kdbench.bench.spec import explain
from kdbench.results.analysis.literature import Published, load
from kdbench.results.analysis.paper_table import Measure

KEY = "published_numbers"
EXAMPLE = {"method": "kd", "teacher": "ResNet-56", "student": "ResNet-20", "value": 92.1, "source": "their Table 2"}


class OwnNumber(Frozen):
    """A number as its source prints it."""

    method: str
    """As the row of the protocol has it; "teacher" is the pair's teacher."""
    teacher: str = ""
    """As the pair has it; a row that learns from no teacher may go without."""
    student: str = ""
    """Likewise; a teacher's number may go without."""
    value: float = Field(ge=0, allow_inf_nan=False)
    """In the metric's unit: per cent of accuracy_ and error_, images of test_errors."""
    metric: Measure = ""
    """By default the protocol's."""
    part: str = ""
    """The share of the data, as the protocol's part has it."""
    variant: str = ""
    """What tells two numbers of one method apart; `numbers.published` of a row then says it too."""
    spread: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """The number after ±, in the metric's unit."""
    spread_kind: Literal["", "ci95", "std", "undefined"] = ""
    """What the spread is; a spread has one."""
    seeds: int | None = Field(default=None, ge=1)
    """Runs behind it."""
    year: int | None = None
    """Of the paper."""
    source: str = Field(min_length=1)
    """Where it is printed, as a footnote says it."""
    note: str = ""
    """What else a reader should know."""


def numbers_beside(path: Path, protocol: str) -> list[dict[str, Any]]:
    """The numbers of a CSV file, whose columns are the keys of an own number; an empty cell says nothing.

    Args:
        path: of the file.
        protocol: its name, for errors.

    Raises:
        InputError: if it cannot be read, or has no such columns.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"protocol {protocol}: {path}, named by {KEY}, cannot be read: {why}.") from None
    wrong = sorted({str(name) for line in lines for name in line} - OwnNumber.model_fields.keys())
    if wrong or not lines:
        what = f"the columns {', '.join(wrong)}, which are none" if wrong else "no row"
        raise InputError(
            f"protocol {protocol}: {path} has {what}: its first line names columns of "
            f"{', '.join(OwnNumber.model_fields)}, and each other line is a number."
        )
    return [{name: value for name, value in line.items() if value} for line in lines]


def as_published(number: OwnNumber, place: int, protocol: Any) -> Published:
    """An own number as a row of published.csv would have it.

    Args:
        number: of the protocol.
        place: which of its numbers, from 1.
        protocol: the protocol.

    Raises:
        InputError: if its value or spread cannot be.
    """
    values = number.model_dump() | {"metric": number.metric or protocol.metric}
    about = {
        "paper": _slug(protocol.paper or protocol.name),
        "title": protocol.about or protocol.name,
        "venue": "",
        "table": _slug(protocol.table),
        "dataset": _slug(protocol.data.name),
        "protocol": protocol.name,
        "origin": "first-hand",
        "place": "",
    }
    try:
        return Published.model_validate(about | values)
    except ValidationError as error:
        raise InputError(f"protocol {protocol.name}: {KEY}, number {place}: {explain(error)}") from None


def not_one(protocol: Any, row: Any, wanted: dict[str, str], found: list[Published]) -> InputError:
    """That a row has several numbers or none, and the way out.

    Args:
        protocol: the protocol.
        row: of it.
        wanted: what the number's fields should be.
        found: the numbers that have them, of several values, or none.
    """
    where = KEY if protocol.published_numbers else "published.csv"
    said = ", ".join(f"{name} {value!r}" for name, value in wanted.items() if value)
    if found:
        values = ", ".join(str(value) for value in sorted({each.value for each in found}))
        return InputError(f"{protocol.name}: {where} has {values} for {row.label} ({said}): tell them apart.")
    tables = {each.table for each in load()}
    if where != KEY and protocol.table not in tables:
        said += f"; {str(unknown('table of published.csv', protocol.table, tables)).rstrip('.')}"
    return InputError(
        f"{protocol.name}: {where} has no number of {row.label} ({said}): {_way_out(row.method, wanted)}."
    )


def _way_out(method: str, wanted: dict[str, str]) -> str:
    """How a number that is missing is given, as a line of a protocol."""
    pair = {name: wanted[name] for name in ("teacher", "student") if wanted[name]}
    text = ", ".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in pair.items())
    number = f'{{ method = "{method}", {text}, value = 92.1, source = "their Table 2" }}'
    return f"give it in the protocol, {KEY} = [{number}], or say printed = false in its row"


def _slug(name: str) -> str:
    found = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return found if found[:1].isalpha() else f"table_{found}"
