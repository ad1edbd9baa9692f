"""What stands behind a table, as git can carry it: a folder for each suite or paper's table.

    FOLDER/NAME/plan.json        the suite or table as it was last run, its hash, and the SHA-256 of the other two files
                outcomes.jsonl   a sorted line for each run: its places in the plan, specification, result, SHA-256 of
                                 its records and of its files
                epochs.parquet   all epochs of all runs
                weights/SHA256.safetensors      of small teachers
                methods/SHA256/MODULE.py        of methods that are no part of this package

`kdbench export` writes it, and `kdbench import` makes a store of it from which sweeps go on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdbench.bench.atomic import write
from kdbench.bench.errors import InputError
from kdbench.bench.record import Epoch, Outcome, plain
from kdbench.bench.spec import Spec
from kdbench.results.store.epoch_table import packed, unpacked
from kdbench.results.store.files import PLAN, json_line, sha256
from kdbench.results.store.plan import PHASES, Planned, SuiteRecord, read_suite

OUTCOMES, EPOCHS, WEIGHTS = "outcomes.jsonl", "epochs.parquet", "weights"


@dataclass(frozen=True)
class KeptRun:
    """A run that came to a result, or was pruned, with all that evidence keeps of it."""

    key: str
    spec: dict[str, Any]
    """As it was written when the run was begun; the key is its hash."""
    status: str
    """done, diverged, unsupported; stopped."""
    reason: str
    outcome: Outcome | None
    started: float
    """Seconds since 1970."""
    ended: float
    epochs: list[Epoch]
    times: list[float]
    """When each epoch ended."""
    files: dict[str, str]
    """SHA-256 of the files of weights that the run left, whether or not they are kept."""

    def records(self) -> bytes:
        """The lines of its records.jsonl, without the host and process that carried it out."""
        lines: list[dict[str, Any]] = [{"event": "claim", "host": "", "pid": 0, "time": self.started}]
        for epoch, time in zip(self.epochs, self.times, strict=True):
            lines.append({"event": "epoch", "time": time, "epoch": plain(epoch)})
        if self.outcome:
            lines.append({"event": "outcome", "time": self.ended, "outcome": plain(self.outcome)})
        else:
            lines.append({"event": self.status, "time": self.ended, "reason": self.reason, "detail": ""})
        return b"".join(map(json_line, lines))

    def teachers(self) -> list[str]:
        """References of the weights that it learned from."""
        return [teacher.weights for teacher in Spec.model_validate(self.spec, extra="ignore").teachers]


@dataclass(frozen=True)
class Evidence:
    """What a folder of evidence says."""

    name: str
    digest: str
    suite: SuiteRecord
    places: list[Planned]
    runs: dict[str, KeptRun]
    """By key; those of `places` and no other."""

    @property
    def title(self) -> str:
        """NAME@HASH."""
        return f"{self.name}@{self.digest}"

    def weights(self) -> dict[str, str]:
        """SHA-256 of the weights of each teacher, by its reference."""
        taught = {reference for run in self.runs.values() for reference in run.teachers()}
        found = {f"run:{key}": run.files.get("last.safetensors", "") for key, run in self.runs.items()}
        found |= {reference: reference.removeprefix("sha256:") for reference in taught if reference[:7] == "sha256:"}
        return {reference: found[reference] for reference in sorted(taught) if found.get(reference)}

    def outcomes(self) -> bytes:
        """The file of outcomes: a line for each run, in the order of the suite's pairs and methods."""
        places: dict[str, list[dict[str, Any]]] = {}
        for each in in_order(self.suite, self.places):
            places.setdefault(each.key, []).append({k: v for k, v in asdict(each).items() if k != "key"})
        return b"".join(json_line(_line(self.runs[key], mine)) for key, mine in places.items())


def _line(run: KeptRun, places: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "key": run.key,
        "places": places,
        "status": run.status,
        "reason": run.reason,
        "spec": run.spec,
        "outcome": plain(run.outcome) if run.outcome else None,
        "started": run.started,
        "ended": run.ended,
        "records": sha256(run.records()),
        "files": run.files,
    }


def in_order(suite: SuiteRecord, places: Iterable[Planned]) -> list[Planned]:
    """Teachers first, then by pair and method in the suite's order; what has left the suite comes last."""
    pairs = {pair.name: (index, suite.methods_of(pair)) for index, pair in enumerate(suite.pairs)}

    def rank(each: Planned) -> tuple[Any, ...]:
        pair, methods = pairs.get(each.pair, (len(pairs), ()))
        method = methods.index(each.method) if each.method in methods else len(methods)
        phase = PHASES.index(each.phase)
        return (phase > 0, pair, each.pair, method, each.method, phase, each.number)

    return sorted(places, key=rank)


def joined_plans(
    first: tuple[SuiteRecord, Iterable[Planned]], second: tuple[SuiteRecord, Iterable[Planned]]
) -> tuple[SuiteRecord, list[Planned]]:
    """Two plans of one protocol as one: the suite that was run last, and the runs of both, of which its own win."""
    older, newer = sorted((first, second), key=lambda plan: plan[0].last_run)
    places = {each.place: each for each in older[1]} | {each.place: each for each in newer[1]}
    values = newer[0].values()
    compute = older[0].values().get("compute", {}) | values.get("compute", {})
    suite = read_suite(json.dumps(values | ({"compute": compute} if compute else {})), "the plan")
    return suite, list(places.values())


def write_evidence(evidence: Evidence, folder: Path) -> None:
    """Writes all but weights; what is there as it should be is not touched, and the plan comes last."""
    outcomes = evidence.outcomes()
    keys = [json.loads(line)["key"] for line in outcomes.splitlines()]
    if not (folder / PLAN).exists() or _read(folder, OUTCOMES) != outcomes:
        runs = (evidence.runs[key] for key in keys)
        write(folder / EPOCHS, packed({run.key: zip(run.times, run.epochs, strict=True) for run in runs}))
        write(folder / OUTCOMES, outcomes)
    says = {
        "evidence": 1,
        "name": evidence.name,
        "digest": evidence.digest,
        "files": {name: sha256(_read(folder, name)) for name in (EPOCHS, OUTCOMES)},
        "suite": evidence.suite.values(),
    }
    text = json.dumps(says | {"sha256": _seal(says)}, indent=1).encode() + b"\n"
    if not (folder / PLAN).exists() or _read(folder, PLAN) != text:
        write(folder / PLAN, text)


def read_evidence(folder: Path) -> Evidence:
    """What a folder of one suite says.

    Raises:
        InputError: if a file is missing, was edited or is damaged.
    """
    try:
        says = json.loads(_read(folder, PLAN))
        seal = says.pop("sha256", "")
    except (ValueError, AttributeError):
        raise _torn(folder, PLAN) from None
    if seal != _seal(says):
        raise _torn(folder, PLAN)
    for name, digest in says["files"].items():
        if sha256(_read(folder, name)) != digest:
            raise _torn(folder, name)
    epochs = unpacked(_read(folder, EPOCHS))
    places, runs = list[Planned](), dict[str, KeptRun]()
    names = [says["name"], says["digest"]]
    for line in map(json.loads, _read(folder, OUTCOMES).splitlines()):
        names.append(line["key"])
        key, mine, digest = line["key"], line.pop("places"), line.pop("records")
        timed = epochs.get(key, [])
        run = KeptRun(
            **line | {"outcome": Outcome(**line["outcome"]) if line["outcome"] else None},
            epochs=[epoch for _, epoch in timed],
            times=[time for time, _ in timed],
        )
        if sha256(run.records()) != digest:
            raise _torn(folder, EPOCHS)
        runs[key] = run
        places += [Planned(**place, key=key) for place in mine]
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise InputError(f"{folder}: suites and runs are named as folders are, but got {name!r}.")
    suite = read_suite(json.dumps(says["suite"]), str(folder / PLAN))
    return Evidence(says["name"], says["digest"], suite, places, runs)


def kept_weights(evidence: Evidence, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Reference and file of every teacher whose weights are in a folder of evidence.

    Raises:
        InputError: if a file is damaged.
    """
    for reference, digest in evidence.weights().items():
        path = weights_path(folder, digest)
        if path.exists():
            if sha256(file := path.read_bytes()) != digest:
                raise _torn(folder, f"{WEIGHTS}/{path.name}")
            yield reference, file


def weights_path(folder: Path, digest: str) -> Path:
    """Where evidence keeps weights of a SHA-256."""
    return folder / WEIGHTS / f"{digest}.safetensors"


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{folder} is no whole evidence: it lacks {name}. {_REMEDY}") from None


def _seal(says: Mapping[str, Any]) -> str:
    """The SHA-256 of what a plan says."""
    return sha256(json.dumps(says, sort_keys=True).encode())


def _torn(folder: Path, name: str) -> InputError:
    return InputError(f"{folder / name} is torn or was edited: its SHA-256 is not the one that was written. {_REMEDY}")


_REMEDY = "Take it from git again, or remove the folder and export anew."
