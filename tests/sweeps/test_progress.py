from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from kdbench.bench.record import ACCURACY, Epoch
from kdbench.bench.spec import DataSpec, ModelSpec, Spec
from kdbench.results.store.plan import Planned
from kdbench.results.store.stored_run import StoredRun
from kdbench.sweeps.cli import progress as progress_module
from kdbench.sweeps.cli.progress import SweepProgress, renews
from kdbench.sweeps.scheduling.forecast import ANY, Expected, Forecast

PAIR = "large -> small"
EXPECTED = [Expected(PAIR, "teacher", 1, 4), Expected(PAIR, "kd", 3, 10), Expected(PAIR, "sp", 2, 10)]


def planned(method: str = "kd", number: int = 0) -> Planned:
    return Planned(PAIR, method, "teacher" if method == "teacher" else "trial", number, f"{method}{number}")


def epoch(number: int, of: int = 10, seconds: float = 2.0) -> Epoch:
    counts = {"samples": 8, "teacher_forwards": 0}
    scores = {"train": 0.5, "validation": 0.9125, "learning_rate": 0.1}
    return Epoch(number=number, of=of, stage="train", losses={}, seconds=seconds, **counts, **scores)


def ended(status: str = "done", reason: str = "", epochs: int = 0) -> StoredRun:
    spec = Spec(method="kd", student=ModelSpec(name="net"), data=DataSpec(name="digits"))
    seen = [epoch(number) for number in range(1, epochs + 1)]
    return StoredRun("k", spec, status, reason, seen, None, 0.0, 0.0, [], None)


def shown(console: Console, name: str = "toy") -> SweepProgress:
    progress = SweepProgress(name, EXPECTED, 2, ACCURACY)
    progress.console = progress.page.console = console
    return progress


@pytest.mark.parametrize("terminal", [False, True])
def test_error_with_markup_in_it_is_shown_as_it_is(terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200, color_system=None)
    shown(console).report(planned(), ended("failed", "ValueError: [/b] of [red]x"))
    assert "failed: ValueError: [/b] of [red]x" in console.file.getvalue()  # type: ignore[attr-defined]


def test_time_left_is_that_of_the_epochs_left_at_what_each_method_takes() -> None:
    forecast = Forecast(EXPECTED, workers=2)
    assert forecast.left() is None
    forecast.learn(planned("teacher"), epoch(1, of=4, seconds=3.0))
    assert forecast.left() == pytest.approx((3 * 3 + 50 * 3) / 2), "students cost what the only run seen does"
    forecast.learn(planned("teacher"), ended())
    forecast.learn(planned("kd"), epoch(1, seconds=5.0))
    assert forecast.left() == pytest.approx((29 * 5 + 20 * 5) / 2), "sp costs what kd does, and not a teacher"
    forecast.learn(planned("sp"), epoch(2, seconds=1.0))
    assert forecast.left() == pytest.approx((29 * 5 + 18 * 1) / 2)
    forecast.learn(planned("sp"), ended("stopped"))
    assert forecast.left() == pytest.approx((29 * 5 + 10 * 1) / 2), "a pruned run has no epochs left"
    for number in range(3):
        forecast.learn(planned("kd", number), ended())
    assert forecast.left() == pytest.approx(10 * 1), "one run occupies one worker"


def test_runs_that_were_there_before_teach_what_epochs_cost() -> None:
    forecast = Forecast(EXPECTED, workers=1)
    forecast.learn(planned("kd"), ended(epochs=10))
    assert forecast.left() == pytest.approx((4 + 20 + 20) * 2)
    forecast.learn(planned("kd", 1), epoch(1, seconds=10.0))
    assert forecast.left() == pytest.approx((4 + 19 + 20) * 10), "this machine's times count more than stored ones"


def test_log_has_a_line_for_each_run_and_names_those_before_in_one() -> None:
    console = Console(file=io.StringIO(), width=80)
    with shown(console) as progress:
        progress.report(planned("teacher"), ended())
        progress.report(planned("kd"), ended())
        progress.report(planned("kd", 1), None)
        progress.report(planned("kd", 1), epoch(1))
        progress.report(planned("kd", 1), ended("stopped", "pruned"))
        progress.say("teacher large is near chance.")
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == [
        "toy: 6 runs, 2 workers",
        "[2/6] 2 runs were there before",
        "[3/6] kd trial 1: stopped: pruned, about 30 s left",
        "teacher large is near chance.",
    ]


def test_silent_log_says_what_runs_before_any_run_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "SILENCE", 0.0)
    console = Console(file=io.StringIO(), width=80)
    with shown(console) as progress:
        wait_for(console, "[0/6] no run is under way: data, networks and loss weights are made ready")
        progress.report(planned("teacher"), None)
        wait_for(console, "[0/6] teacher teacher 0\n")
        progress.report(planned("teacher"), epoch(1, of=4))
        progress.report(planned("kd"), None)
        wait_for(console, "[0/6] teacher teacher 0: epoch 1/4, validation 91.2 % and 1 more, about ")


def wait_for(console: Console, text: str) -> None:
    deadline = time.monotonic() + 30
    while text not in console.file.getvalue():  # type: ignore[attr-defined]
        assert time.monotonic() < deadline, console.file.getvalue()  # type: ignore[attr-defined]
        time.sleep(0.05)


@pytest.mark.parametrize("width", [20, 80])
def test_page_names_runs_under_way_within_the_width_of_the_terminal(width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    progress = shown(console)
    for number in range(10):
        progress.report(planned("kd", number), None)
    progress.report(planned("kd", 9), epoch(3))
    console.print(progress._page())
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 1 + 1 + 8 + 1 and all(len(line) <= width for line in lines)
    if width == 80:
        assert lines[0] == "toy: 0 of 6 runs, 2 workers, 0 s so far, about 51 s left"
        assert lines[2] == "  kd trial 0" and lines[-1] == "  2 more"


def test_terminal_that_moves_no_cursor_has_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert not renews(Console(force_terminal=True)) and not renews(Console(file=io.StringIO()))
    monkeypatch.setenv("TERM", "xterm")
    assert renews(Console(force_terminal=True))


def test_runs_that_a_sweep_decides_as_it_goes_are_counted_by_their_phase() -> None:
    forecast = Forecast([Expected(ANY, "trial", 4, 10), Expected(ANY, "teacher", 1, 10)], 1)
    epoch = Epoch(
        number=5, of=10, stage="train", losses={}, train=0.5, validation=0.5, learning_rate=0.1, samples=1,
        teacher_forwards=0, seconds=2.0,
    )  # fmt: skip
    forecast.learn(Planned("a -> b", "kd", "trial", 0, "k"), epoch)
    assert forecast.left() == pytest.approx(2.0 * (35 + 10))
