"""The run store: one folder a key, files first, write then rename; a finished run is never repeated.

    STORE/runs/KEY/spec.json
                   attempt-N/records.jsonl, checkpoint-EPOCH.pt, last.safetensors, best.safetensors
                   DONE.json          names the attempt that counts and the SHA-256 of each of its files, and in an
                                      exported store (results/export.py) of those that it left out
    STORE/imported/SHA256.safetensors checkpoints that users brought

Commit order: checkpoint, then the record that names its SHA-256, DONE last. Attempts never share a file. Status is
derived from files. Readers take no lock, cut a torn last line, and refuse a bad one before it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bench.atomic import write
from bench.errors import InputError, unknown
from bench.record import Epoch, Outcome, plain

CHECKPOINT_SECONDS = 5.0
"""Checkpoints are at least this far apart: a death costs these seconds and the epoch under way."""

TAUGHT_FROM = "last.safetensors"
"""The file of a run from which others are taught."""

SHORTEST_KEY = 4
"""Characters of a key that name a run."""


class WeightsLeftOut(InputError):
    """The weights of a finished run are not in an exported store."""


@dataclass(frozen=True)
class StoredRun:
    """What the store knows of a run."""

    key: str
    spec: dict[str, Any]
    status: str
    """done, diverged, unsupported; failed, stopped; running, interrupted."""
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

    @property
    def finished(self) -> bool:
        """Whether it is a result, and so never repeated."""
        return self.outcome is not None


class RunStore:
    """Runs on disk below one folder."""

    def __init__(self, root: Path, read_only: bool = False) -> None:
        """Opens the store, making its folder.

        Args:
            root: the folder.
            read_only: whether it is only read; then nothing is made or tried out.

        Raises:
            InputError: if the folder cannot be written, and is to be.
        """
        self.root = root.expanduser().resolve()
        if read_only:
            return
        try:
            for folder in (self.root / "runs", self.root / "imported"):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(f"the store {self.root} cannot be written: {error}. Give another by --store.") from None

    def keys(self) -> list[str]:
        """Every key with a folder."""
        return sorted(path.parent.name for path in (self.root / "runs").glob("*/spec.json"))

    def find(self, text: str) -> StoredRun:
        """A run by its key, or by the first characters of it.

        Raises:
            InputError: if there is none, or more than one.
        """
        if len(text) < SHORTEST_KEY:
            raise InputError(
                f"a run is named by its key or at least {SHORTEST_KEY} characters of it, but got {text!r}."
            )
        known = self.keys()
        matches = [key for key in known if key.startswith(text)]
        if not matches:
            raise unknown("run", text, known)
        if len(matches) > 1:
            raise InputError(
                f"{len(matches)} runs start with {text!r}: {', '.join(matches[:5])}. Give more of the key."
            )
        run = self.get(matches[0])
        assert run is not None
        return run

    def get(self, key: str) -> StoredRun | None:
        """What is known of a run, or None if it was never started."""
        folder = self.root / "runs" / key
        if not (folder / "spec.json").exists():
            return None
        spec = json.loads((folder / "spec.json").read_text())
        done = done_of(folder)
        attempts = _attempts(folder)
        if not attempts:
            return StoredRun(key, spec, "interrupted", "", [], None, 0.0, 0.0, [], None)
        attempt = folder / done["attempt"] if done else attempts[-1]
        lines = read_lines(attempt / "records.jsonl")
        epochs = [line for line in lines if line["event"] == "epoch"]
        last: dict[str, Any] = lines[-1] if lines else {"event": "none", "time": 0.0}
        outcome = Outcome(**last["outcome"]) if done else None
        if outcome:
            status, reason = outcome.status, outcome.reason
        elif last["event"] in ("failed", "stopped"):
            status, reason = last["event"], last["reason"]
        else:
            status, reason = ("running" if _alive(attempt) else "interrupted"), ""
        records = [Epoch(**line["epoch"]) for line in epochs]
        started = lines[0]["time"] if lines else 0.0
        times = [line["time"] for line in epochs]
        return StoredRun(key, spec, status, reason, records, outcome, started, last["time"], times, attempt)

    def attempt(
        self,
        key: str,
        spec: str,
        watch: Callable[[Epoch], None],
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> Attempt:
        """Starts an attempt at a run, from the last whole checkpoint of an earlier one if there is one.

        Args:
            key: of the run.
            spec: as canonical JSON.
            watch: sees every epoch, and may raise Stopped.
            checkpoint_seconds: smallest time between checkpoints.

        Raises:
            InputError: if another process is at this run.
        """
        folder = self.root / "runs" / key
        folder.mkdir(exist_ok=True)
        if not (folder / "spec.json").exists():
            write(folder / "spec.json", spec.encode())
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"another process is carrying out run {key} in {self.root}: wait for it.") from None
        return Attempt(self, folder, lock, watch, checkpoint_seconds)

    def weights(self, reference: str) -> bytes:
        """The safetensors file behind run:KEY or sha256:HASH, its SHA-256 checked.

        Raises:
            InputError: if it is missing or damaged; WeightsLeftOut if this is an exported store without it.
        """
        kind, _, name = reference.partition(":")
        if kind == "run":
            folder = self.root / "runs" / name
            done = done_of(folder)
            if not done:
                raise InputError(f"run {name} is not finished in {self.root}, so it has no weights.")
            if TAUGHT_FROM in done.get("left_out", {}):
                raise WeightsLeftOut(
                    f"the weights of run {name} were left out when it was exported to {self.root}: export again with a "
                    f"larger --weights-under (teachers alone), or remove {folder} and run again: it will be trained "
                    "anew."
                )
            path, digest = folder / done["attempt"] / TAUGHT_FROM, done["files"].get(TAUGHT_FROM, "")
            remedy = f"remove {folder} and run again: it will be trained anew"
        else:
            path, digest = self.root / "imported" / f"{name}.safetensors", name
            remedy = "import the checkpoint again"
        if not path.exists():
            raise InputError(f"the weights {reference} are missing ({path}): {remedy}.")
        file: bytes = path.read_bytes()
        if (found := sha256(file)) != digest:
            raise InputError(f"{path} is damaged (SHA-256 {found[:12]}, not {digest[:12]}): {remedy}.")
        return file

    def import_weights(self, file: bytes) -> str:
        """Keeps a safetensors file; returns its reference sha256:HASH."""
        digest = sha256(file)
        path = self.root / "imported" / f"{digest}.safetensors"
        if not path.exists():
            write(path, file)
        return f"sha256:{digest}"

    def teachers(self) -> dict[str, str]:
        """References of every network that some run learns from or that was imported, and the model's name."""
        found: dict[str, str] = {}
        for key in self.keys():
            spec = json.loads((self.root / "runs" / key / "spec.json").read_text())
            found |= {teacher["weights"]: teacher["name"] for teacher in spec["teachers"]}
        return dict(sorted(found.items()))


class Attempt:
    """One try at a run by one process: the engine's recorder, and a context that gives the run free at its end."""

    def __init__(
        self, store: RunStore, folder: Path, lock: FileLock, watch: Callable[[Epoch], None], checkpoint_seconds: float
    ) -> None:
        """Takes over what an earlier attempt left; see RunStore.attempt."""
        self.store, self.run_folder, self.lock, self.watch = store, folder, lock, watch
        self.checkpoint_seconds, self.saved_at = checkpoint_seconds, time.monotonic()
        earlier = _attempts(folder)
        number = int(earlier[-1].name.removeprefix("attempt-")) + 1 if earlier else 1
        self.folder = folder / f"attempt-{number}"
        self.folder.mkdir()
        claim = {"event": "claim", "host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
        write(self.folder / "claim.json", json.dumps(claim).encode())
        self.resumed: bytes | None = None
        self.kept: list[Epoch] = []
        """Epochs that an earlier attempt did and this one need not."""
        lines: list[dict[str, Any]] = [claim]
        for attempt in reversed(earlier):
            if point := _resume_point(attempt):
                kept, self.resumed = point
                lines = [*kept[:-1], {**kept[-1], "checkpoint": self._save(kept[-1]["epoch"]["number"], self.resumed)}]
                self.kept = [Epoch(**line["epoch"]) for line in lines if line["event"] == "epoch"]
                break
        write(self.folder / "records.jsonl", b"".join(_line(line) for line in lines))
        self.records = (self.folder / "records.jsonl").open("ab")

    def __enter__(self) -> Attempt:
        """The attempt itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Gives the run free."""
        self.records.close()
        self.lock.release()

    def checkpoint(self) -> bytes | None:
        """The checkpoint to go on from."""
        return self.resumed

    def epoch(self, record: Epoch, state: Callable[[], bytes]) -> None:
        """Appends an epoch, with a checkpoint when one is due, and shows it to the watcher."""
        line: dict[str, Any] = {"event": "epoch", "time": time.time(), "epoch": plain(record)}
        if time.monotonic() - self.saved_at >= self.checkpoint_seconds and record.number < record.of:
            line["checkpoint"] = self._save(record.number, state())
            self.saved_at = time.monotonic()
        self._append(line)
        self.watch(record)

    def weights(self, reference: str) -> bytes:
        """Stored weights, checked."""
        return self.store.weights(reference)

    def end(self, event: str, reason: str, detail: str = "") -> None:
        """Notes why the attempt ended without a result: "failed" or "stopped"."""
        self._append({"event": event, "time": time.time(), "reason": reason, "detail": detail})

    def finish(self, outcome: Outcome, files: dict[str, bytes]) -> None:
        """Publishes the result; DONE comes last, then what only an unfinished run needs is removed."""
        for name, file in files.items():
            write(self.folder / f"{name}.safetensors", file)
        self._append({"event": "outcome", "time": time.time(), "outcome": plain(outcome)})
        kept = [self.folder / "records.jsonl", *(self.folder / f"{name}.safetensors" for name in files)]
        done = {"attempt": self.folder.name, "files": {path.name: sha256(path.read_bytes()) for path in kept}}
        write(self.run_folder / "DONE.json", json.dumps(done, indent=1).encode())
        for checkpoint in self.folder.glob("checkpoint-*.pt"):
            checkpoint.unlink()
        for attempt in _attempts(self.run_folder):
            if attempt != self.folder:
                shutil.rmtree(attempt, ignore_errors=True)

    def _save(self, number: int, state: bytes) -> dict[str, str]:
        """Writes a checkpoint and keeps the last two."""
        path = self.folder / f"checkpoint-{number:06d}.pt"
        write(path, state)
        for old in sorted(self.folder.glob("checkpoint-*.pt"))[:-2]:
            old.unlink()
        return {"file": path.name, "sha256": sha256(state)}

    def _append(self, line: dict[str, Any]) -> None:
        self.records.write(_line(line))
        self.records.flush()
        os.fsync(self.records.fileno())


def sha256(data: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file, without a torn last one.

    Raises:
        InputError: if a line before the last cannot be read.
    """
    if not path.exists():
        return []
    return list(_parsed(path))


def _parsed(path: Path) -> Iterator[dict[str, Any]]:
    raw = path.read_bytes().split(b"\n")
    for number, line in enumerate(raw[:-1], start=1):
        try:
            yield json.loads(line)
        except ValueError:
            raise InputError(f"{path}, line {number}, is damaged. Remove {path.parent} to have it made anew.") from None


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=True).encode() + b"\n"


def _attempts(folder: Path) -> list[Path]:
    """Attempt folders, oldest first."""
    found = [path for path in folder.glob("attempt-*") if re.fullmatch(r"attempt-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("attempt-")))


def done_of(folder: Path) -> dict[str, Any] | None:
    """What the DONE.json of a run's folder says; None if the run is not finished."""
    try:
        done: dict[str, Any] = json.loads((folder / "DONE.json").read_text())
    except FileNotFoundError:
        return None
    return done


def _resume_point(attempt: Path) -> tuple[list[dict[str, Any]], bytes] | None:
    """The records up to the last checkpoint that is whole, and that checkpoint."""
    lines = read_lines(attempt / "records.jsonl")
    for end in range(len(lines), 0, -1):
        checkpoint = lines[end - 1].get("checkpoint")
        if checkpoint and (attempt / checkpoint["file"]).exists():
            state = (attempt / checkpoint["file"]).read_bytes()
            if sha256(state) == checkpoint["sha256"]:
                return lines[:end], state
    return None


def _alive(attempt: Path) -> bool:
    """Whether the process that claimed an attempt on this machine still exists; elsewhere, whether it wrote lately."""
    try:
        claim = json.loads((attempt / "claim.json").read_text())
    except (FileNotFoundError, ValueError):
        return False
    if claim["host"] != socket.gethostname():
        return time.time() - (attempt / "records.jsonl").stat().st_mtime < 600
    try:
        os.kill(claim["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
