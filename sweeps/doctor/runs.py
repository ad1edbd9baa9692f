"""The folders of runs: finished ones file by file, those that are not as far as they will be gone on from."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from kdbench.bench.errors import InputError
from kdbench.results.store.attempt import claim_of
from kdbench.results.store.files import attempts_of, done_of, read_lines
from kdbench.results.store.stored_run import read_run, read_spec
from kdbench.sweeps.doctor.finding import Finding, aside, removed, without_lines

ANEW = "the next sweep of it, or the same run again, makes it anew"


def check_run(root: Path, folder: Path) -> Iterator[Finding]:
    """What is wrong with a run's folder.

    Args:
        root: of the store.
        folder: STORE/runs/KEY.
    """
    if not folder.is_dir():
        yield aside(root, folder, "a file where a run's folder should be", "the run can be made")
        return
    attempts = attempts_of(folder)
    if attempts and (claim := claim_of(attempts[-1])) and claim.alive and not (folder / "DONE.json").exists():
        return  # it is being written
    if not (folder / "spec.json").exists() and not attempts:
        yield removed(folder, "the folder of a run that was never begun")
        return
    try:
        read_spec(folder)
        done = done_of(folder)
        if done:
            yield from _finished(root, folder, done["attempt"], done["files"])
        else:
            yield from _unfinished(root, folder, attempts)
    except (InputError, OSError) as error:
        yield aside(root, folder, f"{error}", ANEW)


def _finished(root: Path, folder: Path, counts: str, files: dict[str, str]) -> Iterator[Finding]:
    """A finished run: every file by its SHA-256, and what was to be removed when it was done."""
    damaged = [name for name, digest in files.items() if _digest(folder / counts / name) != digest]
    if damaged:
        yield aside(root, folder, f"{', '.join(damaged)} of a finished run: not what was written, or gone", ANEW)
        return
    read_run(folder)  # its specification by its SHA-256, its records line by line
    for attempt in attempts_of(folder):
        if attempt.name != counts:
            yield removed(attempt, "an attempt at a run that another one has finished")
    for checkpoint in sorted((folder / counts).glob("checkpoint-*.pt")):
        yield removed(checkpoint, "a checkpoint of a run that is finished")


def _unfinished(root: Path, folder: Path, attempts: list[Path]) -> Iterator[Finding]:
    """A run that was ended before it was done: it goes on from the last checkpoint that is whole."""
    gone_on = False
    for attempt in reversed(attempts):
        records = attempt / "records.jsonl"
        try:
            lines = read_lines(records)
        except InputError:
            yield aside(root, attempt, "an attempt whose records are damaged", "the run goes on from an earlier one")
            continue
        if records.exists() and not records.read_bytes().endswith(b"\n") and records.stat().st_size:
            yield without_lines(records, set(), "a torn last line, of a process that died", "its epoch is made again")
        known = {line["checkpoint"]["file"]: line["checkpoint"]["sha256"] for line in lines if "checkpoint" in line}
        whole = False
        for path in sorted(attempt.glob("checkpoint-*.pt")):
            if known.get(path.name) == _digest(path):
                whole = True
            else:
                yield removed(path, "a checkpoint that is damaged, or that no record names; it is not gone on from")
        if gone_on or (attempt != attempts[-1] and not whole):
            yield removed(attempt, "an attempt that is not gone on from, as a later one got further")
        gone_on = gone_on or whole


def _digest(path: Path) -> str:
    """The SHA-256 of a file as it is now; empty if it cannot be read."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
    return ""


def check_weights(root: Path) -> Iterator[Finding]:
    """Checkpoints that users brought, each under its SHA-256."""
    for path in sorted((root / "imported").glob("*.safetensors")):
        if _digest(path) != path.stem:
            yield aside(root, path, "an imported checkpoint that is not what was imported", "import it again")


def check_sources(root: Path) -> Iterator[Finding]:
    """Files of methods from outside, each in a folder of its SHA-256."""
    for path in sorted((root / "methods").glob("*/*.py")):
        if _digest(path) != path.parent.name:
            then = "name the method's own file in the next command"
            yield aside(root, path.parent, f"{path.name}, the file of a method, was edited or is damaged", then)


def check_lines(root: Path) -> Iterator[Finding]:
    """Indexes of lines that can be done without."""
    for path in sorted([root / "verified.jsonl", *(root / "projected").glob("*.jsonl")]):
        bad = set()
        data = path.read_bytes() if path.exists() else b""
        for number, line in enumerate(data.split(b"\n")[:-1], start=1):
            try:
                json.loads(line)
            except ValueError:
                bad.add(number)
        if bad or (data and not data.endswith(b"\n")):
            yield without_lines(path, bad, "lines of an index that cannot be read", "what they knew is looked up again")
