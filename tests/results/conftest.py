"""Records made by hand, and stores of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from kdbench.bench.record import ACCURACY, Epoch, Metric, Outcome
from kdbench.results.analysis.explanation import Explained
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore

ERROR = Metric(name="error", higher_is_better=False)
MIOU = Metric(name="mIoU")
PNG = b"\x89PNG\r\n\x1a\n"

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

Finish = Callable[..., None]
"""Finishes a run: its key, its outcome, and the number of its epochs."""
Fill = Callable[..., None]
"""Finishes one trial and a run a seed of a method: its name, the test scores of its seeds, and their metric."""


def epoch(number: int, of: int = 3, score: float = 0.5) -> Epoch:
    return Epoch(
        number=number,
        of=of,
        stage="train",
        losses={"student/ce": 1.0 / number},
        train=score,
        validation=score,
        learning_rate=0.1,
        samples=100,
        teacher_forwards=100,
        seconds=0.5,
    )


def outcome(
    test: float, validation: float = 0.5, status: str = "done", reason: str = "", metric: Metric = ACCURACY
) -> Outcome:
    """The end of a run of a small student under a teacher with a test score of 0.9."""
    if status != "done":
        return Outcome(status=status, reason=reason, metric=metric)

    def part(score: float) -> dict[str, Any]:
        metrics = {metric.name: score, "agreement": 0.8, "nll": 1.0, "calibration_error": 0.1}
        return {"student": {"logits": metrics}}

    scores = {which: {"epoch": 3, "validation": part(validation), "test": part(test)} for which in ("last", "best")}
    cost = {"parameters": 1000, "teacher_parameters": 5000, "latency_ms": 0.5, "seconds": 1.5, "training_set": 80}
    machine = {"hardware": "abacus", "threads": 1, "torch": "2", "timm": "1"}
    return Outcome(
        status="done",
        metric=metric,
        scores=scores,
        cost=cost,
        environment=machine,
        teacher={"test": {metric.name: 0.9}},
        confusion=[[9, 1], [2, 8]],
    )


def explained(method: str, n_fg: float, d_mean: float | None, peaks_first: float = 0.0) -> Explained:
    """An explanation by its numbers; the control is the method "student"."""
    return Explained(
        key=f"{method:0<16}",
        method=method,
        control=method == "student",
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
        score=0.875,
        same_weights=True,
    )


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "store")


@pytest.fixture(scope="session")
def mlflow_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database without a run, to be copied into stores, as making one takes seconds."""
    from kdbench.results.tracking.tracker import Tracker

    folder = tmp_path_factory.mktemp("mlflow")
    Tracker(RunStore(folder), "empty")
    return folder / "mlflow.db"


@pytest.fixture
def finish(store: RunStore) -> Finish:
    def make(key: str, result: Outcome, epochs: int = 3) -> None:
        with store.attempt(key, json.dumps(SPEC), lambda _: None) as attempt:
            for number in range(1, epochs + 1):
                attempt.epoch(epoch(number), lambda: b"state")
            attempt.finish(result, {"last": b"weights of " + key.encode(), "best": b"best"})

    return make


@pytest.fixture
def plan(store: RunStore) -> SweepPlan:
    return SweepPlan.create(store.root, "toy", "abcd1234", SUITE)


def replanned(plan: SweepPlan, store: RunStore, **changes: Any) -> SweepPlan:
    """The plan with other fields of its suite."""
    return SweepPlan.create(store.root, "toy", "abcd1234", plan.suite.values() | changes)


@pytest.fixture
def fill(plan: SweepPlan, finish: Finish) -> Fill:
    def make(method: str, scores: Sequence[float], metric: Metric = ACCURACY) -> None:
        pair = plan.pairs()[0]
        finish(f"{method}-trial", outcome(test=0.0, metric=metric))
        plan.add(Planned(pair, method, "trial", 0, f"{method}-trial", {"lr": 0.1}))
        for seed, score in enumerate(scores, start=1):
            finish(f"{method}-{seed}", outcome(score, metric=metric))
            plan.add(Planned(pair, method, "seed", seed, f"{method}-{seed}", {"lr": 0.1}))

    return make


@pytest.fixture
def full(plan: SweepPlan, fill: Fill) -> SweepPlan:
    """A plan that is done: kd is best, sp ties with it."""
    fill("student", [0.80, 0.82, 0.81])
    fill("kd", [0.85, 0.86, 0.87])
    fill("sp", [0.84, 0.88, 0.85])
    return plan
