"""How the networks of a plan are computed: chosen once, written into the plan, and read from it by every later driver.

So a sweep goes on with the same runs on any machine, and after the rule by which they were chosen has changed.
"""

from __future__ import annotations

import json

import torch

from kdbench.bench.data.splits import Splits
from kdbench.bench.environment import in_threads
from kdbench.bench.spec import Compute, ModelSpec, Recipe
from kdbench.bench.tasks import Task, task_of
from kdbench.bench.training.precision import chosen
from kdbench.results.store.plan import SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.sweeps.scheduling.workers import Machine
from kdbench.sweeps.suites.suite import Way


def way_of(plan: SweepPlan, store: RunStore, data: Splits, machine: Machine) -> Way:
    """Gives a plan's networks the way in which the plan says that they are computed.

    What it does not say yet is chosen by the machine's precision and written into it. Of a plan that says nothing, as
    those of earlier versions, the runs say it.

    Args:
        plan: the plan of the sweep.
        store: where its runs are, and what was measured is remembered.
        data: what the networks are trained on.
        machine: where they are trained.
    """
    if not plan.suite.compute and (found := _of_runs(plan, store)):
        plan.keep_compute(found)

    task = task_of(plan.suite.data.task)

    def way(model: ModelSpec, recipe: Recipe) -> ModelSpec:
        name = identity(model, recipe)
        if name not in plan.suite.compute:
            plan.keep_compute({name: _chosen(task, model, recipe, store, data, machine)})
        return model.model_copy(update={"compute": plan.suite.compute[name]})

    return way


def identity(model: ModelSpec, recipe: Recipe) -> str:
    """Names a network and how long it is trained, whatever its weights: all from which a way of computing follows."""
    args = f" {json.dumps(model.args, sort_keys=True)}" if model.args else ""
    return f"{model.name}{args}, {recipe.epochs} epochs in batches of {recipe.batch_size}"


def _of_runs(plan: SweepPlan, store: RunStore) -> dict[str, Compute]:
    """How the networks were computed that a plan's runs have trained, by their identities."""
    runs = [run for planned in plan.started() if (run := store.get(planned.key)) and not run.damaged]
    return {identity(run.spec.student, run.spec.recipe): run.spec.student.compute for run in runs}


def _chosen(task: Task, model: ModelSpec, recipe: Recipe, store: RunStore, data: Splits, machine: Machine) -> Compute:
    """The way that the machine's precision asks for, measured, if it must be, with a worker's share of threads."""
    with in_threads(machine.share.threads):
        device, memory = torch.device(machine.device), store.root / "compute.json"
        compute = chosen(task, model, data, recipe, machine.precision, device, memory).compute
    return Compute(**compute.model_dump())  # all fields are set, so all are written
