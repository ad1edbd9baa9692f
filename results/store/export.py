"""Copies a suite's or a paper's table out of the run store into a folder of evidence for git."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdbench.bench.atomic import write
from kdbench.bench.errors import InputError
from kdbench.results.store.evidence import (
    WEIGHTS,
    Evidence,
    KeptRun,
    joined_plans,
    read_evidence,
    weights_path,
    write_evidence,
)
from kdbench.results.store.files import PLAN, done_of, sha256
from kdbench.results.store.plan import Planned, SweepPlan, read_suite
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.sources import copy_sources
from kdbench.results.store.stored_run import Damaged, StoredRun

MEGABYTE = 1_000_000
SHOWN = 10
"""Runs that were left out, of which a terminal names as many."""


@dataclass(frozen=True)
class LeftOut:
    """A run of the plan that is not in the evidence, as it is not finished."""

    planned: Planned
    status: str

    @property
    def name(self) -> str:
        """As "kd seed 2 of large -> small (interrupted)"."""
        each = self.planned
        return f"{each.method} {each.phase} {each.number} of {each.pair} ({self.status})"


@dataclass(frozen=True)
class Exported:
    """What an export left in a folder."""

    suite: str
    """NAME@HASH."""
    folder: Path
    """Of this suite."""
    runs: int
    """Of this export; the folder may have had more."""
    teachers: int
    """Networks that some run in the folder learned from."""
    weights: int
    """Teachers whose weights are in the folder."""
    size: int
    """Bytes of all files in the folder."""
    left_out: list[LeftOut]

    def values(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self) | {"folder": str(self.folder)}

    def page(self) -> str:
        """What was done, as text."""
        lines = [
            f"{self.suite}: {self.runs} runs are in {self.folder} ({self.size / MEGABYTE:.2f} MB), with the weights of "
            f"{self.weights} of {self.teachers} teachers."
        ]
        if self.left_out:
            names = [each.name for each in self.left_out[:SHOWN]]
            names += ["..."] if len(self.left_out) > SHOWN else []
            lines.append(f"Left out, as not finished: {len(self.left_out)} runs: {', '.join(names)}.")
        return "\n".join(lines)


def export(plan: SweepPlan, store: RunStore, folder: Path, weights_under: float = 10.0) -> Exported:
    """Writes a plan and its finished runs to FOLDER/NAME, or adds them to what is there; again, it changes nothing.

    Args:
        plan: of a suite or of a paper's table.
        store: where its runs are.
        folder: of all evidence; made if it is not there.
        weights_under: MB; a teacher's weights are copied if its file is smaller.

    Raises:
        InputError: if the folder cannot be written, is a run store, or has another protocol or result; or if a file to
            copy, or one that is there, is damaged.
    """
    root = folder.expanduser().resolve()
    if root == store.root or any((root / name).exists() for name in ("runs", "suites", "driver.lock")):
        raise InputError(f"{root} is a run store: export into a folder of its own.")
    try:
        return _export(plan, store, root / _folder_name(plan), weights_under * MEGABYTE)
    except OSError as error:
        raise InputError(f"{root} cannot be written: {error}. Give another folder.") from None


def _folder_name(plan: SweepPlan) -> str:
    """The suite's or the table's name; of a table at another scale than the paper's with that scale."""
    name, scale = plan.folder.parent.name, plan.suite.scale
    return name if scale in ("", "full") else f"{name}_{scale}"


def _export(plan: SweepPlan, store: RunStore, folder: Path, limit: float) -> Exported:
    evidence = evidence_of(plan, store)
    kept = evidence.runs
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / PLAN).exists():
        evidence = _joined(read_evidence(folder), evidence, folder, store)
    write_evidence(evidence, folder)
    copy_sources((json.dumps(run.spec) for run in evidence.runs.values()), store.root, folder)
    weights = _write_weights(evidence, store, folder, limit)
    missing = [each for each in plan.started() if each.key not in kept]
    left_out = [LeftOut(each, run.status if (run := store.get(each.key)) else "pending") for each in missing]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Exported(plan.name, folder, len(kept), len(evidence.weights()), weights, size, left_out)


def evidence_of(plan: SweepPlan, store: RunStore) -> Evidence:
    """A plan and its runs that are finished or pruned.

    Raises:
        Damaged: if files of a run are not what they were when it was finished.
    """
    planned = plan.started()
    stored = {each.key: store.get(each.key) for each in planned}
    for run in stored.values():
        if run and run.damaged:
            raise Damaged(f"run {run.key} cannot be exported: {run.reason} The next sweep makes it anew.")
    kept = {key: kept_run(run, store) for key, run in stored.items() if run and (run.finished or run.pruned)}
    suite = read_suite(json.dumps(plan.suite.values() | {"last_run": round(plan.last_run, 3)}), str(plan.folder))
    places = [each for each in planned if each.key in kept]
    return Evidence(plan.folder.parent.name, plan.folder.name, suite, places, kept)


def kept_run(run: StoredRun, store: RunStore) -> KeptRun:
    """A run that is finished or pruned, as evidence keeps it."""
    assert run.folder is not None
    folder = store.root / "runs" / run.key
    done = done_of(folder) or {"files": {}}
    files = {**done.get("left_out", {}), **done["files"]}
    files.pop("records.jsonl", "")
    return KeptRun(
        key=run.key,
        spec=json.loads((folder / "spec.json").read_text()),
        status=run.status,
        reason=run.reason,
        outcome=run.outcome,
        started=run.started,
        ended=run.ended,
        epochs=run.epochs,
        times=run.times,
        files=dict(sorted(files.items())),
    )


def _joined(there: Evidence, mine: Evidence, folder: Path, store: RunStore) -> Evidence:
    """What a folder has, and what is added to it."""
    if there.digest != mine.digest:
        raise InputError(
            f"{folder} has {there.title}, another protocol than {mine.title}: export into another folder, or remove it."
        )
    for key, run in mine.runs.items():
        other = there.runs.get(key)
        if other and other.outcome and other.records() != run.records():
            raise InputError(
                f"run {key} is finished in {folder} with another result than in {store.root}: export into another "
                f"folder, or remove {folder} to have it replaced."
            )
    suite, places = joined_plans((there.suite, there.places), (mine.suite, mine.places))
    runs = there.runs | mine.runs
    return Evidence(mine.name, mine.digest, suite, places, {each.key: runs[each.key] for each in places})


def _write_weights(evidence: Evidence, store: RunStore, folder: Path, limit: float) -> int:
    """Adds the weights of teachers that are small enough, and says how many are there; others are removed."""
    wanted = evidence.weights()
    for reference, digest in wanted.items():
        path = weights_path(folder, digest)
        if path.exists() and sha256(path.read_bytes()) == digest:
            continue
        path.unlink(missing_ok=True)
        if store.has_weights_under(reference, limit):
            path.parent.mkdir(exist_ok=True)
            write(path, store.weights(reference))
    for path in (folder / WEIGHTS).glob("*.safetensors"):
        if path.stem not in wanted.values():
            path.unlink()
    return sum(weights_path(folder, digest).exists() for digest in wanted.values())
