"""How networks are computed is chosen once for a plan, and travels with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kdbench.sweeps.scheduling.compute
from kdbench.bench.data.splits import Splits
from kdbench.bench.record import Outcome
from kdbench.bench.spec import Compute, ModelSpec, Recipe, Spec
from kdbench.bench.training.precision import FAST, PLAIN
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.sweeps.scheduling.compute import identity, way_of
from kdbench.sweeps.scheduling.workers import Machine
from kdbench.sweeps.suites.files import load_suite
from kdbench.sweeps.suites.suite import Suite, Way

RECIPE = Recipe(epochs=3, batch_size=16)
MODEL = ModelSpec(name="cifar_resnet8")


@pytest.fixture
def suite(tiny: Path) -> Suite:
    return load_suite(str(tiny))


@pytest.fixture
def make(suite: Suite, digits: Splits, tmp_path: Path) -> Callable[..., Way]:
    """The way of the suite's plan in a store, opened anew as another driver does."""

    def way(store: str = "store", precision: str = "auto") -> Way:
        runs = RunStore(tmp_path / store)
        plan = SweepPlan.create(runs.root, suite.name, "abcd1234", suite.record())
        return way_of(plan, runs, digits, Machine(Path("/nonexistent"), "cpu", precision, 1))

    return way


def record(store: Path) -> dict[str, Any]:
    """What the plan says."""
    (path,) = store.glob("suites/*/abcd1234/suite.json")
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def test_identity_is_of_network_and_training_whatever_the_weights() -> None:
    assert identity(MODEL, RECIPE) == "cifar_resnet8, 3 epochs in batches of 16"
    taught = MODEL.model_copy(update={"weights": "run:abcd", "compute": FAST})
    assert identity(taught, RECIPE.model_copy(update={"lr": 0.5, "weight_decay": 0.0})) == identity(MODEL, RECIPE)
    others = [
        (MODEL.model_copy(update={"args": {"drop_rate": 0.5}}), RECIPE),
        (ModelSpec(name="cifar_resnet14"), RECIPE),
        (MODEL, RECIPE.model_copy(update={"epochs": 4})),
        (MODEL, RECIPE.model_copy(update={"batch_size": 32})),
    ]
    assert len({identity(model, recipe) for model, recipe in [(MODEL, RECIPE), *others]}) == 5


def test_choice_is_written_into_the_plan(make: Callable[..., Way], tmp_path: Path) -> None:
    assert make()(MODEL.model_copy(update={"compute": FAST}), RECIPE) == MODEL
    compute = record(tmp_path / "store")["compute"]
    assert compute == {"cifar_resnet8, 3 epochs in batches of 16": PLAIN.model_dump()}
    assert not (tmp_path / "store" / "compute.json").exists()


def test_later_driver_takes_the_choice_from_the_plan(
    make: Callable[..., Way], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def measured(task: object, model: ModelSpec, *_: object) -> ModelSpec:
        made.append(model.name)
        return model.model_copy(update={"compute": Compute(layout="channels_last")})

    monkeypatch.setattr(kdbench.sweeps.scheduling.compute, "chosen", measured)
    first = make(precision="measured")(MODEL, RECIPE)
    assert make(precision="measured")(MODEL, RECIPE) == first and first.compute.layout == "channels_last"
    assert made == ["cifar_resnet8"]
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    assert make("elsewhere", precision="measured")(MODEL, RECIPE) == first and made == ["cifar_resnet8"]


def test_plan_that_says_nothing_takes_the_choice_from_its_runs(
    make: Callable[..., Way], suite: Suite, tmp_path: Path
) -> None:
    make()
    searched = RECIPE.model_copy(update={"lr": 0.123})
    spec = Spec(method="student", student=MODEL.model_copy(update={"compute": FAST}), data=suite.data, recipe=searched)
    folder = tmp_path / "store" / "runs" / spec.key
    folder.mkdir()
    (folder / "spec.json").write_text(spec.canonical())
    plan = SweepPlan.find(tmp_path / "store", "tiny")
    plan.add(Planned(suite.pairs[0].name, "student", "trial", 0, spec.key))
    plan.add(Planned(suite.pairs[0].name, "student", "trial", 1, "0" * 16))  # left out, as from an export
    way = make()
    assert way(MODEL, RECIPE).compute == FAST
    assert way(MODEL, RECIPE.model_copy(update={"epochs": 9})).compute == PLAIN
    assert len(record(tmp_path / "store")["compute"]) == 2


def test_plan_records_control_baseline_and_metric_outside_the_digest(suite: Suite) -> None:
    record = suite.record()
    assert (record["control"], record["baseline"]) == ("student", "kd")
    assert record["metric"] == {"name": "accuracy", "unit": "%", "higher_is_better": True}
    assert not {"control", "baseline", "metric", "compute"} & suite.model_dump().keys()


def test_plan_that_does_not_say_takes_it_from_its_runs(make: Callable[..., Way], suite: Suite, tmp_path: Path) -> None:
    """As plans of before they said it, when a CPU too might have been given bf16."""
    store = RunStore(tmp_path / "store")
    plan = SweepPlan.create(store.root, suite.name, "abcd1234", suite.record())
    student = MODEL.model_copy(update={"compute": FAST})
    spec = Spec(method="student", student=student, data=suite.data, recipe=RECIPE)
    with store.attempt(spec.key, spec.canonical(), lambda _: None) as attempt:
        attempt.finish(Outcome(status="done"), {})
    plan.add(Planned("a -> b", "student", "seed", 1, spec.key))
    assert make()(MODEL, RECIPE).compute == FAST
    assert make()(MODEL, RECIPE.model_copy(update={"epochs": 9})).compute == PLAIN
