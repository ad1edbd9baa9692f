"""`kdbench run`: from what a user asks for to one run, with the teacher that it needs."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from bench.configure import configure
from bench.data.augment import check_augment
from bench.data.images import DATASETS, FOLDER, default_augment
from bench.environment import command, pick_device
from bench.errors import InputError
from bench.networks.build import check_model
from bench.networks.checkpoints import import_checkpoint
from bench.networks.precision import check_precision, chosen
from bench.record import Epoch
from bench.spec import DataSpec, ModelSpec, Recipe, Spec, explain, read_value
from bench.tasks import load, read, task_of
from bench.teachers.backends import DEFAULT_CACHE, parse_backend
from bench.teachers.cache import TeacherCache
from methods import REGISTRY
from methods.base import Method
from results.pages.run_summary import run_summary_page, run_summary_values
from results.store.run_store import RunStore, StoredRun
from sweeps.scheduling.workers import carry_out
from sweeps.suites.suite import taught_by, teacher_runs


@dataclass(frozen=True)
class Request:
    """What the command line asks for; texts are not yet checked."""

    method: str
    student: str
    data: str
    teachers: tuple[str, ...] = ()
    teacher_weights: tuple[Path, ...] = ()
    """Checkpoints, one for each teacher, or none."""
    settings: dict[str, str] = field(default_factory=dict)
    recipe: dict[str, str] = field(default_factory=dict)
    student_args: dict[str, str] = field(default_factory=dict)
    teacher_args: dict[str, str] = field(default_factory=dict)
    epochs: int | None = None
    teacher_epochs: int | None = None
    seed: int = 0
    train_fraction: float = 1.0
    image_size: int = 0
    device: str = "auto"
    precision: str = "auto"
    cache: str = DEFAULT_CACHE
    """Where answers of teachers are kept."""
    data_dir: Path | None = None


def carry_out_request(request: Request, root: Path, mlflow: bool) -> tuple[dict[str, Any], str]:
    """Carries out a run and its teacher's; returns the result as JSON values and as text.

    Raises:
        InputError: if anything in the request is wrong.
    """
    method = configure(request.method, request.settings)
    for name in (request.student, *request.teachers):
        check_model(name)
    _check_teachers(request, method)
    device = pick_device(request.device)
    check_precision(request.precision)
    data, data_dir = _data(request, root)
    recipe = _recipe(request, request.epochs)
    store = RunStore(root)
    cache = TeacherCache(parse_backend(request.cache, root / "cache", device))
    fingerprint = read(data, data_dir).fingerprint
    data = data.model_copy(update={"fingerprint": fingerprint})
    splits, recipe_of_teachers = load(data, data_dir), _recipe(request, request.teacher_epochs or request.epochs)
    recipe_of_teachers = recipe_of_teachers.model_copy(update={"finetune": 0.0})

    def model_of(name: str, args: dict[str, str], trained_by: Recipe) -> ModelSpec:
        asked = ModelSpec(name=name, args={name: read_value(value) for name, value in args.items()})
        task_of(data.task).build(asked, splits)
        return chosen(asked, splits, trained_by, request.precision, device, root / "compute.json")

    student = model_of(request.student, request.student_args, recipe)
    models = [model_of(name, request.teacher_args, recipe_of_teachers) for name in request.teachers]
    teachers: list[ModelSpec] = []
    if request.teacher_weights:
        for teacher, path in zip(models, request.teacher_weights, strict=True):
            file = import_checkpoint(path, task_of(data.task).build(teacher, splits), teacher.name)
            teachers.append(teacher.model_copy(update={"weights": store.import_weights(file)}))
    else:
        for trained in teacher_runs(models, data, recipe_of_teachers):
            name = trained.student.name
            run = carry_out(trained, store, data_dir, device, Live(f"teacher {name}"))
            if run.status != "done":
                raise InputError(f"the teacher {name} could not be trained: {run.status}: {run.reason}")
            teachers.append(taught_by(trained))
    spec = Spec(
        method=method.id,
        params=method.hyperparameters(),
        student=student,
        teachers=tuple(teachers),
        data=data,
        recipe=recipe,
        seed=request.seed,
    )
    before = store.get(spec.key)
    run = carry_out(spec, store, data_dir, device, Live(f"{request.method} {request.student}"), cache=cache)
    if mlflow:
        _track(run, store, f"{request.method}: {spec.student.name}")
    repeated = before is not None and before.finished
    lines = [f"Run {run.key} was finished before; nothing was repeated."] if repeated else []
    lines.append(run_summary_page(run, store))
    if mlflow:
        lines.append(f"MLflow: {command('mlflow')} ui --backend-store-uri sqlite:///{store.root}/mlflow.db")
    return run_summary_values(run) | {"already_finished": repeated}, "\n".join(lines)


def _track(run: StoredRun, store: RunStore, name: str) -> None:
    """Projects the run; a copy that fails is a warning, for the run is kept."""
    from results.tracking.tracker import Tracker

    try:
        Tracker(store, "runs").single(run, name, {"method": run.spec.method, "phase": "run"})
    except Exception as error:  # MLflow raises what its database or its server raised
        Console(stderr=True).print(f"MLflow was not brought up to date ({type(error).__name__}: {error})", markup=False)


def _check_teachers(request: Request, method: Method) -> None:
    count = len(request.teachers)
    if method.needs_teacher and not count:
        raise InputError(f"method {request.method} learns from a teacher: give --teacher.")
    if count > 1 and not method.several_teachers:
        several = ", ".join(sorted(name for name, each in REGISTRY.items() if each.several_teachers))
        raise InputError(
            f"method {request.method} takes one --teacher, but got {count}; those that take more: {several}."
        )
    if request.teacher_weights and len(request.teacher_weights) != count:
        raise InputError(f"give one --teacher-weights for each --teacher: {len(request.teacher_weights)} for {count}.")


def _data(request: Request, root: Path) -> tuple[DataSpec, Path]:
    """The data set, and the folder where it is looked for; a path is a folder of images."""
    name, data_dir = request.data, request.data_dir or root / "data"
    if os.sep in name or (name not in DATASETS and Path(name).is_dir()):
        path = Path(name).expanduser().resolve()
        name, data_dir = f"{FOLDER}{path.name}", path.parent
    if request.data_dir and not request.data_dir.is_dir():
        raise InputError(f"there is no folder {request.data_dir} (--data-dir).")
    try:
        spec = DataSpec(name=name, train_fraction=request.train_fraction, image_size=request.image_size)
    except ValidationError as error:
        raise InputError(explain(error)) from None
    return spec, data_dir.expanduser().resolve()


def _recipe(request: Request, epochs: int | None) -> Recipe:
    values: dict[str, Any] = {"augment": default_augment(request.data)}
    values |= {name: read_value(value) for name, value in request.recipe.items()}
    if epochs is not None:
        values["epochs"] = epochs
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(f"recipe: {explain(error)} The fields are {', '.join(Recipe.model_fields)}.") from None
    check_augment(recipe.augment)
    return recipe


class Live:
    """Shows epochs as they end: on one line of a terminal, or a line each ten percent elsewhere."""

    def __init__(self, title: str) -> None:
        """Shows nothing yet.

        Args:
            title: what is being trained.
        """
        self.title, self.console, self.shown = title, Console(stderr=True), -1

    def __call__(self, epoch: Epoch) -> bool:
        """Shows an epoch; the run always goes on."""
        losses = " ".join(f"{name} {value:.3f}" for name, value in epoch.losses.items())
        line = (
            f"{self.title}: epoch {epoch.number}/{epoch.of} ({epoch.stage}) {losses} "
            f"train {100 * epoch.train:.1f} % validation {100 * epoch.validation:.1f} %"
        )
        last = epoch.number == epoch.of
        if self.console.is_terminal:
            sys.stderr.write(f"\r\x1b[K{line[: self.console.width - 1]}" + ("\n" if last else ""))
            sys.stderr.flush()
        elif last or 10 * epoch.number // epoch.of > self.shown:
            self.shown = 10 * epoch.number // epoch.of
            self.console.print(line, highlight=False, soft_wrap=True)
        return True
