"""A real sweep under fifty kills, and one run under twenty: the same results to the bit, nothing lost or twice."""

from __future__ import annotations

import random
import sqlite3
import time
from pathlib import Path

import pytest

from tests.conftest import Figure
from tests.faults.sweeps import RUNS, SUITE, Killer, numbers, weights_of
from tests.sweeps.test_sweep import finished, swept

KILLS, LONGEST = 50, 10.0
"""Kills in all, and the most seconds between two."""


@pytest.mark.slow
@pytest.mark.fault("kills")
def test_sweep_under_fifty_kills_is_an_undisturbed_one_to_the_bit(tmp_path: Path, figure: Figure) -> None:
    suite = tmp_path / "digits_like.toml"
    suite.write_text(SUITE)
    started = time.monotonic()
    board = swept(tmp_path / "left-alone", suite)
    alone = time.monotonic() - started
    killer, stores = Killer(suite, random.Random(14), LONGEST), list[Path]()
    while killer.count < KILLS:
        stores.append(tmp_path / f"store-{len(stores)}")
        assert numbers(killer.sweep(stores[-1], KILLS)) == numbers(board)
        assert weights_of(stores[-1]) == weights_of(tmp_path / "left-alone")
        assert len(finished(stores[-1])) == RUNS
        assert _keys_in_mlflow(stores[-1]) == sorted(finished(stores[-1]))
    kills = ", ".join(f"{count} of the {victim}" for victim, count in killer.kills.items())
    took = time.monotonic() - started - alone
    figure(
        f"{killer.count} kills ({kills}) over {len(stores)} sweeps of {RUNS} runs: tables and weights equal to the "
        f"bit, 0 finished runs lost, 0 repeated, MLflow has each once; {took:.0f} s, left alone {alone:.0f} s a sweep"
    )


def _keys_in_mlflow(store: Path) -> list[str]:
    """The keys of all runs in MLflow, as often as they are there."""
    with sqlite3.connect(store / "mlflow.db") as database:
        return sorted(value for (value,) in database.execute("SELECT value FROM tags WHERE key = 'kdbench.key'"))
