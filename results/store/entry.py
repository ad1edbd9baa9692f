"""A method's row of a leaderboard as one file that verifies itself: its claims, and the evidence that they follow from.

The evidence is that of the method, the control and the baseline, as `kdbench export` writes it into a folder, packed
into JSON; the file of a method that is no part of this package comes along.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from kdbench.bench.errors import InputError
from kdbench.bench.schema import Frozen
from kdbench.bench.spec import explain, ids_from_outside
from kdbench.results.store.evidence import EPOCHS, OUTCOMES, Evidence, read_evidence, write_evidence
from kdbench.results.store.export import evidence_of
from kdbench.results.store.files import PLAN, sha256
from kdbench.results.store.plan import SuiteRecord, SweepPlan, read_suite
from kdbench.results.store.restore import restore
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.sources import keep_source, kept_source


class Source(Frozen):
    """The file of a method from outside."""

    module: str = Field(pattern=r"^[A-Za-z_][\w.]*$")
    code: str


class Entry(Frozen):
    """A row that verifies itself."""

    entry: int = 1
    suite: str
    """NAME@HASH."""
    method: str
    claims: dict[str, Any]
    """What follows from the evidence: rows, results by seed, and what they were made from."""
    sources: tuple[Source, ...] = ()
    """Files of the methods that are no part of this package."""
    plan: dict[str, Any]
    """The evidence's plan.json."""
    outcomes: tuple[dict[str, Any], ...]
    """The lines of its outcomes.jsonl."""
    epochs: str
    """Its epochs.parquet in base 64."""
    sha256: str = ""
    """Of all the rest."""

    def seal(self) -> str:
        """The SHA-256 of all the rest."""
        return sha256(json.dumps(self.model_dump(mode="json", exclude={"sha256"}), sort_keys=True).encode())

    def text(self) -> str:
        """The file: a line for each field, and for each run."""
        values = self.model_copy(update={"sha256": self.seal()}).model_dump(mode="json")
        runs = ",\n".join(map(json.dumps, values.pop("outcomes")))
        fields = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in values.items()]
        return "{\n" + ",\n".join([*fields, f'"outcomes": [\n{runs}\n]']) + "\n}\n"


def read_entry(path: Path) -> Entry:
    """An entry from its file.

    Raises:
        InputError: if there is none, or it is no entry.
    """
    try:
        return Entry.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the entry {path} cannot be read: {error.strerror}.") from None
    except (ValidationError, UnicodeDecodeError) as error:
        why = explain(error) if isinstance(error, ValidationError) else str(error)
        raise InputError(f"{path} is no entry of kdbench submit: {why}") from None


def narrowed(suite: SuiteRecord, methods: Collection[str]) -> SuiteRecord:
    """A suite with some of its methods alone."""
    values = suite.values()
    values["methods"] = [name for name in values["methods"] if name in methods]
    for pair in values["pairs"]:
        pair["methods"] = [name for name in pair.get("methods") or () if name in methods]
    return read_suite(json.dumps(values), "the plan")


def compared_with(suite: SuiteRecord, method: str) -> list[str]:
    """The control, the baseline of what a method is given, and the method."""
    baseline = suite.baselines.get(suite.given.get(method, ""), suite.baseline)
    return list(dict.fromkeys([suite.control, baseline, method]))


def packed(plan: SweepPlan, store: RunStore, method: str) -> dict[str, Any]:
    """The fields of an entry that are its evidence."""
    evidence = evidence_of(plan, store)
    names = compared_with(plan.suite, method)
    places = [each for each in evidence.places if each.method in names or each.phase == "teacher"]
    runs = {each.key: evidence.runs[each.key] for each in places}
    evidence = dataclasses.replace(evidence, suite=narrowed(evidence.suite, names), places=places, runs=runs)
    specs = " ".join(json.dumps(run.spec) for run in runs.values())
    kept = [kept_source(store.root, name.rpartition("@")[2]) for name in ids_from_outside(specs)]
    with tempfile.TemporaryDirectory(prefix="kdbench-") as folder:
        write_evidence(evidence, Path(folder))
        return {
            "plan": json.loads((Path(folder) / PLAN).read_text()),
            "outcomes": list(map(json.loads, (Path(folder) / OUTCOMES).read_text().splitlines())),
            "epochs": base64.b64encode((Path(folder) / EPOCHS).read_bytes()).decode(),
            "sources": [Source(module=path.stem, code=path.read_bytes().decode()) for path in kept if path],
        }


def unpacked(entry: Entry, folder: Path) -> Evidence:
    """Writes an entry's evidence into a folder, and reads it.

    Raises:
        InputError: if it is damaged or was edited.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLAN).write_text(json.dumps(entry.plan))
    (folder / OUTCOMES).write_text("".join(json.dumps(line) + "\n" for line in entry.outcomes))
    try:
        (folder / EPOCHS).write_bytes(base64.b64decode(entry.epochs, validate=True))
    except ValueError:
        raise InputError(f"the epochs of the entry of {entry.method} are torn or were edited.") from None
    for source in entry.sources:
        keep_source(folder, source.module, source.code.encode())
    return read_evidence(folder)


def store_of(entries: Sequence[Entry], root: Path) -> tuple[SweepPlan, RunStore]:
    """A store, below a folder, of the evidence of entries of one protocol together, and its plan.

    Raises:
        InputError: if an entry was edited, or two of them have other results of one run.
    """
    store = RunStore(root / "store")
    found = [unpacked(entry, root / "evidence" / str(place)) for place, entry in enumerate(entries)]
    restore([root / "evidence"], store)
    plan = SweepPlan.find(store.root, entries[0].suite)
    values = plan.suite.values()
    values["methods"] = list(dict.fromkeys(name for each in found for name in each.suite.methods))
    for place, pair in enumerate(values["pairs"]):
        pair["methods"] = list(dict.fromkeys(name for each in found for name in each.suite.pairs[place].methods))
    return SweepPlan.create(store.root, plan.folder.parent.name, plan.folder.name, values), store
