"""A protocol: how a paper made a table, read from TOML, every value with its source, checked on load."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from kdbench.bench.configure import by_role, configure
from kdbench.bench.data.augment import check_augment
from kdbench.bench.data.info import data_info
from kdbench.bench.errors import unknown
from kdbench.bench.networks.build import check_model
from kdbench.bench.schema import Frozen
from kdbench.bench.spec import NUMBERS, DataSpec, Recipe
from kdbench.methods.base import Method
from kdbench.results.analysis.literature import ORIGINS, Published, load
from kdbench.results.analysis.paper_table import Measure
from kdbench.sweeps.protocols.own_numbers import KEY, OwnNumber, as_published, not_one

TEACHER = "teacher"
"""The method of a row that shows the pair's teacher."""
OWN = "our choice"
"""How the source of a value starts that the paper does not say."""
DESCRIBING = ("name", "about", "paper", "table", "statistic", "margin", "seeds", "teacher_seeds", "short", "departures")
UNDECISIVE: Any = dict.fromkeys((*DESCRIBING, "sources", KEY), True) | {"cells": {"__all__": {"printed", "numbers"}}}
"""Fields of a protocol that decide which runs there are and what is said of them, but no run's result."""


class PaperNetwork(Frozen):
    """A network of the paper as one of ours."""

    name: str
    """The name of a timm model."""
    args: dict[str, Any] = {}
    """Arguments of its constructor."""
    pretrained: str = ""
    """A timm model whose published weights teach, untrained by us. A student starts from random weights anyhow."""


class Pairing(Frozen):
    """A teacher and a student, by the names that the protocol's networks have: published.csv's."""

    teacher: str
    student: str
    recipe: dict[str, Any] = {}
    """Fields of the recipe in which this pair's students are trained otherwise."""

    @property
    def name(self) -> str:
        """The pair as tables and plans name it."""
        return f"{self.teacher} -> {self.student}"


class Subset(Frozen):
    """A share of the data, on which all rows of the table are trained anew."""

    name: str = ""
    """As the column "part" of published.csv has it; empty for all data."""
    data: dict[str, Any] = {}
    """Fields of the protocol's data in which this share differs."""


class Number(Frozen):
    """A number of a row: where the paper's is, and where ours."""

    name: str = ""
    """What is added to the row's label, as "of which 3s"."""
    metric: Measure = ""
    """The column "metric" of published.csv; by default the protocol's."""
    published: dict[str, str] = {}
    """Fields of published.csv in which its row differs from the usual; {teacher} and {student} are the pair's."""
    prediction: str = ""
    """The prediction of ours that is compared; by default the headline."""
    best_of: tuple[str, ...] = ()
    """In the place of `prediction`: those of which, in each run, the one that is best on validation is compared."""
    student: str = ""
    """The student of ours that is compared; by default the first."""
    share: str = ""
    """The measured share behind the number, as accuracy_omitted; by default that of the metric."""
    classes: tuple[int, ...] = ()
    """The classes whose images are counted; by default all."""
    incomparable: str = ""
    """Why the number cannot be compared, if so, as one that the paper selected on the test part."""


class Row(Frozen):
    """A row of the table: what is trained."""

    label: Annotated[str, Field(pattern=r"^[^,]+$")]
    """As the paper names the row; no comma."""
    method: str
    """A method's id, or a composition such as "kd+at"; "teacher" is the pair's teacher."""
    params: dict[str, Any] = {}
    """Hyperparameters of the method that are not at their defaults."""
    recipe: dict[str, Any] = {}
    """Fields of the recipe in which this row's students are trained otherwise."""
    pairs: tuple[str, ...] = ()
    """Names of the pairs that the row is on; all by default."""
    parts: tuple[str, ...] = ()
    """Names of the subsets of the data that the row is on; all by default."""
    printed: bool = True
    """Whether the paper's table has the row."""
    given_teacher: bool | None = None
    """Whether the method is given the teacher; by default if it learns from one."""
    numbers: Annotated[tuple[Number, ...], Field(min_length=1)] = (Number(),)
    """Its numbers, by default the protocol's metric alone."""

    def configured(self) -> Method:
        """The method with its hyperparameters."""
        return configure(self.method, self.params)

    @property
    def needs_teacher(self) -> bool:
        """Whether the pair's teacher is trained for it."""
        return self.configured().needs_teacher if self.given_teacher is None else self.given_teacher


class Short(Frozen):
    """What --scale short changes."""

    recipe: dict[str, Any] = {}
    """Fields of the recipe of students and teachers."""
    teacher: dict[str, Any] = {}
    """Fields of the recipe in which, beyond that, teachers' training differs."""
    data: dict[str, Any] = {}
    """Fields of the data."""
    parts: tuple[str, ...] = ()
    """Names of the only subsets of the data; by default all."""
    seeds: Annotated[int, Field(ge=1)] | None = None
    """Seeds of each row; by default the protocol's."""


class Protocol(Frozen):
    """How a paper's table was made, as far as it is known."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    about: str = ""
    """A sentence that its pages show."""
    paper: str = ""
    """As published.csv names it."""
    table: str
    """The table's name in published.csv; whatever name where `published_numbers` are given."""
    published_numbers: tuple[OwnNumber, ...] = Field(default=(), exclude_if=lambda numbers: not numbers)
    """The paper's numbers where published.csv does not have them: tables, or the path of a CSV file beside this one."""
    metric: Measure = "accuracy_top1"
    """The measure of its numbers, in the paper's unit."""
    statistic: Literal["mean", "median"]
    """Of the seeds, as the paper prints it."""
    epoch: Literal["last", "best"]
    """Which epoch the numbers are of; the best is chosen on validation, never on test."""
    margin: dict[Measure, Annotated[float, Field(gt=0)]]
    """By measure, in its unit: a difference from the paper that does not matter, declared before it is run."""
    seeds: Annotated[int, Field(ge=1)]
    """Runs behind each number."""
    teacher_seeds: Annotated[int, Field(ge=1)] = 1
    """Runs behind a teacher's own number; the first one teaches."""
    data: DataSpec
    parts: tuple[Subset, ...] = (Subset(),)
    """Shares of the data; by default all of them alone."""
    networks: dict[str, PaperNetwork]
    """By the paper's names."""
    recipe: Recipe
    """By which students are trained."""
    teacher: dict[str, Any] = {}
    """Fields of the recipe in which teachers' training differs."""
    pairs: Annotated[tuple[Pairing, ...], Field(min_length=1)]
    """By the names of its networks."""
    cells: Annotated[tuple[Row, ...], Field(min_length=1)]
    """The rows of the table, on each pair."""
    short: Short = Short()
    """What `--scale short` changes; its numbers are never comparable."""
    departures: tuple[str, ...] = ()
    """In what our runs are known to differ from the paper's."""
    sources: dict[str, str]
    """Where each value is from: by its dotted name, the beginning of one, or a pattern of fnmatch."""

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
        for values in [self.teacher, *(pair.recipe for pair in self.pairs), *(row.recipe for row in self.cells)]:
            check_augment(Recipe.model_validate(self.recipe.model_dump() | values).augment)
        for subset in self.parts:
            DataSpec.model_validate(self.data.model_dump() | subset.data)
        for row in self.cells:
            if row.method != TEACHER:
                row.configured()
            self._check_names("pair", row.pairs, self.pairs)
            self._check_names("part", row.parts, self.parts)
        self._check_names("part", self.short.parts, self.parts)
        for kind, names in (("labels", [c.label for c in self.cells]), ("pairs", [p.name for p in self.pairs])):
            if len(set(names)) < len(names):
                raise ValueError(f"{kind} must differ, but got {names}")
        for pair, subset, row in self.rows():
            for number in row.numbers if row.printed else ():
                self.published(pair, subset, row, number)
                if (metric := number.metric or self.metric) not in self.margin:
                    raise ValueError(f"there is no margin for {metric}.")
        return self

    def _check_names(self, kind: str, named: tuple[str, ...], there: tuple[Pairing | Subset, ...]) -> None:
        for name in named:
            if name not in (known := [each.name for each in there]):
                raise unknown(f"{kind} of {self.name}", name, known)

    def rows(self) -> Iterator[tuple[Pairing, Subset, Row]]:
        """Every row of the table."""
        for pair in self.pairs:
            for subset in self.parts:
                for row in self.cells:
                    whole = not subset.name or row.method != TEACHER
                    asked = (not row.pairs or pair.name in row.pairs) and (not row.parts or subset.name in row.parts)
                    if asked and whole:
                        yield pair, subset, row

    def published(self, pair: Pairing, subset: Subset, row: Row, number: Number) -> Published:
        """The row of published.csv that a number stands for.

        Raises:
            InputError: if there is none, or rows of equal standing differ.
        """
        said = {key: value.format(**pair.model_dump()) for key, value in number.published.items()}
        wanted = {"part": subset.name, "method": row.method, "variant": "", **pair_of(pair, row)}
        wanted |= {"metric": number.metric or self.metric, **said}
        table = self._known()
        found = [each for each in table if all(_fits(each, key, value, row) for key, value in wanted.items())]
        exact = [each for each in found if (each.teacher, each.student) == (wanted["teacher"], wanted["student"])]
        best = min((ORIGINS.index(each.origin) for each in exact or found), default=0)
        found = [each for each in exact or found if ORIGINS.index(each.origin) == best]
        if len({each.value for each in found}) != 1:
            raise not_one(self, row, wanted, found)
        return found[0]

    def _known(self) -> tuple[Published, ...]:
        """The numbers of the table: the protocol's own, or published.csv's."""
        own = self.published_numbers
        return tuple(as_published(each, place, self) for place, each in enumerate(own, 1)) or _published_in(self.table)

    def digest(self, more: str = "") -> str:
        """8 hexadecimal digits for all that decides results, and for `more`."""
        values = self.model_dump(mode="json", exclude_defaults=True, exclude=UNDECISIVE)
        text = json.dumps([values, NUMBERS, more], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def source(self, path: str) -> str:
        """Where a value is from, by its dotted name; empty if no source fits."""
        fitting = [key for key in self.sources if fnmatch.fnmatch(path, key) or fnmatch.fnmatch(path, f"{key}.*")]
        return self.sources[max(fitting, key=lambda key: len(key.replace("*", "")))] if fitting else ""


@functools.cache
def _published_in(table: str) -> tuple[Published, ...]:
    return tuple(row for row in load() if row.table == table)


def pair_of(pair: Pairing, row: Row) -> dict[str, str]:
    """The networks that a published row of a method names."""
    return {"teacher": pair.teacher, "student": "" if row.method == TEACHER else pair.student}


def _fits(published: Published, key: str, value: str, row: Row) -> bool:
    """Whether a published row has a value; networks that the method of ours does without may be named or not."""
    if str(getattr(published, key)) == value:
        return True
    return (key == "student" and row.method == TEACHER) or (key == "teacher" and row.method == by_role("control"))
