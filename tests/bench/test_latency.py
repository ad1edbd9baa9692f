from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from kdbench.bench.evaluation import latency
from kdbench.bench.evaluation.latency import Timing, timed, timing_of


def test_a_quiet_core_is_told_by_spread_and_by_what_it_worked() -> None:
    quiet = timing_of([(taken, taken) for taken in (0.40, 0.41, 0.41, 0.42, 0.43)])
    assert quiet.quiet and str(quiet) == "0.41 ms (quartiles 0.41 to 0.42)"
    apart = timing_of([(taken, taken) for taken in (3.0, 3.0, 17.0, 88.0, 277.0)])
    assert not apart.quiet and str(apart).startswith("not measured, as the core was not quiet: 17 ms")
    shared = timing_of([(6.0, 3.0)] * 5)
    assert shared.spread == 0 and not shared.quiet, "another process had the core for half of every call"
    assert timing_of([(2.0, 8.0)] * 5).quiet, "four cores worked for it"


def test_a_call_that_waits_is_not_measured() -> None:
    found = timed({"waits": lambda: time.sleep(0.002)}, repeats=3, warm_up=0)["waits"]
    assert found.share < 0.5 and not found.quiet and found.low <= found.median <= found.high


def test_what_was_not_quiet_is_measured_again_and_the_quietest_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = [Timing(9, 5, 20), Timing(3, 2, 4), Timing(2, 1.9, 2.1), Timing(1, 1, 1)]

    def served() -> Iterator[dict[str, Timing]]:
        for each in rounds:
            yield {"busy": each, "still": Timing(1, 1, 1, share=0.5)}

    answers = served()
    monkeypatch.setattr(latency, "_round", lambda *_: next(answers))
    assert timed({"busy": list, "still": list}) == {"busy": rounds[2], "still": Timing(1, 1, 1, share=0.5)}
    assert len(list(answers)) == 1, "three rounds at most"
    answers = iter([{"quiet": rounds[2]}])
    assert timed({"quiet": list}) == {"quiet": rounds[2]}, "one round where all is quiet"
