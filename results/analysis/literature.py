"""The papers' numbers: results/published/published.csv, read, checked and searched."""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from kdbench.bench.errors import unknown
from kdbench.bench.schema import Frozen

FOLDER = Path(__file__).parents[1] / "published"
PublishedMeasure = Literal[
    "accuracy_top1", "accuracy_top1_best_epoch", "accuracy_top1_ensemble3", "accuracy_top5",
    "accuracy_frame", "accuracy_frame_train", "error_top1", "error_top5", "error_word",
    "test_errors", "test_errors_digit3", "rmse", "f1", "exact_match", "matthews", "pearson", "pearson_spearman",
    "score", "map_retrieval", "box_ap", "box_ap50", "mask_ap", "mask_ap_rare", "mask_ap_common", "mask_ap_frequent",
]  # fmt: skip
"""accuracy_ and error_ are per cent, test_errors counts images, rmse is from 0 to 1, the others are points of 100."""
Origin = Literal["first-hand", "quoted", "reimplementation"]
ORIGINS: tuple[Origin, ...] = ("first-hand", "quoted", "reimplementation")
"""From the best to the worst."""
MNIST_TEST_IMAGES = 10_000


class Published(Frozen):
    """A number as a source prints it; results/published/recipes.md says what the columns mean."""

    paper: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """The work that the number belongs to."""
    title: str = Field(min_length=1)
    venue: str
    year: int | None = Field(ge=1990, le=2030)
    table: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    dataset: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    part: str
    """The part of the data set, as "10 images a class" or "dev"; empty if it is the usual one."""
    teacher: str
    student: str
    method: str = Field(pattern=r"^([a-z0-9_]+|\w+@[0-9a-f]+)(\+([a-z0-9_]+|\w+@[0-9a-f]+))*$")
    variant: str
    metric: PublishedMeasure
    value: float = Field(ge=0, allow_inf_nan=False)
    spread: float | None = Field(ge=0, allow_inf_nan=False)
    """The number after ±, in the metric's unit."""
    spread_kind: Literal["", "ci95", "std", "undefined"]
    seeds: int | None = Field(ge=1)
    protocol: str = Field(min_length=1)
    """The heading in recipes.md under which the protocol is described."""
    origin: Origin
    source: str = Field(min_length=1)
    place: str
    """The table or section in the source."""
    note: str

    @model_validator(mode="after")
    def _in_range(self) -> Published:
        if self.value > {"images": MNIST_TEST_IMAGES, "": 1}.get(self.unit, 100):
            raise ValueError(f"{self.metric} cannot be {self.value}.")
        if self.unit == "images" and not (self.dataset == "mnist" and self.value.is_integer()):
            raise ValueError(f"{self.metric} counts images of MNIST, but got {self.value} of {self.dataset}.")
        if (self.spread is None) != (self.spread_kind == ""):
            raise ValueError(f"a spread has a kind, but got {self.spread=} and {self.spread_kind=}.")
        return self

    @property
    def unit(self) -> str:
        """%, images, points, or nothing for a number from 0 to 1."""
        if self.metric.startswith(("accuracy_", "error_")):
            return "%"
        return "images" if self.metric.startswith("test_errors") else "" if self.metric == "rmse" else "points"

    @property
    def ours(self) -> bool:
        """Whether every part of the method is one of kdbench's."""
        return not set(self.method.split("+")) & set(others())

    @property
    def quantity(self) -> str:
        """The metric, with errors as the accuracy they speak of."""
        return "accuracy_top1" if self.metric == "test_errors" else self.metric.replace("error_top", "accuracy_top")

    def accuracy(self) -> float | None:
        """Per cent right, of the metric's own kind (top-5 stays top-5); None where the metric is no such share."""
        if self.metric == "test_errors":
            return 100 - 100 * self.value / MNIST_TEST_IMAGES
        if self.metric in ("error_top1", "error_top5"):
            return round(100 - self.value, 6)
        return self.value if self.metric.startswith("accuracy_") else None

    def setting(self) -> tuple[str, ...]:
        """What two sources must share for their numbers to be of the same thing, apart from the protocol."""
        teacher = "" if self.method == "student" else self.teacher
        student = "" if self.method == "teacher" else self.student
        return (self.dataset, self.part, teacher, student, self.method, self.variant, self.quantity)


@functools.cache
def load() -> tuple[Published, ...]:
    """Every row, in the file's order.

    Raises:
        ValidationError: if the file breaks the schema.
    """
    blank = dict.fromkeys(("year", "spread", "seeds"))
    with (FOLDER / "published.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return tuple(Published.model_validate({**line, **{k: line[k] or None for k in blank}}) for line in lines)


@functools.cache
def others() -> dict[str, str]:
    """Methods of the literature that are not ours, and what they are."""
    with (FOLDER / "others.csv").open(newline="", encoding="utf-8") as file:
        return {line["method"]: line["what"] for line in csv.DictReader(file)}


def search(
    method: str | None = None,
    data: str | None = None,
    paper: str | None = None,
    table: str | None = None,
    teacher: str | None = None,
    student: str | None = None,
    text: str | None = None,
) -> tuple[Published, ...]:
    """Rows that meet every condition; case and punctuation of a name do not matter.

    Args:
        method: as at, which also finds sums that it is part of, or a sum, as kd+at.
        data: a data set, all its parts.
        paper: an id, as crd2020.
        table: an id, as crd2020_cifar100_same.
        teacher: a network; also finds it as a peer.
        student: a network.
        text: anything that a row says.

    Raises:
        InputError: for a name that no row has.
    """
    rows = load()
    conditions: list[tuple[str, str | None, Callable[[Published], set[str]]]] = [
        ("method", method, lambda row: {row.method} if "+" in (method or "") else {row.method, *row.method.split("+")}),
        ("data set", data, lambda row: {row.dataset}),
        ("paper", paper, lambda row: {row.paper}),
        ("table", table, lambda row: {row.table}),
        ("teacher", teacher, lambda row: {row.teacher, row.teacher.removeprefix("peer ")} - {""}),
        ("student", student, lambda row: {row.student} - {""}),
    ]
    found = list(rows)
    for kind, wanted, names in conditions:
        if wanted is None:
            continue
        known = {name for row in rows for name in names(row)}
        right = {name for name in known if _squashed(name) == _squashed(wanted)}
        if not right:
            raise unknown(f"published {kind}", wanted, known)
        found = [row for row in found if names(row) & right]
    if text is not None:
        found = [row for row in found if text.lower() in " ".join(map(str, row.model_dump().values())).lower()]
    return tuple(found)


@functools.cache
def conflicts() -> tuple[tuple[Published, ...], ...]:
    """Settings for which different sources print different values, each with all its rows."""
    settings: dict[tuple[str, ...], list[Published]] = {}
    for row in load():
        settings.setdefault(row.setting(), []).append(row)
    return tuple(tuple(rows) for rows in settings.values() if _disagree(rows))


def conflicting(found: Sequence[Published]) -> tuple[Published, ...]:
    """All rows of those settings of the found ones for which sources print other values, setting by setting."""
    settings = {row.setting() for row in found}
    return tuple(row for rows in conflicts() if rows[0].setting() in settings for row in rows)


def recipe(protocol: str) -> str:
    """The section of recipes.md that a protocol names.

    Raises:
        InputError: for one that is not there.
    """
    sections = re.split(r"^### ", (FOLDER / "recipes.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    texts = {section.split("\n", 1)[0].split(",")[0]: section.split("\n", 1)[1] for section in sections}
    if protocol not in texts:
        raise unknown("protocol", protocol, texts)
    return texts[protocol].split("\n## ")[0].strip()


def plain(row: Published) -> dict[str, Any]:
    """A row as JSON values, with what is derived."""
    return {**row.model_dump(mode="json"), "unit": row.unit, "ours": row.ours, "disputed": disputed(row)}


def disputed(row: Published) -> bool:
    """Whether another source prints another value for the row's setting."""
    return row.setting() in _conflicting()


@functools.cache
def _conflicting() -> frozenset[tuple[str, ...]]:
    return frozenset(rows[0].setting() for rows in conflicts())


def _disagree(rows: Sequence[Published]) -> bool:
    """Whether two sources print other values; two networks of one run in one source are no conflict."""
    values: dict[tuple[str, str], set[float]] = {}
    for row in rows:
        accuracy = row.accuracy()
        values.setdefault((row.paper, row.source), set()).add(row.value if accuracy is None else accuracy)
    return len({frozenset(each) for each in values.values()}) > 1


def _squashed(name: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", name.lower())
