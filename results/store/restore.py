"""Makes a run store of evidence, or adds to one, so that tables are made and sweeps go on from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdbench.bench.atomic import write
from kdbench.bench.errors import InputError
from kdbench.results.store.evidence import Evidence, KeptRun, joined_plans, kept_weights, read_evidence
from kdbench.results.store.export import kept_run
from kdbench.results.store.files import attempts_of, done_of, evidence_folders, json_line, sha256
from kdbench.results.store.plan import Planned, SweepPlan, read_suite
from kdbench.results.store.run_store import TAUGHT_FROM, RunStore
from kdbench.results.store.sources import copy_sources


@dataclass(frozen=True)
class Restored:
    """What an import brought to a store."""

    suite: str
    """NAME@HASH."""
    folder: Path
    """Of the evidence."""
    runs: int
    """In the evidence."""
    new: int
    """Runs that the store did not have."""
    weights: int
    """Teachers whose weights came along, or were there."""
    teachers: int
    """Networks that some run learned from."""

    def values(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self) | {"folder": str(self.folder)}

    def page(self) -> str:
        """What was done, as text."""
        return (
            f"{self.suite}: {self.new} of its {self.runs} runs are new in the store, with the weights of "
            f"{self.weights} of {self.teachers} teachers."
        )


def restore(folders: Sequence[Path], store: RunStore) -> list[Restored]:
    """Brings evidence to a store; what it has already stays, and what cannot be brought is refused before any change.

    Args:
        folders: of one suite, or of several in folders of their own.
        store: to add to.

    Raises:
        InputError: if a folder is no evidence or was edited, the store has another result of a run, or is in use.
    """
    found = []
    for folder in folders:
        if not (inside := evidence_folders(folder.expanduser().resolve())):
            raise InputError(f"{folder} holds no evidence: give a folder that kdbench export wrote.")
        found += [(each, read_evidence(each)) for each in inside]
    weights = {folder: dict(kept_weights(evidence, folder)) for folder, evidence in found}
    with store.exclusive():
        for folder, evidence in found:
            for run in evidence.runs.values():
                _check(run, folder, store)
        return [_restore(folder, evidence, weights[folder], store) for folder, evidence in found]


def _check(run: KeptRun, folder: Path, store: RunStore) -> None:
    """Refuses a run of which the store has another result."""
    there = store.get(run.key)
    if there and there.finished and kept_run(there, store).records() != run.records():
        raise InputError(
            f"run {run.key} is finished in {store.root} with another result than in {folder}: import into another "
            f"store, or remove {store.root / 'runs' / run.key} to have it replaced."
        )


def _restore(folder: Path, evidence: Evidence, weights: dict[str, bytes], store: RunStore) -> Restored:
    new = 0
    for run in evidence.runs.values():
        new += _restore_run(run, weights.get(f"run:{run.key}"), store)
    for reference, file in weights.items():
        if reference.startswith("sha256:"):
            store.import_weights(file)
    copy_sources((json.dumps(run.spec) for run in evidence.runs.values()), folder, store.root)
    _restore_plan(evidence, store)
    return Restored(evidence.title, folder, len(evidence.runs), new, len(weights), len(evidence.weights()))


def _restore_run(run: KeptRun, weights: bytes | None, store: RunStore) -> bool:
    """Writes a run as an attempt of its own, DONE last; says whether the store did not have it."""
    there = store.get(run.key)
    if there and (there.finished or (there.pruned and not run.outcome)):
        if weights and not store.has_weights_under(f"run:{run.key}", float("inf")):
            _add_weights(store.root / "runs" / run.key, weights, store.durable)
        return False
    folder, lock = store.claimed(run.key, json.dumps(run.spec))
    try:
        earlier = attempts_of(folder)
        number = int(earlier[-1].name.removeprefix("attempt-")) + 1 if earlier else 1
        attempt = folder / f"attempt-{number}"
        attempt.mkdir()
        write(attempt / "records.jsonl", run.records(), store.durable)
        if run.outcome:
            done = {
                "attempt": attempt.name,
                "files": {"records.jsonl": sha256(run.records())},
                "left_out": run.files,
                "spec": sha256((folder / "spec.json").read_bytes()),
            }
            write(folder / "DONE.json", json.dumps(done, indent=1).encode(), store.durable)
            if weights:
                _add_weights(folder, weights, store.durable)
        for other in earlier:
            shutil.rmtree(other, ignore_errors=True)
    finally:
        lock.release()
    return True


def _add_weights(folder: Path, weights: bytes, durable: bool) -> None:
    """Adds the weights from which others are taught to a finished run that lacks them."""
    done = done_of(folder)
    assert done is not None
    write(folder / done["attempt"] / TAUGHT_FROM, weights, durable)
    done["left_out"] = {name: digest for name, digest in done.get("left_out", {}).items() if name != TAUGHT_FROM}
    done["files"][TAUGHT_FROM] = sha256(weights)
    write(folder / "DONE.json", json.dumps(done, indent=1).encode(), durable)


def _restore_plan(evidence: Evidence, store: RunStore) -> None:
    """Adds the plan to the store's own of this protocol."""
    folder = store.root / "suites" / evidence.name / evidence.digest
    suite, places = evidence.suite, evidence.places
    before: list[Planned] = []
    if (folder / "suite.json").exists():
        plan = SweepPlan(folder)
        before = plan.started()
        own = read_suite(json.dumps(plan.suite.values() | {"last_run": plan.last_run}), str(folder / "suite.json"))
        suite, places = joined_plans((own, before), (suite, places))
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "suite.json": json.dumps(suite.values(), indent=1).encode(),
        "plan.jsonl": b"".join(json_line(asdict(each)) for each in places),
    }
    for name, data in files.items():
        if not (folder / name).exists() or (folder / name).read_bytes() != data:
            write(folder / name, data, store.durable)
