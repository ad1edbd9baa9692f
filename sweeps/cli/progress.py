"""What a terminal shows while a run or a sweep goes on: on standard error, a bar or a line for each part of it."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from kdbench.bench.record import Epoch, Metric
from kdbench.results.pages.numbers import printed
from kdbench.results.store.plan import Planned
from kdbench.results.store.stored_run import StoredRun


class Live:
    """Shows epochs as they end: on one line of a terminal, or a line each ten percent elsewhere."""

    def __init__(self, title: str, metric: Metric) -> None:
        """Starts before the first epoch.

        Args:
            title: what is being trained.
            metric: the primary one, of which epochs tell.
        """
        self.title, self.metric, self.console, self.shown = title, metric, Console(stderr=True), -1

    def __call__(self, epoch: Epoch) -> bool:
        """Shows an epoch; the run always goes on."""
        losses = " ".join(f"{name} {value:.3f}" for name, value in epoch.losses.items())
        line = (
            f"{self.title}: epoch {epoch.number}/{epoch.of} ({epoch.stage}) {losses} "
            f"{self.metric.name} train {printed(epoch.train, self.metric)} "
            f"validation {printed(epoch.validation, self.metric)}"
        )
        last = epoch.number == epoch.of
        if self.console.is_terminal:
            sys.stderr.write(f"\r\x1b[K{line[: self.console.width - 1]}" + ("\n" if last else ""))
            sys.stderr.flush()
        elif last or 10 * epoch.number // epoch.of > self.shown:
            self.shown = 10 * epoch.number // epoch.of
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
        return True


class SweepProgress:
    """A bar of runs with the time left on a terminal; a line each ended run elsewhere."""

    def __init__(self, name: str, runs: int, workers: int) -> None:
        """Starts before the first run.

        Args:
            name: the suite or the table that is carried out.
            runs: how many there will be.
            workers: how many processes do it.
        """
        self.console = Console(stderr=True)
        self.runs, self.ended = runs, 0
        self.now: dict[str, float] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bar = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=self.console)
        self.task = self.bar.add_task(f"{name}, {workers} workers", total=runs)

    def __enter__(self) -> SweepProgress:
        """Shows the bar, on a terminal."""
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stops the bar and leaves it on the terminal as it is."""
        if self.console.is_terminal:
            self.bar.stop()

    def report(self, planned: Planned, news: Epoch | StoredRun) -> None:
        """Takes an epoch or the end of a run."""
        if isinstance(news, Epoch):
            self.now[planned.key] = news.number / news.of
        else:
            self.now.pop(planned.key, None)
            self.ended += 1
            self._line(planned, news)
        self.bar.update(self.task, completed=int(10 * (self.ended + sum(self.now.values()))) / 10)

    def _line(self, planned: Planned, run: StoredRun) -> None:
        end = f"{run.status}: {run.reason}"
        if run.outcome and (value := run.outcome.headline("last", "validation")) is not None:
            end = f"validation {run.outcome.metric.name} {printed(value, run.outcome.metric)}"
        text = f"[{self.ended}/{self.runs}] {planned.method} {planned.phase} {planned.number}: {end}"
        if not self.console.is_terminal:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
        elif run.status == "failed":
            self.bar.console.print(text, highlight=False, markup=False)
