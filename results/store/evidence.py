"""What stands behind a table, copied out of the run store into a folder that git can keep: plan, specs, records.

    FOLDER/.gitignore                         keeps out what training in the folder would add
           suites/NAME/HASH/suite.json, plan.jsonl
           runs/KEY/spec.json, DONE.json, attempt-N/records.jsonl
           runs/KEY/attempt-N/last.safetensors and imported/SHA256.safetensors, of small teachers alone

The folder is itself a store: what reads one takes it as --store, and makes the same tables. Claims lose host and
process; DONE.json then holds the SHA-256 of what is in the folder, and of the files that were left out.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.atomic import write
from bench.errors import InputError
from results.store.files import done_of, sha256
from results.store.plan import Planned, SweepPlan
from results.store.run_store import TAUGHT_FROM, RunStore, StoredRun

MEGABYTE = 1_000_000
SHOWN = 10
"""Runs that were left out, of which a terminal names as many."""
GITIGNORE = """\
# Written by kdbench export: what training in this folder would add is not kept in git.
!/runs/
/.*.lock
/.probe-*
/*.lock
/*.db
/*.db-*
/cache/
/data/
/mlflow-artifacts/
/compute.json
/speeds.json
/runs/*/lock
/runs/*/*/claim.json
/runs/*/*/*.pt
/runs/*/*/*.safetensors
!/runs/*/*/last.safetensors
"""


@dataclass(frozen=True)
class LeftOut:
    """A run of the plan that is not in the folder."""

    planned: Planned
    status: str

    @property
    def name(self) -> str:
        """As "kd seed 2 of large -> small (interrupted)"."""
        each = self.planned
        return f"{each.method} {each.phase} {each.number} of {each.pair} ({self.status})"


@dataclass(frozen=True)
class Exported:
    """What was copied."""

    suite: str
    """NAME@HASH."""
    folder: Path
    runs: int
    teachers: int
    weights: int
    """Teachers whose weights are in the folder."""
    size: int
    """Bytes of all that the plan has in the folder."""
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


class _Folder:
    """Where files go; one that is there as it should be is not touched."""

    def __init__(self, root: Path) -> None:
        self.root, self.size = root, 0

    def put(self, path: str, data: bytes) -> None:
        """Writes a file, whole or not at all."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_bytes() != data:
            write(target, data)
        self.size += len(data)


def export(plan: SweepPlan, store: RunStore, folder: Path, weights_under: float = 10.0) -> Exported:
    """Copies a plan and its finished runs; adds to what the folder has, and changes nothing if that is up to date.

    Args:
        plan: of a suite or of a paper's table.
        store: where its runs are.
        folder: made if it is not there.
        weights_under: MB; a teacher's weights are copied if its file is smaller.

    Raises:
        InputError: if the folder cannot be written, is a store that is trained in or has another result of a run; or a
            file to copy is damaged.
    """
    root = folder.expanduser().resolve()
    if root == store.root or (root / "driver.lock").exists() or any((root / "runs").glob("*/lock")):
        raise InputError(f"{root} is a store in which runs are trained: export into a folder of its own.")
    limit, planned = weights_under * MEGABYTE, plan.started()
    try:
        return _export(plan, planned, store, _Folder(root), limit)
    except OSError as error:
        raise InputError(f"{root} cannot be written: {error}. Give another folder.") from None


def _export(plan: SweepPlan, planned: list[Planned], store: RunStore, folder: _Folder, limit: float) -> Exported:
    runs = {each.key: store.get(each.key) for each in planned}
    whole = {key: run for key, run in runs.items() if run and (run.finished or run.status == "stopped")}
    teachers = {teacher.weights for run in whole.values() for teacher in run.spec.teachers}
    folder.root.mkdir(parents=True, exist_ok=True)
    if not (folder.root / ".gitignore").exists():
        write(folder.root / ".gitignore", GITIGNORE.encode())
    weights = 0
    for key, run in whole.items():
        teaches = f"run:{key}" in teachers
        there = _copy_run(run, store, folder, limit if teaches else 0)
        weights += teaches and there
    for reference in sorted(teachers):
        if reference.startswith("sha256:"):
            weights += _copy_imported(reference, store, folder, limit)
    _copy_plan(plan, folder)
    states = {key: found.status if found else "pending" for key, found in runs.items()}
    left_out = [LeftOut(each, states[each.key]) for each in planned if each.key not in whole]
    return Exported(plan.name, folder.root, len(whole), len(teachers), weights, folder.size, left_out)


def _copy_plan(plan: SweepPlan, folder: _Folder) -> None:
    """The suite as it was last run, with the time of that, and the runs of both plans; the later one wins.

    The runs that the folder has come first, so that an export adds lines and moves none.
    """
    place = f"suites/{plan.folder.parent.name}/{plan.folder.name}"
    suite = plan.suite.values() | {"last_run": round(plan.last_run, 3)}
    mine = {each.place: each for each in plan.started()}
    runs = mine
    if (folder.root / place / "suite.json").exists():
        there = SweepPlan(folder.root / place)
        theirs = {each.place: each for each in there.started()}
        runs = theirs | mine
        if there.last_run > suite["last_run"]:
            suite, runs = there.suite.values(), runs | theirs
    folder.put(f"{place}/suite.json", json.dumps(suite, indent=1).encode() + b"\n")
    lines = [json.dumps(asdict(each)).encode() + b"\n" for each in runs.values()]
    folder.put(f"{place}/plan.jsonl", b"".join(lines))


def _copy_run(run: StoredRun, store: RunStore, folder: _Folder, limit: float) -> bool:
    """Copies a run, or brings it up to date; says if its weights are in the folder, as those that are there stay.

    Weights are the run's by their SHA-256; others in their place are removed.
    """
    key, source, target = run.key, store.root / "runs" / run.key, folder.root / "runs" / run.key
    assert run.folder is not None
    if Path(key).name != key:
        raise InputError(f"the key of a run is the name of a folder, but got {key!r}.")
    done, there, attempt = done_of(source), done_of(target), run.folder.name
    records = (run.folder / "records.jsonl").read_bytes()
    if done and sha256(records) != done["files"]["records.jsonl"]:
        raise InputError(f"{run.folder / 'records.jsonl'} is damaged: remove {source} and run again.")
    records = blanked(records)
    if there and not (done and there["files"]["records.jsonl"] == sha256(records)):
        raise InputError(
            f"run {key} is finished in {folder.root} with another result than in {store.root}: export into another "
            f"folder, or remove {target} to have it replaced."
        )
    folder.put(f"runs/{key}/spec.json", (source / "spec.json").read_bytes())
    folder.put(f"runs/{key}/{attempt}/records.jsonl", records)
    kept: dict[str, str] = {}
    if done:
        files = {**done.get("left_out", {}), **done["files"], "records.jsonl": sha256(records)}
        weights, original = target / attempt / TAUGHT_FROM, run.folder / TAUGHT_FROM
        if weights.exists() and sha256(weights.read_bytes()) == files.get(TAUGHT_FROM):
            folder.size += weights.stat().st_size
        elif original.exists() and original.stat().st_size < limit:
            folder.put(f"runs/{key}/{attempt}/{TAUGHT_FROM}", store.weights(f"run:{key}"))
        for name, digest in files.items():
            if (path := target / attempt / name).exists():
                if sha256(path.read_bytes()) == digest:
                    kept[name] = digest
                else:
                    path.unlink()
        left_out = {name: digest for name, digest in files.items() if name not in kept}
        says = {"attempt": attempt, "files": kept} | ({"left_out": left_out} if left_out else {})
        folder.put(f"runs/{key}/DONE.json", json.dumps(says, indent=1).encode() + b"\n")
    for other in target.glob("attempt-*"):
        if other.name != attempt:
            shutil.rmtree(other)
    return TAUGHT_FROM in kept


def _copy_imported(reference: str, store: RunStore, folder: _Folder, limit: float) -> bool:
    """Copies a checkpoint that a user brought; says whether it is in the folder."""
    path = f"imported/{reference.removeprefix('sha256:')}.safetensors"
    if (folder.root / path).exists():
        folder.size += (folder.root / path).stat().st_size
    elif (store.root / path).exists() and (store.root / path).stat().st_size < limit:
        folder.put(path, store.weights(reference))
    return (folder.root / path).exists()


def blanked(records: bytes) -> bytes:
    """Records without a torn last line, and claims among them without their host and process."""
    lines = []
    for line in records[: records.rfind(b"\n") + 1].splitlines(keepends=True):
        event = json.loads(line)
        if event["event"] == "claim":
            line = json.dumps(event | {"host": "", "pid": 0}).encode() + b"\n"
        lines.append(line)
    return b"".join(lines)
