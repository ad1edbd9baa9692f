"""Students of a swept suite as logged models, which MLflow itself serves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from kdbench.bench.deploy.student import student_of
from kdbench.bench.tasks import load
from kdbench.methods.rows import whole
from kdbench.results.store.plan import SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.sweeps.logged_models import best_seeds
from tests.sweeps.commands import Run

SMALL = ["--methods", "student,kd", "--trials", "1", "--seeds", "2", "--epochs", "1", "--workers", "2"]


@pytest.mark.slow
def test_the_best_seeds_students_are_models_that_mlflow_serves(kdbench: Run, tiny: Path, tmp_path: Path) -> None:
    sweep = ["sweep", "tiny.toml", *SMALL, "--precision", "fp32", "--store", "runs"]
    code, out, err = kdbench(*sweep, "--log-models", "--json")
    assert code == 0, err
    addresses = json.loads(out)["models"]
    assert len(addresses) == 2 and all(each.startswith("models:/m-") for each in addresses)
    store = RunStore(Path("runs"))
    plan = SweepPlan.find(store.root, "tiny")
    best = {each.method: each for each in best_seeds(plan, store)}
    client = MlflowClient(f"sqlite:///{store.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(plan.name)
    assert experiment
    models = {each.tags["method"]: each for each in client.search_logged_models([experiment.experiment_id])}
    assert models.keys() == best.keys() == {"student", "kd"}
    for method, model in models.items():
        assert model.source_run_id and model.status.value == "READY" and model.tags["kdbench.key"] == best[method].key
        run = client.get_run(model.source_run_id)
        assert run.data.tags["kdbench.key"] == best[method].key and run.data.tags["kdbench.model"] in addresses
        assert run.outputs and [each.model_id for each in run.outputs.model_outputs] == [model.model_id]
        assert model.metrics and model.metrics[0].key == "test_accuracy"

    code, out, err = kdbench("sync", "tiny", "--log-models", "--store", "runs")
    assert code == 0 and "2 students are logged; serve one: MLFLOW_TRACKING_URI=sqlite:///" in out, err
    assert len(client.search_logged_models([experiment.experiment_id])) == 2, "none is logged twice"

    shutil.move("runs", "moved")
    assert kdbench("sync", "tiny", "--store", "moved")[0] == 0, "a store that was moved names its own folder"
    stored = RunStore(Path("moved"))
    run_of_kd = stored.get(best["kd"].key)
    assert run_of_kd
    data = load(run_of_kd.spec.data, tmp_path)
    images = whole(data.test.inputs)[:3]
    (tmp_path / "asked.json").write_text(json.dumps({"inputs": {"images": images.tolist()}}))
    served = [str(Path(sys.executable).with_name("mlflow")), "models", "predict", "-m", addresses[-1], "-t", "json"]
    served = served if Path(served[0]).exists() else [sys.executable, "-m", "mlflow", *served[1:]]
    where = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{stored.root / 'mlflow.db'}"}
    asked = ["-i", "asked.json", "-o", "said.json", "--env-manager", "local"]
    ended = subprocess.run([*served, *asked], cwd=tmp_path, env=where, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    said = json.loads((tmp_path / "said.json").read_text())["predictions"]["logits"]
    assert np.array(said).shape == (3, 10)
    (method,) = [name for name, model in models.items() if addresses[-1].endswith(model.model_id)]
    run = stored.get(best[method].key)
    assert run
    student = student_of(run.spec, data, stored.weights(f"run:{run.key}", f"{plan.suite.show}.safetensors"))
    with torch.no_grad():
        assert np.abs(np.array(said) - student.graph()(images).numpy()).max() < 1e-3
    folder = next(Path("moved").rglob("MLmodel"))
    assert "signature:" in folder.read_text() and "saved_input_example_info:" in folder.read_text()
    assert not list(folder.parent.rglob("*.pkl")) and not list(folder.parent.rglob("*.pt*"))


def test_of_seeds_the_best_on_validation_is_taken(kdbench: Run, tiny: Path) -> None:
    code, _, err = kdbench("sweep", "tiny.toml", *SMALL, "--precision", "fp32", "--store", "runs")
    assert code == 0, err
    store = RunStore(Path("runs"))
    plan = SweepPlan.find(store.root, "tiny")
    found = {each.method: each for each in best_seeds(plan, store)}
    assert found.keys() == {"student", "kd"}
    for method, planned in found.items():
        scores = {
            each.number: store.get(each.key).outcome.headline(plan.suite.show, "validation")  # type: ignore[union-attr]
            for each in plan.runs()
            if each.phase == "seed" and each.method == method
        }
        assert scores[planned.number] == max(scores.values()) and len(scores) == 2  # type: ignore[type-var]
