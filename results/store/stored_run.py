"""What the store knows of a run: read from its files, and checked; a damaged one is named and never shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdbench.bench.errors import InputError
from kdbench.bench.record import Epoch, Outcome
from kdbench.bench.spec import DataSpec, ModelSpec, Spec, explain
from kdbench.results.store.attempt import Claim, claim_of
from kdbench.results.store.files import attempts_of, done_of, parsed, sha256


class Damaged(InputError):
    """A file is not what was written, or is gone."""


@dataclass(frozen=True)
class StoredRun:
    """What the store knows of a run."""

    key: str
    spec: Spec
    status: str
    """done, diverged, unsupported; failed, stopped; running, interrupted; damaged, which sweeps make anew."""
    reason: str
    epochs: list[Epoch]
    outcome: Outcome | None
    started: float
    """Seconds since 1970."""
    ended: float
    times: list[float]
    """When each epoch ended."""
    folder: Path | None
    """Of the attempt that counts."""
    claim: Claim | None = None
    """Who is at it, if it is running."""

    @property
    def finished(self) -> bool:
        """Whether it is a result, and so never repeated."""
        return self.outcome is not None

    @property
    def pruned(self) -> bool:
        """Whether a sweep ended it early, as hopeless."""
        return self.status == "stopped"

    @property
    def damaged(self) -> bool:
        """Whether its files are not what was written: then nothing of it is shown, and the reason names the file."""
        return self.status == "damaged"


def read_spec(folder: Path) -> Spec:
    """The specification in a run's folder; fields that other versions of kdbench wrote are passed over.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        return Spec.model_validate_json((folder / "spec.json").read_bytes(), extra="ignore")
    except ValidationError as error:
        raise InputError(
            f"{folder / 'spec.json'} is no specification that kdbench can read: {explain(error)}. Remove {folder} and "
            "run again."
        ) from None


UNREADABLE = Spec(method="", student=ModelSpec(name=""), data=DataSpec(name=""))
"""Stands for the specification of a damaged run."""


def read_run(folder: Path) -> StoredRun:
    """A run from its folder.

    Raises:
        InputError: if a file of it is damaged; the message names it.
    """
    key, spec, done, attempts = folder.name, read_spec(folder), done_of(folder), attempts_of(folder)
    if done and done.get("spec", digest := sha256((folder / "spec.json").read_bytes())) != digest:
        raise Damaged(f"{folder / 'spec.json'} is damaged.")
    if not attempts and not done:
        return StoredRun(key, spec, "interrupted", "", [], None, 0.0, 0.0, [], None)
    attempt = folder / done["attempt"] if done else attempts[-1]
    path = attempt / "records.jsonl"
    records = path.read_bytes() if path.exists() else b""
    if done and sha256(records) != done["files"].get(path.name):
        raise Damaged(f"{path} is damaged or missing.")
    try:
        return _run_of(key, spec, list(parsed(records, path)), bool(done), attempt)
    except (KeyError, TypeError, ValueError):
        raise Damaged(f"{path} is damaged.") from None


def _run_of(key: str, spec: Spec, lines: list[dict[str, Any]], done: bool, attempt: Path) -> StoredRun:
    """A run from the lines of its records."""
    epochs = [line for line in lines if line["event"] == "epoch"]
    last: dict[str, Any] = lines[-1] if lines else {"event": "none", "time": 0.0}
    outcome = Outcome(**last["outcome"]) if done else None
    status, reason, claim = "interrupted", "", None
    if outcome:
        status, reason = outcome.status, outcome.reason
    elif last["event"] in ("failed", "stopped"):
        status, reason = last["event"], last["reason"]
    elif (found := claim_of(attempt)) and found.alive:
        status, claim = "running", found
    records, times = [Epoch(**line["epoch"]) for line in epochs], [line["time"] for line in epochs]
    started = lines[0]["time"] if lines else 0.0
    return StoredRun(key, spec, status, reason, records, outcome, started, last["time"], times, attempt, claim)
