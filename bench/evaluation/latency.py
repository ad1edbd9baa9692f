"""How long calls take on a quiet core: warmed up, repeated in turn, with the spread; else that it was not quiet."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

REPEATS, WARM_UP = 50, 10
"""Timed calls, after others that are not."""
ROUNDS = 3
"""How often a measurement is made, at most, until the core is quiet."""
SPREAD = 0.2
"""The largest distance of the quartiles, as a share of the median, on a core that is quiet."""
SHARE = 0.9
"""The least share of the time that a core works for this process, on a core that is quiet."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a call."""

    median: float
    low: float
    """The first quartile."""
    high: float
    """The third."""
    share: float = 1.0
    """Seconds of processors that this process was given for each second that the calls took."""

    @property
    def spread(self) -> float:
        """The distance of the quartiles, as a share of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0

    @property
    def quiet(self) -> bool:
        """Whether nothing else had the core: only then it is the call that was measured."""
        return self.spread <= SPREAD and self.share >= SHARE

    def __str__(self) -> str:
        """As "0.41 ms (quartiles 0.40 to 0.43)"."""
        said = f"{self.median:.3g} ms (quartiles {self.low:.3g} to {self.high:.3g})"
        return said if self.quiet else f"not measured, as the core was not quiet: {said}"


def timed(
    calls: Mapping[str, Callable[[], object]], repeats: int = REPEATS, warm_up: int = WARM_UP, rounds: int = ROUNDS
) -> dict[str, Timing]:
    """Each call's time, measured in turn, so that a machine's other work strikes all alike.

    Where a call did not have a quiet core, all are measured again, up to `rounds` times; of each its quietest is kept.
    """
    found = _round(calls, repeats, warm_up)
    for _ in range(rounds - 1):
        if all(each.quiet for each in found.values()):
            break
        again = _round(calls, repeats, warm_up)
        found = {
            name: min(each, again[name], key=lambda one: (not one.quiet, one.spread)) for name, each in found.items()
        }
    return found


def _round(calls: Mapping[str, Callable[[], object]], repeats: int, warm_up: int) -> dict[str, Timing]:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(warm_up + repeats):
        for name, call in calls.items():
            worked, start = time.process_time(), time.perf_counter()
            call()
            taken = time.perf_counter() - start
            times[name].append((1000 * taken, 1000 * (time.process_time() - worked)))
    return {name: timing_of(values[warm_up:]) for name, values in times.items()}


def timing_of(times: list[tuple[float, float]]) -> Timing:
    """Milliseconds that calls took, with those for which processors worked for this process."""
    taken = [each for each, _ in times]
    low, median, high = statistics.quantiles(taken, n=4, method="inclusive") if len(taken) > 1 else taken * 3
    return Timing(median, low, high, sum(worked for _, worked in times) / max(sum(taken), 1e-9))
