"""Chooses how a network is computed: precision, layout in memory, and whether to compile.

A rule by the kind of device decides, so that two machines of a kind give a run one key; measuring is on request.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from filelock import FileLock

from bench.atomic import write
from bench.data.splits import Splits
from bench.environment import hardware
from bench.errors import InputError
from bench.networks.build import build
from bench.networks.network import Network
from bench.networks.signals import observe
from bench.spec import Compute, ModelSpec, Recipe
from bench.training.train_state import TrainState
from methods.base import STUDENT

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
    model: ModelSpec, data: Splits, recipe: Recipe, precision: str, device: torch.device, memory: Path
) -> ModelSpec:
    """A model with the way in which it is computed.

    Args:
        model: any; its own `compute` is replaced.
        data: gives image size, channels and classes, and how long a run is.
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
        compute = _measured(model, data, recipe, device, memory)
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


def _measured(model: ModelSpec, data: Splits, recipe: Recipe, device: torch.device, memory: Path) -> Compute:
    """The way that measurements speak for, of this model on such data in such batches on this hardware."""
    size = (data.channels, data.size, data.size, data.train.classes, recipe.batch_size)
    name = " ".join([model.name, json.dumps(model.args, sort_keys=True), "x".join(map(str, size)), hardware(device)])
    if model.weights == "pretrained":
        name += " pretrained"  # takes images of its own size
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # dropout draws
        return _best(name, model, data, recipe, device, memory)


def _best(name: str, model: ModelSpec, data: Splits, recipe: Recipe, device: torch.device, memory: Path) -> Compute:
    """The way that measurements speak for; those that are missing are made and remembered."""
    known = _known(memory).get(name) or _known(everywhere()).get(name)
    measured = _remembered(memory, name, known or _eager(model, data, recipe, device))
    seconds = measured["seconds"]
    best = 0
    for index in range(1, len(CANDIDATES)):
        if seconds[index] < GAIN * seconds[best]:
            best = index
    compute = CANDIDATES[best]
    steps = recipe.epochs * len(data.train.images) / recipe.batch_size
    if steps * seconds[best] > TRIED:
        if "compiled" not in measured:
            compiled = {"compiled": _compiled(model, compute, data, recipe, device)}
            measured = _remembered(memory, name, measured | compiled)
        start, step = measured["compiled"]
        if REPAYS * start < steps * (seconds[best] - step) and step < GAIN * seconds[best]:
            compute = compute.model_copy(update={"compiled": True})
    return compute


def everywhere() -> Path:
    """Where this user's machine remembers for all stores, so that the same command has the same key in each."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kdbench" / "compute.json"


def _eager(model: ModelSpec, data: Splits, recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """Least seconds of a training step in each of the ways, measured in turn so that a busy moment meets them all."""
    steps = [_step(model, way, data, recipe, device) for way in CANDIDATES]
    times: list[list[float]] = [[] for _ in steps]
    began = time.perf_counter()
    for number in itertools.count():
        for step, taken in zip(steps, times, strict=True):
            taken.append(timed(step, device))
        if number >= 3 and (number >= ROUNDS or time.perf_counter() - began > SECONDS):
            break
    return {"seconds": [min(taken[1:]) for taken in times]}


def _compiled(
    model: ModelSpec, compute: Compute, data: Splits, recipe: Recipe, device: torch.device
) -> tuple[float, float]:
    """Seconds that compiling takes, and the median of a compiled step; never worth it if the compiler fails."""
    step = _step(model, compute.model_copy(update={"compiled": True}), data, recipe, device)
    try:
        start = sum(timed(step, device) for _ in range(3))
        return start, statistics.median(timed(step, device) for _ in range(ROUNDS))
    except Exception:  # a compiler fails as it likes: without a C++ compiler, or at an operation that it lacks
        return float("1e9"), float("1e9")


def _step(model: ModelSpec, compute: Compute, data: Splits, recipe: Recipe, device: torch.device) -> Callable[[], None]:
    """One update by cross-entropy on noise."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network: Network = build(model.model_copy(update={"compute": compute}), data).to(device)
        shape = (recipe.batch_size, data.channels, data.size, data.size)
        images, labels = torch.rand(shape).to(device), torch.zeros(recipe.batch_size, dtype=torch.long, device=device)
    state = TrainState.start(STUDENT, network, torch.nn.ModuleDict(), recipe, 1000)
    state.train()

    def step() -> None:
        state.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(observe(network, images, labels, frozenset(), training=True).logits, labels).backward()
        state.optimizer.step()

    return step


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
