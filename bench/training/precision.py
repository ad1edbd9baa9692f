"""Chooses how a network is computed: precision, layout in memory, and whether to compile.

A rule by the kind of device decides, so that two machines of a kind give a run one key; measuring is on request.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from kdbench.bench.atomic import write
from kdbench.bench.data.splits import Splits
from kdbench.bench.environment import hardware
from kdbench.bench.errors import InputError
from kdbench.bench.spec import Compute, ModelSpec, Recipe
from kdbench.bench.tasks import Task
from kdbench.bench.training.train_state import TrainState
from kdbench.methods.base import STUDENT
from kdbench.methods.rows import count, sample_shape

PRECISIONS = ("auto", "measured", "fp32", "bf16")
PLAIN = Compute()
FAST = Compute(precision="bf16", layout="channels_last")
CANDIDATES = (
    PLAIN,
    Compute(layout="channels_last"),
    Compute(precision="bf16"),
    FAST,
)
"""What is measured, in the order of preference: a later one must be faster by `GAIN` than the best before it."""
GAIN = 0.85
"""Largest share of a step's time at which another way is taken: less is within the noise of a shared machine."""
SECONDS = 1.0
"""About what measuring a small network may take; a large one is measured for three rounds."""
ROUNDS = 20
REPAYS = 2.0
"""How many times over compiling must repay its time within the run."""
TRIED = 600.0
"""Seconds from which a run is long enough that compiling is tried."""


def chosen(
    task: Task, model: ModelSpec, data: Splits, recipe: Recipe, precision: str, device: torch.device, memory: Path
) -> ModelSpec:
    """A model with the way in which it is computed.

    Args:
        task: what the model is for.
        model: any; its own `compute` is replaced.
        data: what it is trained on.
        recipe: gives batch size, epochs and optimizer.
        precision: fp32 (the plain path), bf16 (autocast, with channels_last), auto (bf16 on a CUDA device, else fp32),
            or measured (the fastest of `CANDIDATES`, measured once for each model and device, then remembered).
        device: where it will run.
        memory: the store's JSON file of what was measured; made if it is missing and something is measured.

    Raises:
        InputError: if the precision is unknown, the model cannot be built, or the file of what was measured is damaged.
    """
    check_precision(precision)
    if precision == "measured":
        compute = _measured(Asked(task, model, data, recipe, device), memory)
    else:
        compute = FAST if precision == "bf16" or (precision == "auto" and device.type == "cuda") else PLAIN
    return model.model_copy(update={"compute": compute})


def check_precision(precision: str) -> None:
    """Checks a precision's name.

    Raises:
        InputError: if it is unknown.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision must be auto, measured, fp32 or bf16, but got {precision!r}.")


@dataclass(frozen=True)
class Asked:
    """What is measured: a model that is trained on these data by this recipe."""

    task: Task
    model: ModelSpec
    data: Splits
    recipe: Recipe
    device: torch.device

    @property
    def name(self) -> str:
        """Names all that decides how fast it is, but the load of the machine."""
        size = (*sample_shape(self.data.train.inputs), self.data.train.classes, self.recipe.batch_size)
        args = json.dumps(self.model.args, sort_keys=True)
        words = [self.model.name, args, "x".join(map(str, size)), hardware(self.device)]
        words += [] if self.task.name == "image" else [self.task.name]
        words += ["pretrained"] if self.model.weights == "pretrained" else []  # takes images of its own size
        return " ".join(words)

    @property
    def steps(self) -> float:
        """Updates of a whole run."""
        return self.recipe.epochs * count(self.data.train.inputs) / self.recipe.batch_size

    def step(self, compute: Compute) -> Callable[[], None]:
        """One update of a network that is computed in this way, by the task's own loss."""
        data = dataclasses.replace(self.data.train, augment="none")
        batch = next(self.task.batches(data, self.recipe.batch_size, 1, self.device).epoch(0, 1))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model = self.model.model_copy(update={"compute": compute})
            network = self.task.build(model, self.data).to(self.device)
        state = TrainState.start(STUDENT, network, torch.nn.ModuleDict(), self.recipe, 1000)
        state.train()

        def step() -> None:
            state.optimizer.zero_grad(set_to_none=True)
            signals = self.task.observe(network, batch.inputs, batch.targets, frozenset(), training=True)
            torch.stack(list(self.task.loss(signals, batch.targets).values())).sum().backward()
            state.optimizer.step()

        return step


def _measured(asked: Asked, memory: Path) -> Compute:
    """The way that measurements speak for; those that are missing are made and remembered."""
    with torch.random.fork_rng(devices=[asked.device] if asked.device.type == "cuda" else []):  # dropout draws
        known = _known(memory).get(asked.name) or _known(everywhere()).get(asked.name)
        measured = _remembered(memory, asked.name, known or _eager(asked))
        seconds, best = measured["seconds"], 0
        for index in range(1, len(CANDIDATES)):
            if seconds[index] < GAIN * seconds[best]:
                best = index
        compute = CANDIDATES[best]
        if asked.steps * seconds[best] <= TRIED:
            return compute
        if "compiled" not in measured:
            measured = _remembered(memory, asked.name, measured | {"compiled": _compiled(asked, compute)})
    start, step = measured["compiled"]
    pays = REPAYS * start < asked.steps * (seconds[best] - step) and step < GAIN * seconds[best]
    return compute.model_copy(update={"compiled": True}) if pays else compute


def everywhere() -> Path:
    """Where this user's machine remembers for all stores, so that the same command has the same key in each."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kdbench" / "compute.json"


def _eager(asked: Asked) -> dict[str, Any]:
    """Least seconds of a training step in each of the ways, measured in turn so that a busy moment meets them all."""
    steps = [asked.step(way) for way in CANDIDATES]
    times: list[list[float]] = [[] for _ in steps]
    began = time.perf_counter()
    for number in itertools.count():
        for step, taken in zip(steps, times, strict=True):
            taken.append(timed(step, asked.device))
        if number >= 3 and (number >= ROUNDS or time.perf_counter() - began > SECONDS):
            break
    return {"seconds": [min(taken[1:]) for taken in times]}


def _compiled(asked: Asked, compute: Compute) -> tuple[float, float]:
    """Seconds that compiling takes, and the median of a compiled step; never worth it if the compiler fails."""
    step = asked.step(compute.model_copy(update={"compiled": True}))
    try:
        start = sum(timed(step, asked.device) for _ in range(3))
        return start, statistics.median(timed(step, asked.device) for _ in range(ROUNDS))
    except Exception:  # a compiler fails as it likes: without a C++ compiler, or at an operation that it lacks
        return float("1e9"), float("1e9")


def timed(step: Callable[[], object], device: torch.device) -> float:
    """Seconds that a step takes, until the device has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _known(memory: Path) -> dict[str, dict[str, Any]]:
    """What was measured, by name.

    Raises:
        InputError: if the file is damaged; measuring in silence might choose otherwise, and so name other runs.
    """
    try:
        known: dict[str, dict[str, Any]] = json.loads(memory.read_text())
        if not all(len(measured["seconds"]) == len(CANDIDATES) for measured in known.values()):
            raise ValueError("it has not one time for each way")
    except OSError:  # there is none, or no way to it
        return {}
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise InputError(f"{memory} is damaged ({error}): remove it to have networks measured anew.") from None
    return known


def _remembered(memory: Path, name: str, measured: dict[str, Any]) -> dict[str, Any]:
    """Adds what was measured, here and for all stores, and returns what holds here."""
    with contextlib.suppress(OSError):  # a home that cannot be written to
        measured = _added(everywhere(), name, measured)
    return _added(memory, name, measured)


def _added(memory: Path, name: str, measured: dict[str, Any]) -> dict[str, Any]:
    """Adds what was measured to a file; what was there first stays."""
    memory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(memory.with_name(f".{memory.name}.lock")):
        known = _known(memory)
        known[name] = measured | known.get(name, {})
        write(memory, json.dumps(known, indent=1, sort_keys=True).encode())
    return known[name]
