"""Measures loops in turn, in one process, and their memory each in a process of its own."""

from __future__ import annotations

import math
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kdbench.bench.spec import ModelSpec
from kdbench.bench.speed.loops import NOISE, Loop, Setting, engine, operations, plain, repdistiller
from kdbench.bench.speed.machine import FOREIGN, Watcher, peak_memory
from kdbench.bench.tasks import task_of
from kdbench.bench.training.precision import chosen, timed

UNIT = 0.3
"""Seconds that a measurement lasts at least, so that the use of the cores can be read from it."""


@dataclass(frozen=True)
class Row:
    """One loop on one pair with one method."""

    pair: str
    method: str
    loop: str
    images_per_second: float
    """Images that students were trained on; the median of the measurements that count."""
    ratio: float
    """Images/s as a multiple of the plain loop's of the same pair and method."""
    ceiling: float
    """Images/s if convolutions ran at their measured peak and nothing else took time."""
    share: float
    """Images/s as a share of the ceiling."""
    memory: int
    """Bytes, at most, of a process that does nothing else."""
    start: float
    """Seconds of the first two steps beyond what two steps take: building, choosing kernels, compiling."""
    measurements: int
    dropped: int
    """Measurements during which other processes used the cores."""


@dataclass(frozen=True)
class Entry:
    """A loop that can be built here or in a process of its own, and what bounds it."""

    build: Callable[..., Loop]
    arguments: tuple[Any, ...]
    precision: str
    teacher: float
    """Forward passes of the teacher for each image that a student is trained on."""


@dataclass(frozen=True)
class Measuring:
    """What is measured of each setting, and how often."""

    students: int
    """Students of the loops that train several side by side."""
    rounds: int
    """Measurements of each loop."""
    workers: int
    """Worker processes of the plain loop's DataLoader."""
    compiled: bool
    """Whether torch.compile is tried."""
    rival: Path | None
    """A checkout of RepDistiller, if there is one."""
    precision: str
    """By which the engine's networks are computed, but on its plain path."""
    peaks: dict[str, float]
    """Operations a second of a convolution, by the name of the precision in torch."""


def measured(setting: Setting, how: Measuring) -> list[Row]:
    """All loops of a pair, a method and a batch, measured in turn."""
    entries = _entries(setting, how)
    found = _measured(entries, setting, how.rounds)
    flops = operations(setting)
    pair = f"{setting.teacher.name}:{setting.student.name}"
    base = found["plain loop"][0]
    rows = []
    for entry, (name, (rate, start, kept, dropped)) in zip(entries, found.items(), strict=True):
        ceiling = how.peaks[entry.precision] / (flops["student"] + entry.teacher * flops["teacher"])
        taken = 0 if "compiled" in name else _memory(entry)
        rows.append(
            Row(pair, setting.method, name, rate, rate / base, ceiling, rate / ceiling, taken, start, kept, dropped)
        )
    return rows


def _entries(setting: Setting, how: Measuring) -> list[Entry]:
    """The loops: the plain one, the rival's, and the engine in its ways."""
    with tempfile.TemporaryDirectory() as folder:
        task, data, memory = task_of(NOISE.task), setting.data(), Path(folder) / "compute.json"
        teacher, student = (
            chosen(task, model, data, setting.recipe(), how.precision, setting.device, memory)
            for model in (setting.teacher, setting.student)
        )
    fast, students = replace(setting, teacher=teacher, student=student), how.students
    precision = "bfloat16" if student.compute.precision == "bf16" else "float32"
    entries = [Entry(plain, (setting, how.workers), "float32", 1.0)]
    if how.rival:
        entries.append(Entry(repdistiller, (setting, how.rival, how.workers), "float32", 1.0))
    entries += [
        Entry(engine, (setting, "engine, plain path"), "float32", 1.0),
        Entry(engine, (fast, "engine"), precision, 1.0),
        Entry(engine, (fast, "engine, cache", 1, True), precision, 0.0),
        Entry(engine, (fast, f"engine, {students} side by side", students), precision, 1 / students),
        Entry(engine, (fast, f"engine, {students} side by side, cache", students, True), precision, 0.0),
    ]
    if how.compiled:
        made = replace(fast, teacher=_compiled(teacher), student=_compiled(student))
        entries.append(Entry(engine, (made, "engine, compiled"), precision, 1.0))
    return entries


def _compiled(model: ModelSpec) -> ModelSpec:
    return model.model_copy(update={"compute": model.compute.model_copy(update={"compiled": True})})


def _measured(entries: list[Entry], setting: Setting, rounds: int) -> dict[str, tuple[float, float, int, int]]:
    """Images/s, seconds to start, measurements that count, and those dropped, by loop."""
    loops, starts, units = [], [], []
    for entry in entries:
        loop = entry.build(*entry.arguments)
        first = timed(loop.step, setting.device) + timed(loop.step, setting.device)
        step = timed(loop.step, setting.device)
        loops.append(loop)
        starts.append(max(0.0, first - 2 * step))
        units.append(max(1, min(math.ceil(UNIT / step), (setting.batches - 4) // rounds)))
    times: list[list[tuple[float, float]]] = [[] for _ in loops]
    for _ in range(rounds):
        for loop, unit, taken in zip(loops, units, times, strict=True):
            watcher = Watcher()
            seconds = timed(lambda loop=loop, unit=unit: [loop.step() for _ in range(unit)], setting.device)  # type: ignore[misc]
            taken.append((seconds / unit, watcher.foreign()))
    result = {}
    for loop, start, taken in zip(loops, starts, times, strict=True):
        quiet = [seconds for seconds, foreign in taken if foreign <= FOREIGN]
        counted = quiet or [seconds for seconds, _ in taken]
        result[loop.name] = (loop.images / statistics.median(counted), start, len(quiet), len(taken) - len(quiet))
    return result


def _memory(entry: Entry) -> int:
    """Peak of a process that does nothing but this loop, for a few steps."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_take, args=(sender, entry, torch.get_num_threads()))
    process.start()
    sender.close()
    try:
        return int(receiver.recv())
    except EOFError:
        return 0
    finally:
        process.join()


def _take(sender: Any, entry: Entry, threads: int) -> None:
    torch.set_num_threads(threads)
    setting = replace(entry.arguments[0], batches=6)
    sender.send(peak_memory(entry.build(setting, *entry.arguments[1:]).step, setting.device))
