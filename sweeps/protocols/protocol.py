"""A protocol: how a paper made a table, read from TOML, every value with its source, checked on load."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from bench.configure import by_role, configure
from bench.data.augment import check_augment
from bench.data.info import data_info
from bench.errors import InputError, unknown
from bench.networks.build import check_model
from bench.schema import Frozen
from bench.spec import NUMBERS, DataSpec, Recipe
from methods.base import Method
from results.analysis.literature import ORIGINS, Published, load
from results.analysis.paper_table import Measure

TEACHER = "teacher"
"""The method of a row that shows the pair's teacher."""
OWN = "our choice"
"""How a source starts that is none: the paper does not say."""
UNDECISIVE: Any = dict.fromkeys(
    ("name", "about", "paper", "table", "statistic", "seeds", "teacher_seeds", "short", "departures", "sources"), True
) | {"cells": {"__all__": {"printed", "numbers"}}}
"""Fields of a protocol that decide which runs there are and what is said of them, but no run's result."""


class Network(Frozen):
    """A network of the paper as one of ours."""

    name: str
    """By timm."""
    args: dict[str, Any] = {}
    pretrained: str = ""
    """A teacher's name by timm whose published weights teach, untrained by us; a student starts from random ones."""


class Pairing(Frozen):
    """A teacher and a student, by the names that the protocol's networks have: published.csv's."""

    teacher: str
    student: str
    recipe: dict[str, Any] = {}
    """Fields of the recipe in which this pair's students are trained otherwise."""

    @property
    def name(self) -> str:
        """As tables and plans name it."""
        return f"{self.teacher} -> {self.student}"


class Part(Frozen):
    """A share of the data that a part of the table is about."""

    name: str = ""
    """As published.csv has it."""
    data: dict[str, Any] = {}


class Number(Frozen):
    """A number of a row: where the paper's is, and where ours."""

    name: str = ""
    """What the row's label lacks, as "of which 3s"."""
    metric: Measure = ""
    """By default the protocol's."""
    published: dict[str, str] = {}
    """Fields of published.csv in which its row differs from the usual; {teacher} and {student} are the pair's."""
    prediction: str = ""
    """By default the headline."""
    student: str = ""
    """By default the first."""
    share: str = ""
    """The measured share behind it, as accuracy_omitted; by default that of the metric."""
    classes: tuple[int, ...] = ()
    """Whose images are counted, where not all."""
    incomparable: str = ""
    """Why it cannot be compared, if so."""


class Cell(Frozen):
    """A row of the table: what is trained."""

    label: Annotated[str, Field(pattern=r"^[^,]+$")]
    method: str
    """By id, or a composition such as "kd+at"; "teacher" is the pair's teacher."""
    params: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    pairs: tuple[str, ...] = ()
    """Of these pairs alone."""
    parts: tuple[str, ...] = ()
    """Of these parts alone."""
    printed: bool = True
    """Whether the paper's table has it."""
    given_teacher: bool | None = None
    """Whether it is given the teacher; by default if its method learns from one."""
    numbers: Annotated[tuple[Number, ...], Field(min_length=1)] = (Number(),)

    def configured(self) -> Method:
        """The method with its hyperparameters."""
        return configure(self.method, self.params)

    @property
    def taught(self) -> bool:
        """Whether a teacher is trained for it."""
        return self.configured().needs_teacher if self.given_teacher is None else self.given_teacher


class Short(Frozen):
    """What --scale short changes."""

    recipe: dict[str, Any] = {}
    teacher: dict[str, Any] = {}
    data: dict[str, Any] = {}
    parts: tuple[str, ...] = ()
    """Of the data, alone."""
    seeds: Annotated[int, Field(ge=1)] | None = None


class Protocol(Frozen):
    """How a table was made, as far as it is known."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    about: str = ""
    paper: str = ""
    table: str
    """Of published.csv."""
    metric: Measure = "accuracy_top1"
    statistic: Literal["mean", "median"]
    epoch: Literal["last", "best"]
    """Best is by validation; the test part never chooses."""
    seeds: Annotated[int, Field(ge=1)]
    teacher_seeds: Annotated[int, Field(ge=1)] = 1
    """Runs behind a teacher's own number; the first one teaches."""
    data: DataSpec
    parts: tuple[Part, ...] = (Part(),)
    networks: dict[str, Network]
    recipe: Recipe
    teacher: dict[str, Any] = {}
    """Fields of the recipe in which teachers' training differs."""
    pairs: Annotated[tuple[Pairing, ...], Field(min_length=1)]
    cells: Annotated[tuple[Cell, ...], Field(min_length=1)]
    short: Short = Short()
    departures: tuple[str, ...] = ()
    """In which we know to differ from the paper."""
    sources: dict[str, str]
    """By the dotted name of a value, or a pattern, or the beginning of one."""

    @model_validator(mode="after")
    def _right(self) -> Self:
        data_info(self.data.name)
        for pair in self.pairs:
            for name in (pair.teacher, pair.student):
                if name not in self.networks:
                    raise unknown(f"network of {self.name}", name, self.networks)
        for network in self.networks.values():
            for name in filter(None, (network.name, network.pretrained)):
                check_model(name)
        for values in [self.teacher, *(pair.recipe for pair in self.pairs), *(cell.recipe for cell in self.cells)]:
            check_augment(Recipe.model_validate(self.recipe.model_dump() | values).augment)
        for part in self.parts:
            DataSpec.model_validate(self.data.model_dump() | part.data)
        for cell in self.cells:
            if cell.method != TEACHER:
                cell.configured()
            self._check_names("pair", cell.pairs, self.pairs)
            self._check_names("part", cell.parts, self.parts)
        self._check_names("part", self.short.parts, self.parts)
        for kind, names in (("labels", [c.label for c in self.cells]), ("pairs", [p.name for p in self.pairs])):
            if len(set(names)) < len(names):
                raise ValueError(f"{kind} must differ, but got {names}")
        for pair, part, cell in self.rows():
            for number in cell.numbers if cell.printed else ():
                self.published(pair, part, cell, number)
        return self

    def _check_names(self, kind: str, named: tuple[str, ...], there: tuple[Pairing | Part, ...]) -> None:
        for name in named:
            if name not in (known := [each.name for each in there]):
                raise unknown(f"{kind} of {self.name}", name, known)

    def rows(self) -> Iterator[tuple[Pairing, Part, Cell]]:
        """Every row of the table."""
        for pair in self.pairs:
            for part in self.parts:
                for cell in self.cells:
                    whole = not part.name or cell.method != TEACHER
                    asked = (not cell.pairs or pair.name in cell.pairs) and (not cell.parts or part.name in cell.parts)
                    if asked and whole:
                        yield pair, part, cell

    def published(self, pair: Pairing, part: Part, cell: Cell, number: Number) -> Published:
        """The row of published.csv that a number stands for.

        Raises:
            InputError: if there is none, or rows of equal standing differ.
        """
        said = {key: value.format(**pair.model_dump()) for key, value in number.published.items()}
        wanted = {"table": self.table, "part": part.name, "method": cell.method, "variant": "", **pair_of(pair, cell)}
        wanted |= {"metric": number.metric or self.metric, **said}
        found = [
            row for row in _rows_of(self.table) if all(_fits(row, key, value, cell) for key, value in wanted.items())
        ]
        exact = [row for row in found if (row.teacher, row.student) == (wanted["teacher"], wanted["student"])]
        best = min((ORIGINS.index(row.origin) for row in exact or found), default=0)
        found = [row for row in exact or found if ORIGINS.index(row.origin) == best]
        if len({row.value for row in found}) != 1:
            values = f"rows of {sorted({row.value for row in found})}" if found else "no row"
            raise InputError(f"{self.name}: published.csv has {values} where {wanted} of {cell.label} is wanted.")
        return found[0]

    def digest(self, more: str = "") -> str:
        """8 hexadecimal digits for all that decides results, and for `more`."""
        values = self.model_dump(mode="json", exclude_defaults=True, exclude=UNDECISIVE)
        text = json.dumps([values, NUMBERS, more], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def source(self, path: str) -> str:
        """Where a value is from, by its dotted name; empty if nowhere."""
        fitting = [key for key in self.sources if fnmatch.fnmatch(path, key) or fnmatch.fnmatch(path, f"{key}.*")]
        return self.sources[max(fitting, key=lambda key: len(key.replace("*", "")))] if fitting else ""


@functools.cache
def _rows_of(table: str) -> tuple[Published, ...]:
    return tuple(row for row in load() if row.table == table)


def pair_of(pair: Pairing, cell: Cell) -> dict[str, str]:
    """The networks that a published row of a method names."""
    return {"teacher": pair.teacher, "student": "" if cell.method == TEACHER else pair.student}


def _fits(row: Published, key: str, value: str, cell: Cell) -> bool:
    """Whether a row has a value; networks that play no part may be named or not."""
    idle = {"student": TEACHER, "teacher": by_role("control")}
    return cell.method == idle.get(key) or str(getattr(row, key)) == value
