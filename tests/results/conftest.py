from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.record import Epoch, Outcome
from results.pages.explanation import Explained
from results.store.plan import Planned, SweepPlan
from results.store.run_store import RunStore

SPEC: dict[str, Any] = {
    "method": "kd",
    "params": {"temperature": 4.0},
    "student": {"name": "small", "weights": "scratch", "args": {}},
    "teachers": [{"name": "large", "weights": "run:0123", "args": {}}],
    "data": {"name": "digits", "fingerprint": "f00d"},
    "recipe": {"epochs": 3},
    "seed": 1,
}
SUITE: dict[str, Any] = {
    "pairs": [{"teacher": "large", "student": "small"}],
    "methods": ["student", "kd", "sp"],
    "seeds": 3,
    "show": "last",
    "about": "",
    "tuning": {"trials": 1},
    "recipe": {"epochs": 3},
    "data": {"name": "digits", "train_fraction": 0.2},
}


def epoch(number: int, of: int = 3, accuracy: float = 0.5) -> Epoch:
    losses = {"student/ce": 1.0 / number}
    return Epoch(
        number=number,
        of=of,
        stage="train",
        losses=losses,
        train=accuracy,
        validation=accuracy,
        learning_rate=0.1,
        samples=100,
        teacher_forwards=100,
        seconds=0.5,
    )


def outcome(test: float, validation: float = 0.5, status: str = "done", reason: str = "") -> Outcome:
    if status != "done":
        return Outcome(status=status, reason=reason)

    def part(accuracy: float) -> dict[str, Any]:
        metrics = {"accuracy": accuracy, "agreement": 0.8, "nll": 1.0, "calibration_error": 0.1}
        return {"student": {"logits": metrics}}

    scores = {which: {"epoch": 3, "validation": part(validation), "test": part(test)} for which in ("last", "best")}
    cost = {"parameters": 1000, "teacher_parameters": 5000, "latency_ms": 0.5, "seconds": 1.5, "training_set": 80}
    machine = {"hardware": "abacus", "threads": 1, "torch": "2", "timm": "1"}
    teacher = {"test": {"accuracy": 0.9}}
    return Outcome(
        status="done", scores=scores, cost=cost, environment=machine, teacher=teacher, confusion=[[9, 1], [2, 8]]
    )


def explained(method: str, n_fg: float, d_mean: float | None, peaks_first: float = 0.0) -> Explained:
    """An explanation by its numbers."""
    return Explained(
        key=f"{method:0<16}",
        method=method,
        model="net",
        stage=3,
        stages=4,
        mask="central half",
        images=4,
        epochs=[1, 2],
        foreground=[1.0, n_fg],
        background=[2.0, 3.0],
        ratio=0.5,
        d_mean=d_mean,
        d_std=0.25,
        peaks_first=peaks_first,
        discarded=0.1,
        test_accuracy=0.875,
        same_weights=True,
    )


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "store")


@pytest.fixture
def finish(store: RunStore) -> Callable[..., None]:
    def make(key: str, result: Outcome, epochs: int = 3) -> None:
        import json

        with store.attempt(key, json.dumps(SPEC), lambda _: None) as attempt:
            for number in range(1, epochs + 1):
                attempt.epoch(epoch(number), lambda: b"state")
            attempt.finish(result, {"last": b"weights of " + key.encode(), "best": b"best"})

    return make


@pytest.fixture
def plan(store: RunStore) -> SweepPlan:
    return SweepPlan.create(store.root, "toy", "abcd1234", SUITE)


@pytest.fixture
def fill(plan: SweepPlan, finish: Callable[..., None]) -> Callable[..., None]:
    """Finishes one trial and a run a seed for a method, with the given test accuracies."""

    def make(method: str, accuracies: list[float]) -> None:
        pair = plan.pairs()[0]
        finish(f"{method}-trial", outcome(test=0.0))
        plan.add(Planned(pair, method, "trial", 0, f"{method}-trial", {"lr": 0.1}))
        for seed, accuracy in enumerate(accuracies, start=1):
            finish(f"{method}-{seed}", outcome(accuracy))
            plan.add(Planned(pair, method, "seed", seed, f"{method}-{seed}", {"lr": 0.1}))

    return make
