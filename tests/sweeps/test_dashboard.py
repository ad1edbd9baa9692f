"""The command that shows studies in a browser is printed, and shows them."""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import optuna
import pytest

from kdbench.sweeps.cli.common import dashboard
from tests.sweeps.commands import Run

SMALL = ["--methods", "student", "--trials", "2", "--seeds", "1", "--epochs", "1", "--workers", "2"]


def test_line_is_of_this_machine_alone_and_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "my runs"
    store.mkdir()
    assert dashboard(store) == ""
    (store / "optuna.db").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = dashboard(store)
    assert line.endswith("(pip install optuna-dashboard)")
    command = shlex.split(line.removeprefix("Studies: ").partition("   (")[0])
    assert command[1:] == [f"sqlite:///{store}/optuna.db", "--host", "127.0.0.1"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert dashboard(store).endswith("--host 127.0.0.1")


@pytest.mark.slow
def test_a_sweep_status_and_show_print_it_and_it_opens_the_study(kdbench: Run, tiny: Path) -> None:
    code, out, err = kdbench("sweep", "tiny.toml", *SMALL, "--precision", "fp32", "--store", "runs")
    assert code == 0, err
    line = next(line for line in out.splitlines() if line.startswith("Studies: "))
    assert line in [each.strip() for each in kdbench("status", "tiny", "--store", "runs")[1].splitlines()]
    key = next(Path("runs", "runs").iterdir()).name
    assert kdbench("show", key, "--store", "runs")[1].splitlines()[-1] == line
    json.loads(kdbench("status", "tiny", "--store", "runs", "--json")[1])
    command = shlex.split(line.removeprefix("Studies: ").partition("   (")[0])
    (study,) = optuna.get_all_study_summaries(command[1])
    assert study.n_trials == 2
    pytest.importorskip("optuna_dashboard")
    if shutil.which(command[0]) is None:  # a virtual environment without its scripts
        command[:1] = [sys.executable, "-c", "from optuna_dashboard._cli import main; main()"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        assert json.loads(_asked(f"http://127.0.0.1:{port}/api/studies"))["study_summaries"][0]["study_name"]
    finally:
        served.terminate()
        served.wait()


def _asked(url: str) -> bytes:
    for _ in range(600):
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return bytes(answer.read())
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"nothing answers at {url}")
