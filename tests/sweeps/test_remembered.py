"""Answers that are kept: given again where nothing has changed, and no longer where something that decides them has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.results.store.run_store import RunStore
from kdbench.sweeps.cli.finished import _shown, _state, swept
from kdbench.sweeps.cli.place import Place
from kdbench.sweeps.cli.remembered import Remembered, state_of_data, state_of_runs
from kdbench.sweeps.cli.sweep import Shown
from tests.sweeps.commands import Run

EVIDENCE = str(Path(__file__).resolve().parents[2] / "results" / "evidence" / "study_why")


def test_answer_is_given_for_the_same_question_and_state_alone(tmp_path: Path) -> None:
    kept = Remembered(tmp_path, "toy", ["a"])
    assert kept.answer(["x"]) is None
    kept.keep(["x"], {"value": [1, 2.5]})
    assert Remembered(tmp_path, "toy", ["a"]).answer(["x"]) == {"value": [1, 2.5]}
    assert Remembered(tmp_path, "toy", ["b"]).answer(["x"]) is None and kept.answer(["y"]) is None
    kept.path.write_bytes(kept.path.read_bytes()[:-9])
    assert kept.answer(["x"]) is None, "a torn file is none"


def test_answer_of_other_code_or_of_another_machine_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Remembered(tmp_path, "toy", []).keep([], 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert Remembered(tmp_path, "toy", []).answer([]) is None
    monkeypatch.undo()
    assert Remembered(tmp_path, "toy", []).answer([]) == 1
    copy = tmp_path / "copy"
    for package in ("bench", "sweeps", "results", "methods"):
        root = Path(__file__).resolve().parents[2] / package
        shutil.copytree(root, copy / "kdbench" / package, ignore=shutil.ignore_patterns("__pycache__", "evidence"))
    (copy / "kdbench" / "__init__.py").touch()
    code = "from kdbench.sweeps.cli.remembered import code; print(code())"

    def asked() -> str:
        return subprocess.run(
            [sys.executable, "-c", code], cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)}, capture_output=True
        ).stdout.decode()

    before = asked()
    changed = copy / "kdbench" / "methods" / "kd.py"
    changed.write_text(changed.read_text() + "\n")
    assert before and asked() != before


def test_state_of_a_store_changes_with_its_runs_and_plans_and_that_of_data_with_its_files(
    kdbench: Run, tmp_path: Path
) -> None:
    assert kdbench("import", EVIDENCE, "--store", "runs")[0] == 0
    root = tmp_path / "runs"
    seen = [list(state_of_runs(root))]
    run = next(iter(sorted((root / "runs").iterdir())))
    changes = [next(run.glob("*/records.jsonl")), run / "DONE.json", next(root.glob("suites/*/*/plan.jsonl"))]
    for path in changes:
        path.write_bytes(path.read_bytes() + b" ")
        assert (now := list(state_of_runs(root))) not in seen
        seen.append(now)
    assert list(state_of_data(tmp_path / "data")) == []
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    before = list(state_of_data(tmp_path / "data"))
    (tmp_path / "data" / "mnist" / "train.gz").touch()
    assert list(state_of_data(tmp_path / "data")) != before


def test_finished_sweep_is_told_again_without_torch_and_becomes_the_last_run(kdbench: Run, tmp_path: Path) -> None:
    assert kdbench("import", EVIDENCE, "--store", "runs")[0] == 0
    place, changes = (
        Place(Path("runs"), precision=""),
        dict.fromkeys(("trials", "seeds", "epochs", "methods")) | {"cold": False},
    )
    (file,) = (tmp_path / "runs").glob("suites/*/*/suite.json")
    board = {"suite": f"study_why@{file.parent.name}", "done": 2, "expected": 2, "damaged": []}
    root = place.store.resolve()
    Remembered(root, "sweep-study_why", [changes, vars(place), _shown()]).keep(
        _state(root, place), {"board": board, "text": "the board"}
    )
    os.utime(file, (0, 0))
    with RunStore(root).exclusive():
        assert swept("study_why", changes, place) == (board, "the board", [])
    assert file.stat().st_mtime > 1e9
    code = "import sys; from kdbench.sweeps import cli; sys.argv[1:] = ['sweep', 'study_why', '--store', 'runs']; "
    code += "assert cli.guarded(cli._typer) == 0 and not {'torch', 'mlflow', 'scipy'} & set(sys.modules)"
    top = str(Path(__file__).resolve().parents[2])
    with RunStore(root).exclusive():  # a sweep that is gone through would be refused
        env = os.environ | {"PYTHONPATH": top}
        told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert told.returncode == 0 and told.stdout == "the board\n", told.stderr
    assert told.stderr == "study_why: all runs were there before; nothing was repeated.\n"


@pytest.mark.parametrize(
    ("board", "failures", "problem"),
    [({"done": 1}, [], ""), ({"damaged": ["run 1"]}, [], ""), ({}, ["kd trial 1"], ""), ({}, [], "MLflow was not")],
)
def test_sweep_of_which_something_is_left_is_not_whole(
    board: dict[str, object], failures: list[str], problem: str
) -> None:
    whole = {"done": 2, "expected": 2, "damaged": []}
    assert Shown(dict(whole), "", [], "").whole and not Shown(whole | board, "", failures, problem).whole
