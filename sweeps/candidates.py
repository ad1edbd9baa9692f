"""Students that a search may choose: matched by name, counted without weights, timed before any training."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence

import timm
import torch

from kdbench.bench.data.splits import Part, Splits
from kdbench.bench.errors import InputError, unknown
from kdbench.bench.evaluation.latency import REPEATS, WARM_UP, Timing, timed
from kdbench.bench.networks.build import check_model
from kdbench.bench.spec import ModelSpec
from kdbench.bench.tasks import Task
from kdbench.methods.base import Unsupported
from kdbench.methods.rows import take
from kdbench.results.pages.numbers import count_text
from kdbench.results.store.search import Candidate, Limits, Search

FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}


def parameters_of(text: str) -> int:
    """A number of parameters as 500k, 2M or 2000000.

    Raises:
        InputError: for another text.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)", text.strip().lower())
    if not found or float(found[1]) <= 0:
        raise InputError(f"--max-params takes a number above 0, as 500k or 2M, but got {text!r}.")
    return round(float(found[1]) * FACTORS[found[2]])


def milliseconds_of(text: str) -> float:
    """A time as 5ms, 0.5s or 5, in milliseconds.

    Raises:
        InputError: for another text.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|)", text.strip().lower().replace(" ", ""))
    if not found or float(found[1]) <= 0:
        raise InputError(f"--max-latency takes a time above 0, as 5ms, but got {text!r}.")
    return float(found[1]) * (1000 if found[2] == "s" else 1)


def matching(patterns: Sequence[str]) -> list[str]:
    """Names of models that patterns match, each once; a name without a wildcard is a model's.

    Raises:
        InputError: if a pattern matches none, with the near names.
    """
    known, names = timm.list_models(), list[str]()
    for pattern in patterns:
        found = [pattern]
        if not set("*?[") & set(pattern):
            check_model(pattern)
        elif not (found := fnmatch.filter(known, pattern)):
            near = unknown("student", re.sub(r"[*?\[\]]", "", pattern), known)
            raise InputError(f"no model matches {pattern!r}: {near}")
        names += found
    return list(dict.fromkeys(names))


def searched(limits: Limits, task: Task, data: Splits, device: torch.device, say: Callable[[str], None]) -> Search:
    """The students within the limits, and why others are left out.

    Args:
        limits: which.
        task: builds them.
        data: for which they are built.
        device: where they are timed.
        say: told which student is left out, and why.

    Raises:
        InputError: if none is left.
    """
    kept, left_out = list[Candidate](), list[str]()
    for name in matching(limits.students):
        found = _measured(name, limits, task, data, device)
        if isinstance(found, Candidate):
            kept.append(found)
            if limits.latency_ms is not None and not found.latency_quiet:
                say(f"{name}: its latency is of a core that was not quiet, {found.latency_ms:.3g} ms.")
        else:
            left_out.append(found)
            say(f"Left out: {found}")
    if not kept:
        raise InputError(f"no student is within the limits, of {len(left_out)} that match: raise them, or name others.")
    return Search(limits=limits, candidates=tuple(kept), left_out=tuple(left_out))


def _measured(name: str, limits: Limits, task: Task, data: Splits, device: torch.device) -> Candidate | str:
    """A student as it was measured, or why it is left out."""
    model = ModelSpec(name=name)
    try:
        count = _parameters(model, task, data)
        if limits.parameters is not None and count > limits.parameters:
            return f"{name} has {count_text(count)} parameters, more than {count_text(limits.parameters)}."
        time = _latency(model, task, data, device)
    except (InputError, Unsupported) as reason:
        return f"{name} cannot be built for these data: {reason}"
    if limits.latency_ms is not None and time.median > limits.latency_ms:
        return f"{name} takes {time} for one image, more than {limits.latency_ms:g} ms."
    return Candidate(
        name=name,
        parameters=count,
        latency_ms=time.median,
        latency_low=time.low,
        latency_high=time.high,
        latency_quiet=time.quiet,
    )


def _parameters(model: ModelSpec, task: Task, data: Splits) -> int:
    """Counted on the meta device, where a network has shapes and no weights; the few that cannot be there are built."""
    try:
        with torch.device("meta"):
            return task.build(model, data).parameter_count()
    except (InputError, NotImplementedError, RuntimeError):
        return task.build(model, data).parameter_count()


@torch.no_grad()
def _latency(model: ModelSpec, task: Task, data: Splits, device: torch.device) -> Timing:
    """For one image of the validation part, from random weights, in float32."""
    with torch.random.fork_rng(devices=[]):
        network = task.build(model, data).eval().to(device)
    part: Part = data.validation
    image = task.prepared(take(part.inputs, slice(0, 1)), device)

    def call() -> None:
        network(image)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return timed({model.name: call}, REPEATS, WARM_UP)[model.name]
