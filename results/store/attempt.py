"""One try at a run by one process: it records epochs and checkpoints, and publishes the result.

Commit order: checkpoint, then the record that names its SHA-256, DONE last. Attempts never share a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from kdbench.bench.atomic import write
from kdbench.bench.errors import InputError
from kdbench.bench.record import Epoch, Outcome, plain
from kdbench.results.store.files import attempts_of, json_line, read_lines, sha256

BEAT = 2.0
"""Seconds between the signs of life of an attempt: the time of its claim.json."""
SILENT = 60.0
"""Seconds without one after which an attempt is not taken for alive, where its process cannot be asked for."""


class Clock:
    """Says when a checkpoint is due."""

    def __init__(self, seconds: float) -> None:
        """Starts now.

        Args:
            seconds: the smallest time between checkpoints.
        """
        self.seconds, self.last = seconds, time.monotonic()

    def due(self, record: Epoch) -> bool:
        """Whether one is to be kept of the moment after an epoch."""
        return time.monotonic() - self.last >= self.seconds and record.number < record.of

    def kept(self) -> None:
        """One was kept, now."""
        self.last = time.monotonic()


class Attempt:
    """One try at a run by one process: the engine's recorder, and a context that gives the run free at its end."""

    def __init__(
        self,
        folder: Path,
        lock: FileLock,
        weights: Callable[[str], bytes],
        watch: Callable[[Epoch], None],
        checkpoint_seconds: float,
    ) -> None:
        """Takes over what an earlier attempt left.

        Args:
            folder: of the run.
            lock: on the run, held; given free at the end.
            weights: gives the safetensors file behind a reference, checked.
            watch: sees every epoch, and may raise Stopped.
            checkpoint_seconds: smallest time between checkpoints.
        """
        self.run_folder, self.lock, self.stored_weights, self.watch = folder, lock, weights, watch
        self.clock = Clock(checkpoint_seconds)
        earlier = attempts_of(folder)
        number = int(earlier[-1].name.removeprefix("attempt-")) + 1 if earlier else 1
        self.folder = folder / f"attempt-{number}"
        self.folder.mkdir()
        claim = {"event": "claim", "host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
        write(self.folder / "claim.json", json.dumps(claim).encode(), durable=False)
        self.ended = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()
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
        text = b"".join(json_line(line) for line in lines)
        write(self.folder / "records.jsonl", text, durable=bool(self.resumed))
        self.records = (self.folder / "records.jsonl").open("ab")

    def __enter__(self) -> Attempt:
        """The attempt itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Gives the run free."""
        self.ended.set()
        self.records.close()
        self.lock.release()

    def checkpoint(self) -> bytes | None:
        """The checkpoint to go on from."""
        return self.resumed

    def epoch(self, record: Epoch, state: Callable[[], bytes]) -> None:
        """Appends an epoch, with a checkpoint when one is due, and shows it to the watcher."""
        self.keep(record, state() if self.clock.due(record) else None)
        self.watch(record)

    def keep(self, record: Epoch, checkpoint: bytes | None) -> None:
        """Appends an epoch, and its checkpoint if there is one."""
        line: dict[str, Any] = {"event": "epoch", "time": time.time(), "epoch": plain(record)}
        if checkpoint is not None:
            line["checkpoint"] = self._save(record.number, checkpoint)
            self.clock.kept()
        self._append(line, durable="checkpoint" in line)  # what follows the last checkpoint is made again

    def weights(self, reference: str) -> bytes:
        """Stored weights, checked."""
        return self.stored_weights(reference)

    def end(self, event: str, reason: str, detail: str = "") -> None:
        """Notes why the attempt ended without a result: "failed" or "stopped"."""
        self._append({"event": event, "time": time.time(), "reason": reason, "detail": detail})

    def finish(self, outcome: Outcome, files: dict[str, bytes]) -> None:
        """Publishes the result; DONE comes last, then what only an unfinished run needs is removed."""
        for name, file in files.items():
            write(self.folder / f"{name}.safetensors", file)
        self._append({"event": "outcome", "time": time.time(), "outcome": plain(outcome)})
        kept = [self.folder / "records.jsonl", *(self.folder / f"{name}.safetensors" for name in files)]
        done = {
            "attempt": self.folder.name,
            "files": {path.name: sha256(path.read_bytes()) for path in kept},
            "spec": sha256((self.run_folder / "spec.json").read_bytes()),
        }
        write(self.run_folder / "DONE.json", json.dumps(done, indent=1).encode())
        for checkpoint in self.folder.glob("checkpoint-*.pt"):
            checkpoint.unlink()
        for attempt in attempts_of(self.run_folder):
            if attempt != self.folder:
                shutil.rmtree(attempt, ignore_errors=True)

    def _save(self, number: int, state: bytes) -> dict[str, str]:
        """Writes a checkpoint and keeps the last two."""
        path = self.folder / f"checkpoint-{number:06d}.pt"
        write(path, state)
        for old in sorted(self.folder.glob("checkpoint-*.pt"))[:-2]:
            old.unlink()
        return {"file": path.name, "sha256": sha256(state)}

    def _beat(self) -> None:
        """Shows that this process lives until the attempt has ended, or its folder is gone."""
        with contextlib.suppress(OSError):
            while not self.ended.wait(BEAT):
                os.utime(self.folder / "claim.json")

    def _append(self, line: dict[str, Any], durable: bool = True) -> None:
        self.records.write(json_line(line))
        self.records.flush()
        if durable:
            os.fsync(self.records.fileno())


def _resume_point(attempt: Path) -> tuple[list[dict[str, Any]], bytes] | None:
    """The records up to the last checkpoint that is whole, and that checkpoint; none if the records are damaged."""
    try:
        lines = read_lines(attempt / "records.jsonl")
    except InputError:
        return None
    for end in range(len(lines), 0, -1):
        checkpoint = lines[end - 1].get("checkpoint")
        if checkpoint and (attempt / checkpoint["file"]).exists():
            state = (attempt / checkpoint["file"]).read_bytes()
            if sha256(state) == checkpoint["sha256"]:
                return lines[:end], state
    return None


@dataclass(frozen=True)
class Claim:
    """Who is, or was, at an attempt."""

    host: str
    pid: int
    time: float
    """When it was made, in seconds since 1970."""
    seen: float
    """The last sign of life."""

    @property
    def by(self) -> str:
        """HOST:PID."""
        return f"{self.host}:{self.pid}"

    @property
    def alive(self) -> bool:
        """Whether its process still exists, on this machine; elsewhere, whether it gave a sign of life lately.

        A process that began after the claim is another one of the same number.
        """
        lately = time.time() - self.seen < SILENT
        if self.host != socket.gethostname():
            return lately
        try:
            process = psutil.Process(self.pid)
            return process.status() != psutil.STATUS_ZOMBIE and (process.create_time() <= self.time + 1 or lately)
        except psutil.AccessDenied:
            return lately
        except psutil.Error:
            return False


def claim_of(attempt: Path) -> Claim | None:
    """Who is or was at an attempt; None if it does not say, as one that was imported."""
    path = attempt / "claim.json"
    try:
        said = json.loads(path.read_text())
        return Claim(said["host"], said["pid"], said["time"], path.stat().st_mtime)
    except (OSError, ValueError, KeyError, TypeError):
        return None
