"""What is shown while a run or a sweep goes on, on standard error: renewed in place on a terminal, else as lines."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence

from rich import live
from rich.console import Console, Group
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.text import Text

from kdbench.bench.record import Epoch, Metric
from kdbench.results.pages.numbers import duration, printed
from kdbench.results.store.plan import Planned
from kdbench.results.store.stored_run import StoredRun
from kdbench.sweeps.scheduling.driver import News
from kdbench.sweeps.scheduling.forecast import ANY, Expected, Forecast

SILENCE = 30.0
"""Seconds without a line after which one is printed, where nothing is renewed in place."""
SHOWN = 8
"""Runs under way that a terminal shows at most."""
PREPARES = "no run is under way: data, networks and loss weights are made ready"
WRITES = "all runs have ended: the results are written"


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
        if renews(self.console):
            sys.stderr.write(f"\r\x1b[K{line[: self.console.width - 1]}" + ("\n" if last else ""))
            sys.stderr.flush()
        elif last or 10 * epoch.number // epoch.of > self.shown:
            self.shown = 10 * epoch.number // epoch.of
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
        return True


class SweepProgress:
    """What runs now and the time left: a page that a terminal renews, and elsewhere a line now and then."""

    def __init__(self, name: str, expected: Sequence[Expected], workers: int, metric: Metric) -> None:
        """Starts before the first run.

        Args:
            name: the suite or the table that is carried out.
            expected: the runs that it takes.
            workers: how many processes do it.
            metric: the primary one, of which epochs tell.
        """
        self.console, self.metric = Console(stderr=True), metric
        self.name, self.workers, self.forecast = name, workers, Forecast(expected, workers)
        self.runs, self.ended, self.before = sum(each.runs for each in expected), 0, 0
        self.several = len({each.pair for each in expected}) > 1 or any(each.pair == ANY for each in expected)
        self.now: dict[tuple[str, str, str, int], tuple[str, float]] = {}
        """What is said of runs under way, and the share of their epochs that is done, by their places."""
        self.started = self.spoken = self.known = time.monotonic()
        """When the sweep began, when a line was last printed, and when the time left was last reckoned."""
        self.left: float | None = None
        self.begun = False
        self.page = live.Live(console=self.console, get_renderable=self._page, refresh_per_second=4)
        self.over = threading.Event()

    def __enter__(self) -> SweepProgress:
        """Shows the page; elsewhere the first line, that it begins, is not printed before there is news."""
        if renews(self.console):
            self.page.start()
        else:
            threading.Thread(target=self._speak, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stops the page and leaves it on the terminal as it is."""
        self.over.set()
        self._tell_before()
        if renews(self.console):
            self.page.stop()

    def report(self, planned: Planned, news: News) -> None:
        """Takes the beginning, an epoch or the end of a run."""
        self._begin()
        what = f"{planned.method} {planned.phase} {planned.number}" + (f" of {planned.pair}" if self.several else "")
        if news is None:
            self._tell_before()
            self.now[planned.place] = what, 0.0
            return
        self.forecast.learn(planned, news)
        self.left, self.known = self.forecast.left(), time.monotonic()
        if isinstance(news, Epoch):
            text = f"{what}: epoch {news.number}/{news.of}, validation {printed(news.validation, self.metric)}"
            self.now[planned.place] = text, news.number / news.of
            return
        self.ended += 1
        if self.now.pop(planned.place, None) is None and news.status != "failed":
            self.before += 1
        else:
            self._end(what, news)

    def say(self, text: str) -> None:
        """Shows a line that stays."""
        self._print(text)

    def _end(self, what: str, run: StoredRun) -> None:
        """Says how a run ended; a page shows only failures."""
        end = f"{run.status}: {run.reason}"
        if run.outcome and (value := run.outcome.headline("last", "validation")) is not None:
            end = f"validation {run.outcome.metric.name} {printed(value, run.outcome.metric)}"
        if run.status == "failed" or not renews(self.console):
            self._print(f"[{self.ended}/{self.runs}] {what}: {end}{self._rest()}")

    def _rest(self) -> str:
        """The time left; empty if it is not known."""
        if self.left is None or self.ended >= self.runs:
            return ""
        return f", about {duration(max(0.0, self.left - (time.monotonic() - self.known)))} left"

    def _idle(self) -> str:
        """What is done while no run is under way."""
        return PREPARES if self.ended < self.runs else WRITES

    def _tell_before(self) -> None:
        """Says once how many runs were found finished."""
        if self.before:
            self._print(f"[{self.ended}/{self.runs}] {self.before} runs were there before")
        self.before = 0

    def _speak(self) -> None:
        """Where no page is renewed: says what is going on whenever nothing was said for a while."""
        while not self.over.wait(1.0):
            if time.monotonic() - self.spoken >= SILENCE:
                running = [text for text, _ in list(self.now.values())] or [self._idle()]
                self._print(f"[{self.ended}/{self.runs}] {running[0]}{_more(len(running) - 1)}{self._rest()}")

    def _print(self, text: str) -> None:
        self.spoken = time.monotonic()
        self._begin()
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _begin(self) -> None:
        """Says, where no page is renewed, that the sweep begins."""
        if not (self.begun or renews(self.console)):
            self.begun = True
            self._print(f"{self.name}: {self.runs} runs, {self.workers} workers")

    def _page(self) -> Group:
        """What a terminal shows: how far the sweep is, a bar, and a line for each run under way, cut to its width."""
        running = list(self.now.values())
        shown = [f"  {text}" for text, _ in running[:SHOWN]] or [f"  {self._idle()}"]
        shown += [f"  {len(running) - SHOWN} more"] if len(running) > SHOWN else []
        gone = duration(time.monotonic() - self.started)
        head = f"{self.name}: {self.ended} of {self.runs} runs, {self.workers} workers, {gone} so far{self._rest()}"
        done = self.ended + sum(share for _, share in running)
        bar = ProgressBar(total=max(1, self.runs), completed=done, width=min(80, self.console.width))
        top, *lines = (Text(line, no_wrap=True, overflow="ellipsis") for line in (head, *shown))
        return Group(top, Padding(bar, 0), *lines)


def renews(console: Console) -> bool:
    """Whether what a console shows can be renewed in place: it is a terminal that moves its cursor."""
    return console.is_terminal and not console.is_dumb_terminal


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
