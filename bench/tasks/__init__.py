"""Tasks: what is learned, from which data, judged by what. A file of this folder is a task; its name is the task's."""

from __future__ import annotations

import functools
import importlib.util
import pkgutil
from pathlib import Path

from kdbench.bench.data.splits import Source, Splits
from kdbench.bench.errors import unknown
from kdbench.bench.outside import brought, loaded
from kdbench.bench.spec import DataSpec
from kdbench.bench.tasks.base import Task


def tasks() -> list[str]:
    """Names of all tasks, those that installed packages bring among them."""
    own = {module.name for module in pkgutil.iter_modules(__path__) if module.name != "base"}
    return sorted(own | brought("tasks").keys())


@functools.cache
def task_of(name: str) -> Task:
    """A task by name.

    Raises:
        InputError: if there is none.
    """
    if name not in tasks():
        raise unknown("task", name, tasks())
    task: Task
    if importlib.util.find_spec(f"{__name__}.{name}"):
        task = importlib.import_module(f"{__name__}.{name}").TASK
    else:
        task = loaded("tasks", name)
    return task


def load(spec: DataSpec, data_dir: Path) -> Splits:
    """A data set of the task that its specification names, read and split in three; see `Task.load`.

    Raises:
        InputError: if the task or the data are unknown, missing, changed since the spec was made, or too few to split.
    """
    return task_of(spec.task).load(spec, data_dir)


def read(spec: DataSpec, data_dir: Path) -> Source:
    """A data set of the task that its specification names, as it comes; see `Task.read`.

    Raises:
        InputError: if the task or the name is unknown or the files cannot be had.
    """
    return task_of(spec.task).read(spec, data_dir)


__all__ = ["Task", "load", "read", "task_of", "tasks"]
