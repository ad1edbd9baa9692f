"""How long a sweep will still take: epochs that are left, at what an epoch of each method has taken."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from kdbench.bench.record import Epoch
from kdbench.results.store.plan import Planned
from kdbench.results.store.stored_run import StoredRun

ANY = ""


@dataclass(frozen=True)
class Expected:
    """Runs of one kind that a sweep will take."""

    pair: str
    """ANY if the sweep decides as it goes; then `method` is the phase of the runs."""
    method: str
    """As plans name it: "teacher" for the pair's teachers."""
    runs: int
    epochs: int
    """Of each of them."""


@dataclass
class _Kind:
    """What is left of a kind of runs, and what was seen of it."""

    runs: int
    """That have not ended."""
    epochs: int
    begun: dict[tuple[str, str, str, int], int] = field(default_factory=dict)
    """Epochs that runs under way have behind them, by their places."""
    seconds: list[float] = field(default_factory=list)
    """Of epochs that were watched."""
    stored: list[float] = field(default_factory=list)
    """Of epochs of runs that were there before, perhaps from another machine."""

    @property
    def cost(self) -> float | None:
        """Seconds of an epoch; None if none was seen."""
        seen = self.seconds or self.stored
        return statistics.fmean(seen) if seen else None

    @property
    def left(self) -> int:
        """Epochs that are left."""
        return max(0, self.runs * self.epochs - sum(self.begun.values()))


class Forecast:
    """Learns from every epoch what is left of a sweep; kinds of which none was seen cost what similar ones do."""

    def __init__(self, expected: Sequence[Expected], workers: int) -> None:
        """Starts before the first run.

        Args:
            expected: all that the sweep takes.
            workers: how many processes share it.
        """
        self.workers = workers
        self.kinds = {(each.pair, each.method): _Kind(each.runs, each.epochs) for each in expected}

    def learn(self, planned: Planned, news: Epoch | StoredRun) -> None:
        """Takes an epoch, or the end of a run."""
        place = planned.pair, planned.method
        kind = self.kinds.get(place) or self.kinds.get((ANY, planned.phase))
        if kind is None:
            kind = self.kinds[place] = _Kind(1, 0)
        if isinstance(news, Epoch):
            kind.epochs = news.of
            kind.begun[planned.place] = news.number
            kind.seconds.append(news.seconds)
            return
        kind.runs = max(0, kind.runs - 1)
        if kind.begun.pop(planned.place, None) is None:
            kind.stored += [epoch.seconds for epoch in news.epochs]

    def left(self) -> float | None:
        """Seconds until all runs have ended, about; None before anything is known.

        A method that was not seen yet costs the mean of those that were seen on its pair, or else of all.
        """
        if not (costs := {place: kind.cost for place, kind in self.kinds.items() if kind.cost is not None}):
            return None
        students = {place: cost for place, cost in costs.items() if place[1] != "teacher"} or costs
        work = 0.0
        for (pair, method), kind in self.kinds.items():
            near = [cost for (where, _), cost in students.items() if where == pair] or list(students.values())
            work += kind.left * costs.get((pair, method), statistics.fmean(near))
        return work / max(1, min(self.workers, sum(kind.runs for kind in self.kinds.values())))
