"""`kdbench run`: from what a user asks for to one run, with the teacher that it needs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from rich.console import Console

from kdbench.bench.configure import configure
from kdbench.bench.data.augment import check_augment
from kdbench.bench.data.images import default_augment, named
from kdbench.bench.data.splits import Splits
from kdbench.bench.environment import pick_device
from kdbench.bench.errors import InputError
from kdbench.bench.networks.build import check_model
from kdbench.bench.outside import method_id
from kdbench.bench.spec import DataSpec, ModelSpec, Recipe, Spec, explain, read_value
from kdbench.bench.tasks import load, read, task_of
from kdbench.bench.teachers.backends import parse_backend
from kdbench.bench.teachers.cache import TeacherCache
from kdbench.bench.training.precision import check_precision, chosen
from kdbench.methods import REGISTRY
from kdbench.methods.base import Method
from kdbench.results.pages.report import render
from kdbench.results.pages.run_summary import run_summary_report
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.stored_run import StoredRun
from kdbench.sweeps.cli.common import say
from kdbench.sweeps.cli.place import Place, where_mlflow_is
from kdbench.sweeps.cli.progress import Live
from kdbench.sweeps.scheduling.workers import carry_out
from kdbench.sweeps.suites.suite import primary_of, taught_by, teacher_runs
from kdbench.sweeps.weights import checkpoint, doubted, near_chance, started
from kdbench.sweeps.weights import named as named_model


@dataclass(frozen=True)
class RunRequest:
    """What is asked for; nothing is checked yet, and values may be texts."""

    method: str
    student: str
    data: str
    """A data set's name, or the path of a folder of images."""
    place: Place
    task: str = "image"
    teachers: tuple[str, ...] = ()
    teacher_weights: tuple[Path, ...] = ()
    """Checkpoints, one for each teacher, or none."""
    settings: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    student_args: dict[str, str] = field(default_factory=dict)
    teacher_args: dict[str, str] = field(default_factory=dict)
    epochs: int | None = None
    teacher_epochs: int | None = None
    seed: int = 0
    train_fraction: float = 1.0
    image_size: int = 0


@dataclass(frozen=True)
class Carried:
    """A run that a request asked for, and where it is kept."""

    run: StoredRun
    repeated: bool
    """Whether it was finished before."""
    store: RunStore


def carry_out_request(request: RunRequest, mlflow: bool) -> tuple[dict[str, Any], str]:
    """Carries out a run and its teacher's; returns the result as JSON values and as text.

    Raises:
        InputError: if anything in the request is wrong.
    """
    done = carried_out(request, mlflow)
    lines = [f"Run {done.run.key} was finished before; nothing was repeated."] if done.repeated else []
    summary = run_summary_report(done.run)
    lines.append(render(summary))
    if mlflow:
        lines.append(f"MLflow: {where_mlflow_is(done.store.root, request.place.tracking)}")
    return dict(summary.values) | {"already_finished": done.repeated}, "\n".join(lines)


def carried_out(request: RunRequest, mlflow: bool) -> Carried:
    """Carries out a run and its teacher's.

    Raises:
        InputError: if anything in the request is wrong.
    """
    request = replace(request, method=method_id(request.method))
    method = configure(request.method, request.settings)
    for name in (request.student, *request.teachers):
        check_model(named_model(name))
    _check_teachers(request, method)
    recipe = _recipe(request, request.epochs)
    setup = _Setup.of(request)
    spec = Spec(
        method=method.id,
        params=method.hyperparameters(),
        student=setup.model(request.student, request.student_args, recipe).learning,
        teachers=setup.teachers(),
        data=setup.data,
        recipe=recipe,
        seed=request.seed,
    )
    before = setup.store.get(spec.key)
    run = setup.carry_out(spec, f"{request.method} {request.student}")
    if mlflow:
        _track(run, setup.store, request.place.tracking)
    return Carried(run, before is not None and before.finished, setup.store)


@dataclass(frozen=True)
class _Setup:
    """With what a request is carried out: device, data, store, and cache of teachers' answers."""

    request: RunRequest
    device: torch.device
    data: DataSpec
    data_dir: Path
    splits: Splits
    store: RunStore
    cache: TeacherCache

    @classmethod
    def of(cls, request: RunRequest) -> _Setup:
        """Checks what the request says of the machine and the data, and reads the data."""
        place = request.place
        device = pick_device(place.device)
        check_precision(place.precision)
        data, data_dir = _data(request)
        store = RunStore(place.store)
        cache = TeacherCache(parse_backend(place.cache, place.store / "cache", device))
        fingerprint = read(data, data_dir).fingerprint
        data = data.model_copy(update={"fingerprint": fingerprint})
        return cls(request, device, data, data_dir, load(data, data_dir), store, cache)

    def model(self, name: str, args: dict[str, str], recipe: Recipe, path: Path | None = None) -> ModelSpec:
        """A network that can be built for the data, with its weights and the way in which it is computed.

        Args:
            name: of the model.
            args: of its constructor.
            recipe: by which it would be trained.
            path: of a checkpoint of its own.
        """
        model = ModelSpec(name=name, args={name: read_value(value) for name, value in args.items()})
        task = task_of(self.data.task)
        if path:
            model = checkpoint(task, model, path, self.splits, self.store)
        model = started(model, self.splits, self.store, say)
        task.build(model, self.splits)
        memory = self.store.root / "compute.json"
        return chosen(task, model, self.splits, recipe, self.request.place.precision, self.device, memory)

    def teachers(self) -> tuple[ModelSpec, ...]:
        """The teachers of the request, from its checkpoints, or trained if the store has none."""
        request = self.request
        recipe = _recipe(request, request.teacher_epochs or request.epochs).model_copy(update={"finetune": 0.0})
        paths = request.teacher_weights or (None,) * len(request.teachers)
        models = [
            self.model(name, request.teacher_args, recipe, path)
            for name, path in zip(request.teachers, paths, strict=True)
        ]
        for doubt in doubted(task_of(self.data.task), models, self.splits, self.store, self.device):
            say(doubt)
        runs = iter(teacher_runs([each for each in models if not each.ready], self.data, recipe))
        return tuple(model if model.ready else self._trained(next(runs)) for model in models)

    def _trained(self, spec: Spec) -> ModelSpec:
        run = self.carry_out(spec, f"teacher {spec.student.name}")
        if run.status != "done":
            raise InputError(f"the teacher {spec.student.name} could not be trained: {run.status}: {run.reason}")
        if run.outcome and (doubt := near_chance(run.outcome, spec.student.name)):
            say(doubt)
        return taught_by(spec)

    def carry_out(self, spec: Spec, title: str) -> StoredRun:
        """Carries out a run, and shows its epochs under a title."""
        live = Live(title, primary_of(self.data))
        return carry_out(spec, self.store, self.data_dir, self.device, live, cache=self.cache, waits=_waits)


def _waits(reason: str) -> None:
    """Says that another process is carrying a run out, whose end is waited for."""
    Console(stderr=True).print(f"Waiting: {reason}", markup=False, soft_wrap=True)


def _track(run: StoredRun, store: RunStore, uri: str) -> None:
    """Projects the run; a copy that fails is a warning, for the run is kept."""
    from kdbench.sweeps.scheduling.projector import Projector
    from kdbench.sweeps.scheduling.syncing import SINGLE

    with Projector(store, SINGLE, uri) as projector:
        projector.single(run)
    if projector.problem:
        say(projector.problem)


def _check_teachers(request: RunRequest, method: Method) -> None:
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


def _data(request: RunRequest) -> tuple[DataSpec, Path]:
    """The data set, and the folder where it is looked for; a path is a folder of images."""
    given = request.place.data_dir
    name, data_dir = named(request.data, request.place.data)
    if given and not given.is_dir():
        raise InputError(f"there is no folder {given} (--data-dir).")
    values = {"name": name, "task": request.task, "image_size": request.image_size}
    try:
        return DataSpec.model_validate(values | {"train_fraction": request.train_fraction}), data_dir
    except ValidationError as error:
        raise InputError(explain(error)) from None


def _recipe(request: RunRequest, epochs: int | None) -> Recipe:
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
