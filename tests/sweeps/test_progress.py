from __future__ import annotations

import pytest
from rich.console import Console

from kdbench.bench.spec import DataSpec, ModelSpec, Spec
from kdbench.results.store.plan import Planned
from kdbench.results.store.stored_run import StoredRun
from kdbench.sweeps.cli.progress import SweepProgress


@pytest.mark.parametrize("terminal", [False, True])
def test_error_with_markup_in_it_is_shown_as_it_is(terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    spec = Spec(method="kd", student=ModelSpec(name="net"), data=DataSpec(name="digits"))
    run = StoredRun("k", spec, "failed", "ValueError: [/b] of [red]x", [], None, 0.0, 0.0, [], None)
    progress = SweepProgress("toy", 1, 1)
    progress.console = progress.bar.live.console = Console(stderr=True, force_terminal=terminal, width=200)
    progress.report(Planned("large -> small", "kd", "trial", 0, "k"), run)
    assert "failed: ValueError: [/b] of [red]x" in capsys.readouterr().err
