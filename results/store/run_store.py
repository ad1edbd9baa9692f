"""The run store: one folder a key, files first, write then rename; a finished run is never repeated.

    STORE/runs/KEY/spec.json
                   attempt-N/records.jsonl, checkpoint-EPOCH.pt, last.safetensors, best.safetensors
                   DONE.json          names the attempt that counts and the SHA-256 of each of its files, and of those
                                      that were left out when the run was exported
    STORE/imported/SHA256.safetensors checkpoints that users brought

Status is derived from files. Readers take no lock, cut a torn last line, and refuse a bad one before it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from kdbench.bench.atomic import TEMPORARY, write
from kdbench.bench.errors import InputError, unknown
from kdbench.bench.record import Epoch
from kdbench.results.store.attempt import Attempt, claim_of
from kdbench.results.store.files import attempts_of, done_of, evidence_folders, sha256
from kdbench.results.store.stored_run import UNREADABLE, Damaged, StoredRun, read_run, read_spec
from kdbench.results.store.verified import Verified

CHECKPOINT_SECONDS = 5.0
"""Checkpoints are at least this far apart: a death costs these seconds and the epoch under way."""

TAUGHT_FROM = "last.safetensors"
"""The file of a run from which others are taught."""

SHORTEST_KEY = 4
"""Characters of a key that name a run."""


class WeightsLeftOut(InputError):
    """The weights of a finished run were not in the evidence that it was imported from."""


class Busy(InputError):
    """Another process is at a run, or was a moment ago."""


class RunStore:
    """Runs on disk below one folder."""

    def __init__(self, root: Path, read_only: bool = False, durable: bool = True) -> None:
        """Opens the store, making its folder.

        Args:
            root: the folder.
            read_only: whether it is only read; then nothing is made or tried out.
            durable: whether the disk is waited for when evidence is brought in; a store of one command alone need not.

        Raises:
            InputError: if the folder is to be written and cannot be, or is one of evidence.
        """
        self.root = root.expanduser().resolve()
        self.durable = durable
        self.verified = Verified(self.root)
        if read_only:
            return
        if evidence_folders(self.root):
            raise InputError(
                f"{self.root} is evidence, in which nothing is trained: kdbench import {self.root} --store STORE makes "
                "a store of it."
            )
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
            InputError: if there is none, or more than one; Damaged if its files are not what was written.
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
        if run.damaged:
            raise Damaged(f"run {run.key}: {run.reason} The next sweep, or the same run again, makes it anew.")
        return run

    def get(self, key: str) -> StoredRun | None:
        """What is known of a run, or None if it was never started; its records are checked by their SHA-256."""
        folder = self.root / "runs" / key
        if not (folder / "spec.json").exists():
            return None
        try:
            return read_run(folder)
        except InputError as error:
            return StoredRun(key, UNREADABLE, "damaged", str(error), [], None, 0.0, 0.0, [], None)

    def damage(self, key: str) -> str:
        """Which file of a finished run is not what was written, weights among them; empty if none is."""
        folder = self.root / "runs" / key
        done = done_of(folder) or {"files": {}}
        for name, digest in done["files"].items():
            if not self.verified.holds(path := folder / done["attempt"] / name, digest):
                return f"{path} is damaged or missing"
        return ""

    def holds(self, key: str) -> bool:
        """Whether a run is finished, and all its files are what was written."""
        run = self.get(key)
        return run is not None and run.finished and not self.damage(key)

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
            Busy: if another process is at this run, or has just finished it.
        """
        folder, lock = self.claimed(key, spec)
        if self.holds(key):
            lock.release()
            raise Busy(f"run {key} has just been finished by another process.")
        (folder / "DONE.json").unlink(missing_ok=True)  # of what is damaged
        return Attempt(folder, lock, self.weights, watch, checkpoint_seconds)

    def claimed(self, key: str, spec: str) -> tuple[Path, FileLock]:
        """The folder of a run, made if it is new, and the lock on it, acquired.

        Raises:
            Busy: if another process is at this run.
        """
        folder = self.root / "runs" / key
        folder.mkdir(exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            by = claim_of((attempts_of(folder) or [folder])[-1])
            who = f" ({by.by})" if by else ""
            raise Busy(f"another process is carrying out run {key} in {self.root}{who}: wait for it.") from None
        for torn in folder.glob(TEMPORARY):  # of processes that died while they wrote
            torn.unlink()
        try:
            read_spec(folder)
        except (InputError, FileNotFoundError):
            write(folder / "spec.json", spec.encode(), self.durable)
        return folder, lock

    @contextlib.contextmanager
    def exclusive(self, together: bool = False) -> Iterator[None]:
        """Keeps other sweeps, and imports, from the store.

        Args:
            together: whether other sweeps that say so, too, may use it at the same time.

        Raises:
            InputError: if one is using it.
        """
        with (self.root / "driver.lock").open("ab") as file:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if together else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"another sweep is using {self.root}: wait for it, or give another --store; sweeps that are all "
                    "given one --storage postgresql://... work on a suite together."
                ) from None
            yield

    def weights(self, reference: str, name: str = TAUGHT_FROM) -> bytes:
        """The safetensors file behind run:KEY or sha256:HASH, its SHA-256 checked.

        Args:
            reference: of a network.
            name: of the file, where a run has several.

        Raises:
            Damaged: if it is missing or damaged.
            InputError: if the run is not finished; WeightsLeftOut if it was imported without it.
        """
        path, digest, remedy = self._located(reference, name)
        if not path.exists():
            raise Damaged(f"the weights {reference} are missing ({path}): {remedy}.")
        file: bytes = path.read_bytes()
        if (found := sha256(file)) != digest:
            raise Damaged(f"{path} is damaged (SHA-256 {found[:12]}, not {digest[:12]}): {remedy}.")
        return file

    def has_weights_under(self, reference: str, size: float) -> bool:
        """Whether the weights behind a reference are here, in a file of fewer bytes than `size`."""
        try:
            path, _, _ = self._located(reference)
        except InputError:
            return False
        return path.exists() and path.stat().st_size < size

    def _located(self, reference: str, file: str = TAUGHT_FROM) -> tuple[Path, str, str]:
        """The file behind a reference, its SHA-256, and what to do if it is not there as it should be."""
        kind, _, name = reference.partition(":")
        if kind != "run":
            return self.root / "imported" / f"{name}.safetensors", name, "import the checkpoint again"
        folder = self.root / "runs" / name
        done = done_of(folder)
        if not done:
            raise InputError(f"run {name} is not finished in {self.root}, so it has no weights.")
        if file in done.get("left_out", {}):
            raise WeightsLeftOut(
                f"the weights of run {name} were left out when it was exported: export again with a larger "
                f"--weights-under (teachers alone) and import that, or remove {folder} and run again: it will be "
                "trained anew."
            )
        remedy = f"remove {folder} and run again: it will be trained anew"
        return folder / done["attempt"] / file, done["files"].get(file, ""), remedy

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
            with contextlib.suppress(InputError):  # one that is damaged is named where its suite is shown
                found |= {teacher.weights: teacher.name for teacher in read_spec(self.root / "runs" / key).teachers}
        return dict(sorted(found.items()))
