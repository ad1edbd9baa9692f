"""What is asked for of a protocol: which rows on which pairs, at which scale, and the runs that this takes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kdbench.bench.configure import by_role
from kdbench.bench.data.info import check_stand_in
from kdbench.bench.errors import InputError, unknown
from kdbench.bench.spec import DataSpec, ModelSpec, Recipe, Spec
from kdbench.results.analysis.paper_table import Table, Wanted
from kdbench.sweeps.protocols.protocol import OWN, TEACHER, Pairing, Protocol, Row, Subset
from kdbench.sweeps.scheduling.forecast import Expected
from kdbench.sweeps.suites.suite import Way, compared_by, plainly, taught_by, teacher_runs

SCALES = ("full", "short")
SHORT_SCALE = "short scale"


@dataclass(frozen=True)
class TableRequest:
    """What of a protocol is asked for."""

    protocol: Protocol
    """At the scale, and with the data, that are asked for."""
    scale: str
    """full or short."""
    original: str
    """The paper's data set, which another may stand in for."""
    pairs: tuple[str, ...]
    """Names of the pairs."""
    labels: tuple[str, ...]
    """Labels of the rows."""
    parts: tuple[str, ...]
    """Names of the subsets of the data; a teacher's row is on none of them."""
    seeds: int
    """Seeds of each row."""

    @property
    def incomparable(self) -> str:
        """Why nothing of it can be compared with the paper; empty if it can."""
        stands_in = f"{self.protocol.data.name} stands in for {self.original}"
        reasons = (self.scale == "short", SHORT_SCALE), (self.protocol.data.name != self.original, stands_in)
        return "; ".join(reason for holds, reason in reasons if holds)

    def rows(self) -> Iterator[tuple[Pairing, Subset, Row]]:
        """The rows of the table that are asked for."""
        for pair, subset, row in self.protocol.rows():
            asked = subset.name in self.parts or row.method == TEACHER
            if pair.name in self.pairs and row.label in self.labels and asked:
                yield pair, subset, row

    def teachers(self, pair: Pairing, way: Way = plainly) -> tuple[Spec, ...]:
        """The runs that train a pair's teacher, as far as they are needed; the first one teaches."""
        protocol = self.protocol
        if protocol.networks[pair.teacher].pretrained:
            return ()
        rows = [row for each, _, row in self.rows() if each == pair]
        count = min(protocol.teacher_seeds, self.seeds) if any(row.method == TEACHER for row in rows) else 0
        if any(row.method != TEACHER and row.needs_teacher for row in rows):
            count = max(count, 1)
        recipe = self._teacher_recipe()
        return teacher_runs([way(self._model(pair.teacher), recipe)] * count, protocol.data, recipe)

    def teacher(self, pair: Pairing, way: Way = plainly) -> ModelSpec:
        """What teaches a pair's students: the first of `teachers`, or published weights."""
        network = self.protocol.networks[pair.teacher]
        if not network.pretrained:
            return taught_by(self.teachers(pair, way)[0])
        model = ModelSpec(name=network.pretrained, weights="pretrained", args=network.args)
        return way(model, self._teacher_recipe())

    def specs(self, pair: Pairing, subset: Subset, row: Row, way: Way = plainly) -> list[Spec]:
        """The runs of a row, with seeds 1, 2, ...; none of a teacher's own row."""
        if row.method == TEACHER:
            return []
        recipe = Recipe.model_validate(self.protocol.recipe.model_dump() | pair.recipe | row.recipe)
        method = row.configured()
        return [
            Spec(
                method=method.id,
                params=method.hyperparameters(),
                student=way(self._model(pair.student), recipe),
                teachers=(self.teacher(pair, way),) if row.needs_teacher else (),
                data=DataSpec.model_validate(self.protocol.data.model_dump() | subset.data),
                recipe=recipe,
                seed=seed,
            )
            for seed in range(1, self.seeds + 1)
        ]

    def expected(self) -> list[Expected]:
        """The runs that the request takes, by pair and row, its teachers' first."""
        pairs = {pair.name: self.teachers(pair) for pair in self.protocol.pairs}
        found = [
            Expected(name, "teacher", len(specs), specs[0].recipe.epochs) for name, specs in pairs.items() if specs
        ]
        for pair, subset, row in self.rows():
            if specs := self.specs(pair, subset, row):
                found.append(Expected(pair.name, row_name(subset, row), len(specs), specs[0].recipe.epochs))
        return found

    def record(self) -> dict[str, Any]:
        """What a plan keeps of the request, with the fields that a suite's has, as JSON values."""
        pairs = {pair.name: pair for pair, _, _ in self.rows()}
        rows: dict[str, list[str]] = {name: [] for name in pairs}
        for pair, subset, row in self.rows():
            if row.method != TEACHER:
                rows[pair.name].append(row_name(subset, row))
        own = {
            "measure": self.protocol.metric,
            "identity": self.protocol.digest(),
            "scale": self.scale,
            "pairs": [{"teacher": p.teacher, "student": p.student, "methods": rows[n]} for n, p in pairs.items()],
            "methods": list(dict.fromkeys(row for mine in rows.values() for row in mine)),
            "seeds": self.seeds,
            "show": self.protocol.epoch,
            "tuning": {"trials": 0},
            "reproduction": self._whole().table().values(),
        }
        return self.protocol.model_dump(mode="json") | compared_by(self.protocol.data) | own

    def table(self) -> Table:
        """The paper's table, or what of it is asked for."""
        protocol, wanted, notes = self.protocol, self.wanted(), []
        whole = sum(len(row.numbers) for _, _, row in protocol.rows())
        if len(wanted) < whole:
            notes.append(f"{len(wanted)} of the table's {whole} numbers are shown.")
        if self.scale == "short":
            notes.append(
                "Short scale, fewer epochs or images than the paper's: gains and order are shown, sizes not judged."
            )
        own = [name for name, text in protocol.sources.items() if text.startswith(OWN)]
        if own:
            says = f"kdbench tables {protocol.name} says what and why"
            notes.append(f"Not in the paper, {OWN}: {', '.join(own)} ({says}).")
        return Table(
            protocol.name,
            protocol.about,
            self.scale,
            protocol.data.name,
            protocol.statistic,
            protocol.epoch,
            self.seeds,
            self.incomparable,
            {name: value for name, value in protocol.margin.items()},
            wanted,
            list(protocol.departures),
            notes,
        )

    def wanted(self) -> list[Wanted]:
        """The paper's numbers of these rows, and where ours will be."""
        found, control = [], by_role("control")
        for pair, subset, row in self.rows():
            own = "taught" if self.protocol.networks[pair.teacher].pretrained else "teacher"
            for number in row.numbers:
                published = self.protocol.published(pair, subset, row, number) if row.printed else None
                found.append(
                    Wanted(
                        pair.name,
                        row_name(subset, row),
                        " ".join(filter(None, (row_name(subset, row), number.name))),
                        number.metric or self.protocol.metric,
                        published,
                        subset.name,
                        own if row.method == TEACHER else "seed",
                        number.prediction,
                        number.student,
                        number.share,
                        number.classes,
                        (published.student if published else "") or pair.student,
                        control in (row.method, published.method if published else ""),
                        number.incomparable,
                        number.best_of,
                    )
                )
        return found

    def _whole(self) -> TableRequest:
        """All rows that the table has at this scale."""
        pairs, parts = (tuple(each.name for each in some) for some in (self.protocol.pairs, self.protocol.parts))
        parts = (self.protocol.short.parts if self.scale == "short" else ()) or parts
        return replace(self, pairs=pairs, labels=tuple(row.label for row in self.protocol.cells), parts=parts)

    def _model(self, network: str) -> ModelSpec:
        return ModelSpec.model_validate(self.protocol.networks[network].model_dump(exclude={"pretrained"}))

    def _teacher_recipe(self) -> Recipe:
        return Recipe.model_validate(self.protocol.recipe.model_dump() | self.protocol.teacher)


def row_name(subset: Subset, row: Row) -> str:
    """A row as the plan names it."""
    return f"{row.label}, {subset.name}" if subset.name else row.label


def table_request(
    protocol: Protocol,
    scale: str = "full",
    pairs: str | None = None,
    methods: str | None = None,
    seeds: int | None = None,
    data: str | None = None,
    parts: str | None = None,
) -> TableRequest:
    """What is asked for of a protocol.

    Args:
        protocol: the table's.
        scale: full or short.
        pairs: names of pairs or networks, with commas; all by default.
        methods: labels of rows or methods, with commas; all by default.
        seeds: other than the protocol's.
        data: a data set that stands in.
        parts: shares of the data, with commas, as "2 %"; by default the scale's.

    Raises:
        InputError: for a name that the table does not have.
    """
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    check_stand_in(protocol.data.name, data or protocol.data.name)
    names = {pair.name: (pair.name, pair.teacher, pair.student) for pair in protocol.pairs}
    rows = {row.label: (row.label, row.method) for row in protocol.cells}
    shares = {each.name: (each.name or "all", each.name.partition(" of ")[0]) for each in protocol.parts}
    usual = ",".join(name or "all" for name in protocol.short.parts) if scale == "short" else None
    scaled = _scaled(protocol, data or protocol.data.name, scale)
    count = seeds or (protocol.short.seeds if scale == "short" else None) or protocol.seeds
    request = TableRequest(
        scaled,
        scale,
        protocol.data.name,
        _selected(f"pair of {protocol.name}", pairs, names),
        _selected(f"method of {protocol.name}", methods, rows),
        _selected(f"part of {protocol.name}", parts or usual or None, shares),
        count,
    )
    if not list(request.rows()):
        raise InputError(f"{protocol.name} has no row of these methods on these pairs and parts.")
    return request


def _scaled(protocol: Protocol, data: str, scale: str) -> Protocol:
    """A protocol with another data set, and cut short if asked for."""
    short = protocol.short if scale == "short" else type(protocol.short)()
    values = protocol.model_dump()
    values["data"] |= short.data | {"name": data}
    for each in (values, *values["pairs"], *values["cells"]):
        each["recipe"] |= short.recipe
    values["teacher"] |= short.recipe | short.teacher
    return Protocol.model_validate(values)


def _selected(kind: str, wanted: str | None, names: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The names of which one of the aliases is wanted, case and punctuation apart."""
    if wanted is None:
        return tuple(names)
    found: set[str] = set()
    for item in filter(None, (item.strip() for item in wanted.split(","))):
        mine = {name for name, aliases in names.items() if _squashed(item) in map(_squashed, aliases)}
        if not mine:
            raise unknown(kind, item, {alias for aliases in names.values() for alias in aliases})
        found |= mine
    return tuple(name for name in names if name in found)


def _squashed(name: str) -> str:
    return re.sub(r"[^a-z0-9+.=]", "", name.lower())
