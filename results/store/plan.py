"""The plan of a sweep: which runs belong to it, written as they are started, so that tables can be made at any time.

STORE/suites/NAME/HASH/suite.json holds the suite, or the paper's table, as it was last run; plan.jsonl, a line for each
run. A suite whose protocol is changed gets another hash, so rows of different protocols never stand in one table.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from pydantic import ConfigDict, ValidationError, model_validator

from kdbench.bench.atomic import write
from kdbench.bench.errors import InputError, unknown
from kdbench.bench.record import ACCURACY, Metric
from kdbench.bench.schema import Frozen
from kdbench.bench.spec import Compute, DataSpec, Recipe, explain

PHASES = ("teacher", "trial", "seed")
LOCK = "plan.lock"
"""Held while a plan is written, as several drivers may."""
LABELS_ALONE, UNLABELLED = "labels alone", "unlabelled images too"
"""What methods are given that ask no teacher, and those that learn from images without labels."""


class PairRecord(Frozen):
    """A teacher, or several, and a student, by the names of their models."""

    model_config = ConfigDict(frozen=True, extra="allow")

    teacher: str
    """A network by timm's name or the literature's, trained by the suite unless it comes with weights."""
    more_teachers: tuple[str, ...] = ()
    """For methods that take several; the same name again is the same architecture from other random weights."""
    student: str
    """Likewise; it starts from random weights unless its name means published ones."""
    note: str = ""
    """What tells it from a pair of the same networks; part of its name."""
    methods: tuple[str, ...] = ()
    """Of this pair alone; by default the suite's."""

    @property
    def teachers(self) -> tuple[str, ...]:
        """All of them, the first one first."""
        return (self.teacher, *self.more_teachers)

    @property
    def name(self) -> str:
        """The pair as tables and studies name it."""
        return f"{' '.join(filter(None, (' + '.join(self.teachers), self.note)))} -> {self.student}"


class TuningRecord(Frozen):
    """The tuning budget of every method."""

    model_config = ConfigDict(frozen=True, extra="allow")

    trials: int
    warm_from: str = ""
    """The suite whose longer tuning gave one of the trials."""
    warm_trials: int = 0


class SuiteRecord(Frozen):
    """A suite, or a paper's table, as it was last run: what results read of it, and all else that sweeps wrote."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = ""
    about: str = ""
    data: DataSpec
    pairs: tuple[PairRecord, ...]
    methods: tuple[str, ...]
    recipe: Recipe = Recipe()
    teacher_fraction: float | None = None
    """Labelled share of the training part for teachers; None is the students'."""
    tuning: TuningRecord
    seeds: int
    show: Literal["last", "best"] = "last"
    """Which epoch tables show."""
    metric: Metric = ACCURACY
    """The primary one, by which runs are selected and compared."""
    control: str = "student"
    """The method without a teacher that gains are measured against."""
    baseline: str = "kd"
    """The distillation that a new method must beat."""
    given: dict[str, str] = {}
    """What each method learns from; rows are compared within such a group."""
    baselines: dict[str, str] = {}
    """The baseline of a group, where it has one of its own."""
    reasons: dict[str, str] = {}
    """Why a method does worse than the control, where that is known."""
    compute: dict[str, Compute] = {}
    """How each network is computed where that was chosen, by the network's identity."""
    calibrated: dict[str, dict[str, dict[str, float]]] = {}
    """By pair and row, the loss weights at which terms pull as hard as the task's own loss."""
    last_run: float = 0.0
    """Seconds since 1970; 0 if only the time of the file tells."""
    identity: str = ""
    """Of a paper's table: the digest of its protocol."""
    scale: str = ""
    """Of a paper's table: full or short."""
    reproduction: dict[str, Any] | None = None
    """Of a paper's table: the published numbers, and where ours are."""

    @model_validator(mode="before")
    @classmethod
    def _tables_own_metric(cls, values: Any) -> Any:
        """Papers' protocols have a field `metric` too, the column of the published number: it is kept as `measure`."""
        if isinstance(values, dict) and isinstance(values.get("metric"), str):
            values = {("measure" if name == "metric" else name): value for name, value in values.items()}
        return values

    def values(self) -> dict[str, Any]:
        """What was written, as JSON values."""
        return self.model_dump(mode="json", exclude_unset=True)

    def methods_of(self, pair: PairRecord) -> tuple[str, ...]:
        """The methods that are compared on a pair, in the suite's order."""
        return pair.methods or self.methods


@dataclass(frozen=True)
class Planned:
    """A run of a suite."""

    pair: str
    method: str
    phase: str
    """teacher, trial (tuning), or seed (the best setting again)."""
    number: int
    """Of the trial, or the seed."""
    key: str
    setting: dict[str, Any] = field(default_factory=dict)
    """Values of what is searched."""

    @property
    def place(self) -> tuple[str, str, str, int]:
        """Where it stands in the suite."""
        return (self.pair, self.method, self.phase, self.number)


class SweepPlan:
    """A suite's runs, in its folder."""

    def __init__(self, folder: Path) -> None:
        """Opens a plan.

        Args:
            folder: STORE/suites/NAME/HASH.

        Raises:
            InputError: if its suite cannot be read.
        """
        self.folder = folder
        self.damaged: list[int] = []
        """Lines of plan.jsonl that could not be read when it was last read; the next sweep plans their runs anew."""
        self.suite = read_suite((folder / "suite.json").read_bytes(), str(folder / "suite.json"))

    @classmethod
    def create(cls, store: Path, name: str, digest: str, suite: Mapping[str, Any]) -> SweepPlan:
        """The plan of a suite, made if it is new; `suite` takes the place of what was last run under this protocol.

        How networks are computed and what was calibrated is kept from the last time, unless `suite` says it. A torn
        last line, of a driver that died, is cut, and a damaged one: their runs are planned anew.
        """
        folder = store / "suites" / name / digest
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK):
            with contextlib.suppress(InputError, FileNotFoundError):
                known = cls(folder).suite.values()
                suite = {name: known[name] for name in ("compute", "calibrated") if known.get(name)} | dict(suite)
            write(folder / "suite.json", json.dumps(suite, indent=1).encode())
            plan = cls(folder)
            plan.started()
            lines = (folder / "plan.jsonl").read_bytes().split(b"\n")[:-1] if (folder / "plan.jsonl").exists() else []
            whole = [line + b"\n" for number, line in enumerate(lines, start=1) if number not in plan.damaged]
            write(folder / "plan.jsonl", b"".join(whole))
            return plan

    @classmethod
    def find(cls, store: Path, name: str) -> SweepPlan:
        """The plan of a suite by NAME (the protocol last run) or NAME@HASH.

        Raises:
            InputError: if there is none, or none that can be read.
        """
        name, _, digest = name.partition("@")
        name = Path(name).stem
        found = [path.parent for path in (store / "suites").glob(f"*/{digest}*/suite.json")]
        named = [path for path in found if path.parent.name == name]
        if not named:
            raise unknown(
                f"suite in the store {store}", name, {path.parent.name for path in found}, "kdbench sweep --help"
            )
        plans, damaged = list[SweepPlan](), list[InputError]()
        for path in named:
            try:
                plans.append(cls(path))
            except InputError as error:
                damaged.append(error)
        if not plans:
            raise damaged[0]
        return max(plans, key=lambda plan: plan.last_run)

    @property
    def last_run(self) -> float:
        """Seconds since 1970; an exported plan says it itself, as git keeps no times of files."""
        return self.suite.last_run or (self.folder / "suite.json").stat().st_mtime

    @property
    def name(self) -> str:
        """NAME@HASH."""
        return f"{self.folder.parent.name}@{self.folder.name}"

    def keep_compute(self, compute: Mapping[str, Compute]) -> None:
        """Adds how networks are computed, by their identities, so that other machines need not choose anew."""
        self._keep(compute, {})

    def keep_calibrated(self, pair: str, row: str, weights: Mapping[str, float]) -> None:
        """Adds the calibrated loss weights of a method on a pair."""
        self._keep({}, {pair: {row: dict(weights)}})

    def _keep(self, compute: Mapping[str, Compute], rows: Mapping[str, dict[str, dict[str, float]]]) -> None:
        """Adds to what the file has; what another driver of the suite has added there is kept."""
        with FileLock(self.folder / LOCK):
            now = read_suite((self.folder / "suite.json").read_bytes(), str(self.folder / "suite.json"))
            pairs = {
                pair: {**rows.get(pair, {}), **now.calibrated.get(pair, {})} for pair in {**now.calibrated, **rows}
            }
            found = {"compute": {**compute, **now.compute}, "calibrated": pairs}
            self.suite = self.suite.model_copy(update={name: value for name, value in found.items() if value})
            write(self.folder / "suite.json", json.dumps(self.suite.values(), indent=1).encode())

    def add(self, planned: Planned) -> None:
        """Appends a run."""
        with FileLock(self.folder / LOCK), (self.folder / "plan.jsonl").open("ab") as file:
            file.write(json.dumps(asdict(planned)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def started(self) -> list[Planned]:
        """Every run that was ever started under this protocol, once, as far as the plan can be read."""
        path, found, damaged = self.folder / "plan.jsonl", dict[tuple[str, str, str, int], Planned](), []
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1] if path.exists() else (), start=1):
            try:
                planned = Planned(**json.loads(line))
                found[planned.place] = planned
            except (ValueError, TypeError):
                damaged.append(number)
        self.damaged = damaged
        return list(found.values())

    def runs(self) -> list[Planned]:
        """Every run that was started, once, of the methods and pairs that the suite now has."""
        methods = {pair: self.methods(pair) for pair in self.pairs()}
        return [
            planned
            for planned in self.started()
            if planned.pair in methods
            and (planned.phase == "teacher" or planned.method in methods[planned.pair])
            and (planned.phase != "seed" or planned.number <= self.suite.seeds)
        ]

    def pairs(self) -> list[str]:
        """Names of the pairs, in the suite's order."""
        return [pair.name for pair in self.suite.pairs]

    def methods(self, pair: str) -> list[str]:
        """The methods that are compared on a pair, in the suite's order."""
        return next(list(self.suite.methods_of(each)) for each in self.suite.pairs if each.name == pair)

    def expected(self) -> int:
        """Runs of a whole sweep, teachers not counted."""
        runs = self.suite.tuning.trials + self.suite.seeds
        return sum(len(self.suite.methods_of(pair)) for pair in self.suite.pairs) * runs


def read_suite(text: str | bytes, origin: str) -> SuiteRecord:
    """A suite from JSON; fields of its data and recipe that this kdbench does not know are kept.

    Args:
        text: the JSON.
        origin: of the text, for the error.

    Raises:
        InputError: if it is no suite.
    """
    try:
        return SuiteRecord.model_validate_json(text, extra="allow")
    except ValidationError as error:
        raise InputError(f"{origin} is no suite that kdbench can read: {explain(error)}. Run it anew.") from None
