"""`kdbench sweep --students`: what a terminal shows of a search for a student."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdbench.bench.environment import command
from kdbench.bench.errors import InputError
from kdbench.results.pages.front import front_report
from kdbench.results.pages.report import render
from kdbench.results.store.plan import Planned
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.search import Limits, Search
from kdbench.sweeps.candidates import matching, milliseconds_of, parameters_of
from kdbench.sweeps.cli.common import draw_picture, named, picture_path, say
from kdbench.sweeps.cli.place import Place
from kdbench.sweeps.cli.progress import SweepProgress
from kdbench.sweeps.cli.sweep import changed
from kdbench.sweeps.scheduling.driver import News
from kdbench.sweeps.scheduling.forecast import ANY, Expected
from kdbench.sweeps.scheduling.sources import provide
from kdbench.sweeps.suites.files import load_suite
from kdbench.sweeps.suites.search import Heard, find_students
from kdbench.sweeps.suites.suite import Suite, primary_of


def limits_of(students: str | None, parameters: str | None, latency: str | None, plot: Path | None) -> Limits:
    """What the options of a search say of students.

    Raises:
        InputError: if a pattern matches nothing, a limit is no number, or limits are given without students.
    """
    if students is None:
        given = {"--max-params": parameters, "--max-latency": latency, "--plot": plot}
        option = ", ".join(option for option, value in given.items() if value is not None)
        raise InputError(f"{option} is of a search for a student: give --students too, as 'mobilenetv3*,resnet1*'.")
    patterns = tuple(named(students, "--students"))
    matching(patterns)
    if plot:
        picture_path(plot)
    return Limits(
        students=patterns,
        parameters=None if parameters is None else parameters_of(parameters),
        latency_ms=None if latency is None else milliseconds_of(latency),
    )


class _Shown:
    """A bar of the trials, then one of the front's runs; says the budget before."""

    def __init__(self, suite: Suite, workers: int) -> None:
        """Starts before anything is known of the students."""
        self.suite, self.workers = suite, workers
        pair = suite.pairs[0]
        self.teachers = 0 if pair.teacher_weights else len(pair.teachers)
        self.bar: SweepProgress | None = None

    def begun(self, search: Search) -> None:
        """Says the budget, and starts the bar of the trials."""
        suite, trials = self.suite, self.suite.tuning.trials
        say(
            f"Budget: {trials} trials of {suite.recipe.epochs} epochs over {len(search.candidates)} students and "
            f"{len(suite.methods_of(suite.pairs[0]))} methods, then {suite.seeds} seeds of each student on the front; "
            f"{self.teachers * (1 + suite.seeds)} teachers are trained."
        )
        self._show("trials", [("trial", trials, suite.recipe.epochs), ("teacher", self.teachers, self.longest)])

    def chosen(self, students: int) -> None:
        """Starts the bar of the front's runs."""
        runs, taught = self.suite.seeds * students, self.suite.seeds * self.teachers * min(students, 1)
        self._show("front", [("seed", runs, self.suite.recipe.epochs), ("teacher", taught, self.longest)])

    def report(self, planned: Planned, news: News) -> None:
        """Takes the beginning, an epoch or the end of a run."""
        assert self.bar is not None
        self.bar.report(planned, news)

    def end(self) -> None:
        """Stops the bar that is shown."""
        if self.bar:
            self.bar.__exit__()

    @property
    def longest(self) -> int:
        """Epochs of a teacher."""
        return self.suite.teacher_recipe(self.suite.pairs[0]).epochs

    def _show(self, what: str, runs: list[tuple[str, int, int]]) -> None:
        """Starts the progress of so many runs of each phase, of so many epochs each."""
        self.end()
        expected = [Expected(ANY, *each) for each in runs]
        self.bar = SweepProgress(f"{self.suite.name}, {what}", expected, self.workers, primary_of(self.suite.data))
        self.bar.__enter__()


def search_and_show(
    name: str, changes: dict[str, Any], limits: Limits, place: Place, plot: Path | None
) -> tuple[dict[str, Any], str, list[str]]:
    """Carries out a search with a progress bar; returns the front as JSON values and as text, and failed runs.

    Args:
        name: of a bundled suite, or the path of a TOML file; its first pair's teachers teach.
        changes: methods, trials, seeds and epochs other than the suite's; trials are those of the whole search, by
            default as many as its methods would be given one by one.
        limits: which students.
        place: where and how.
        plot: where the front is drawn.

    Raises:
        InputError: if anything is wrong with the suite, the students or the machine.
        Unfinished: if a teacher could not be trained on this machine.
    """
    if place.storage:
        raise InputError("a search of --students is one sweep's alone, with its study in memory: leave --storage out.")
    provide(changes.get("methods") or "", place.store)
    suite = changed(load_suite(name, cold=True), changes)
    if not changes.get("trials"):
        total = suite.tuning.trials * len(suite.methods_of(suite.pairs[0]))
        suite = suite.model_copy(update={"tuning": suite.tuning.model_copy(update={"trials": total})})
    machine = replace(place, precision=place.precision or suite.precision).machine()
    shown = _Shown(suite, machine.workers)
    try:
        front, problem, failures = find_students(
            suite, limits, RunStore(place.store), machine, Heard(shown.begun, shown.chosen, shown.report, say)
        )
    finally:
        shown.end()
    report = front_report(front)
    if plot and front.points:
        draw_picture(report, "front", plot)
    ends = [problem] if problem else []
    if keys := [point.keys[0] for point in front.points if point.keys]:
        own = Path(suite.data.name)
        where = f" --data-dir {shlex.quote(str(own.parent))}" if own.is_absolute() else ""
        ends.append(f"Next:    {command('kdbench')} export-student {keys[-1]} --to onnx --out student{where}")
    return dict(report.values), render(report) + "\n" + "\n".join(ends), failures
