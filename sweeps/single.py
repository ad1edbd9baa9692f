"""`kdbench run`: from what a user asks for to one run, with the teacher that it needs."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from bench.data import DATASETS, FOLDER, check_augment, default_augment, load, read
from bench.environment import command, pick_device, pick_precision
from bench.errors import InputError
from bench.networks import build, check_model, import_checkpoint
from bench.record import Epoch, plain
from bench.spec import DataSpec, ModelSpec, Recipe, Spec, configure, explain, read_value
from results.store import RunStore, StoredRun
from sweeps.suite import taught_by, teacher_run
from sweeps.workers import carry_out


@dataclass(frozen=True)
class Request:
    """What the command line asks for; texts are not yet checked."""

    method: str
    student: str
    data: str
    teacher: str | None = None
    teacher_weights: Path | None = None
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
    data_dir: Path | None = None


def carry_out_request(request: Request, root: Path, mlflow: bool) -> tuple[dict[str, Any], str]:
    """Carries out a run and its teacher's; returns the result as JSON values and as text.

    Raises:
        InputError: if anything in the request is wrong.
    """
    method = configure(request.method, request.settings)
    for name in filter(None, (request.student, request.teacher)):
        check_model(name)
    if method.taught and not request.teacher:
        raise InputError(f"method {request.method} learns from a teacher: give --teacher.")
    device = pick_device(request.device)
    precision = pick_precision(request.precision, device)
    data, data_dir = _data(request, root)
    recipe = _recipe(request, request.epochs)
    store = RunStore(root)
    fingerprint = read(data.name, data.image_size, data_dir).fingerprint
    data = data.model_copy(update={"fingerprint": fingerprint})
    student = ModelSpec(name=request.student, args=_args(request.student_args))
    build(student, splits := load(data, data_dir))

    teachers: tuple[ModelSpec, ...] = ()
    if request.teacher:
        model = ModelSpec(name=request.teacher, args=_args(request.teacher_args))
        network = build(model, splits)
        if request.teacher_weights:
            file = import_checkpoint(request.teacher_weights, network, request.teacher)
            teachers = (model.model_copy(update={"weights": store.import_weights(file)}),)
        else:
            longer = _recipe(request, request.teacher_epochs or request.epochs)
            teacher = teacher_run(model, data, longer, precision)
            run = carry_out(teacher, store, data_dir, device, Live(f"teacher {request.teacher}"))
            if run.status != "done":
                raise InputError(f"the teacher {request.teacher} could not be trained: {run.status}: {run.reason}")
            teachers = (taught_by(teacher),)
    spec = Spec(
        method=request.method,
        params=method.parameters(),
        student=student,
        teachers=teachers,
        data=data,
        recipe=recipe,
        seed=request.seed,
        precision=precision,  # type: ignore[arg-type]
    )
    before = store.get(spec.key)
    run = carry_out(spec, store, data_dir, device, Live(f"{request.method} {request.student}"))
    if mlflow:
        from results.tracking import Tracker

        tags = {"method": spec.method, "phase": "run"}
        Tracker(store, "runs").single(run, f"{spec.method}: {spec.student.name}", tags)
    repeated = before is not None and before.finished
    return _values(run, repeated), _text(run, store, repeated)


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


def _args(texts: dict[str, str]) -> dict[str, Any]:
    return {name: read_value(value) for name, value in texts.items()}


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
            f"train {100 * epoch.train_accuracy:.1f} % validation {100 * epoch.validation_accuracy:.1f} %"
        )
        last = epoch.number == epoch.of
        if self.console.is_terminal:
            sys.stderr.write(f"\r\x1b[K{line[: self.console.width - 1]}" + ("\n" if last else ""))
            sys.stderr.flush()
        elif last or 10 * epoch.number // epoch.of > self.shown:
            self.shown = 10 * epoch.number // epoch.of
            self.console.print(line, highlight=False, soft_wrap=True)
        return True


def _values(run: StoredRun, repeated: bool) -> dict[str, Any]:
    outcome = plain(run.outcome) if run.outcome else None
    return {"key": run.key, "already_finished": repeated, "spec": run.spec, "status": run.status, "outcome": outcome}


def _text(run: StoredRun, store: RunStore, repeated: bool) -> str:
    """The result of a run for a person."""
    lines = [f"Run {run.key} was finished before; nothing was repeated."] if repeated else []
    if run.outcome is None or run.status != "done":
        return "\n".join([*lines, f"Run {run.key}: {run.status}: {run.reason}"])
    for which in ("last", "best"):
        scores = run.outcome.scores[which]
        for student, predictions in scores["test"].items():
            for name, metrics in predictions.items():
                values = ", ".join(f"{metric} {value:.4f}" for metric, value in metrics.items())
                lines.append(f"test, {which} epoch ({scores['epoch']}), {student}, {name}: {values}")
    cost = run.outcome.cost
    size = f"{cost['parameters']:,} parameters"
    if "teacher_parameters" in cost:
        size += f", {cost['teacher_parameters'] / cost['parameters']:.1f} times fewer than the teacher"
    lines.append(f"{size}; {cost['latency_ms']:.2f} ms an image; {cost['seconds']:.1f} s of training")
    lines.append(f"Run {run.key} is in {run.folder}")
    lines.append(f"MLflow: {command('mlflow')} ui --backend-store-uri sqlite:///{store.root}/mlflow.db")
    return "\n".join(lines)
