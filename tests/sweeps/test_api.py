"""`import kdbench`: the commands as functions, in scripts, and from a wheel beside folders of the rooms' names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest

import kdbench
from kdbench.bench.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "results" / "evidence" / "digits"
DOCS = (ROOT / "docs" / "python.md").read_text()


def test_registry_is_a_table() -> None:
    found = kdbench.methods().set_index("method")
    assert found.loc["kd", "year"] == 2015 and found.loc["kd", "hyperparameters"]["temperature"] == 4.0
    assert "temperature" in found.loc["kd", "search"] and not found.loc["student", "needs_teacher"]


def test_leaderboard_of_evidence_is_that_of_its_page() -> None:
    board = kdbench.leaderboard("digits", store=DIGITS)
    pair = board[board.pair == "cifar_resnet20 + cifar_resnet14 -> cifar_resnet8"].set_index("method")
    page = (ROOT / "results" / "boards" / "digits.md").read_text()
    shown = re.search(r"^\| kd +\| \**([\d.]+) ± ([\d.]+)", page, re.MULTILINE)
    assert shown is not None
    score, half = pair.loc["kd", "score"], pair.loc["kd", "score_half_width"]
    assert (f"{100 * score:.1f}", f"{100 * half:.1f}") == shown.groups()
    assert pd.isna(pair.loc["student", "gain_control"]) and pair.loc["kd", "setting"]["temperature"] > 0


def test_published_numbers_and_a_table_beside_ours() -> None:
    found = kdbench.published("at", table="at2017_cifar10")
    assert {"value", "spread", "source"} <= set(found.columns) and set(found.table) == {"at2017_cifar10"}
    store = ROOT / "results" / "evidence" / "hinton2015_mnist"
    table = kdbench.reproduce("hinton2015_mnist", store=store, train=False).set_index("label")
    assert table.loc["student", "published"] == 146 and len(table.loc["student", "seeds"]) == 3


def test_a_site_is_written(tmp_path: Path) -> None:
    index = kdbench.report("segmentation", out=tmp_path / "site", store=ROOT / "results" / "evidence" / "segmentation")
    assert index == tmp_path / "site" / "index.html" and "segmentation" in index.read_text()


@pytest.mark.slow
def test_a_sweep_is_its_leaderboard_and_is_not_repeated(tmp_path: Path, tiny: Path) -> None:
    small = {"methods": ["student"], "trials": 1, "seeds": 1, "epochs": 1, "workers": 1, "store": tmp_path / "s"}
    board = kdbench.sweep(tiny, **small)
    assert set(board.method) == {"student"} and (board.status == "done").all() and (board.score > 0).all()
    assert kdbench.sweep(tiny, **small).equals(board)
    assert set(kdbench.leaderboard("tiny", store=tmp_path / "s").columns) == set(board.columns)


def test_a_run_is_typed_and_is_not_repeated(tmp_path: Path) -> None:
    given = {"epochs": 1, "train_fraction": 0.1, "store": tmp_path, "device": "cpu", "mlflow": False}
    run = kdbench.run("kd", "cifar_resnet8_quarter", "digits", teacher="cifar_resnet8_quarter", **given)
    assert run.status == "done" and run.outcome and 0 < run.outcome.headline("last", "test") < 1  # type: ignore[operator]
    again = kdbench.run("kd", "cifar_resnet8_quarter", "digits", teacher="cifar_resnet8_quarter", **given)
    assert again.key == run.key and again.ended == run.ended
    with pytest.raises(InputError, match="temperature"):
        kdbench.run("kd", "cifar_resnet8_quarter", "digits", settings={"temperature": -1}, **given)
    assert issubclass(kdbench.InputError, ValueError) or kdbench.InputError is InputError


def test_unknown_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="no attribute 'leaderbord'"):
        kdbench.leaderbord  # noqa: B018


@pytest.mark.slow
def test_examples_of_the_docs_run(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    (tmp_path / "example.py").write_text(code)
    (tmp_path / "evidence").symlink_to(ROOT / "results" / "evidence")
    said = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert said.returncode == 0, said.stderr
    assert "kd" in said.stdout and "146" in said.stdout


@pytest.mark.slow
def test_the_wheel_works_beside_folders_of_the_rooms_names(tmp_path: Path) -> None:
    """Neither do they hide the rooms, nor the rooms them."""
    build = [sys.executable, "-c", "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"]
    copy = tmp_path / "source"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        if name.startswith(("results/evidence/", "tests/", "docs/")) or not os.path.lexists(ROOT / name):
            continue
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            (copy / name).symlink_to(os.readlink(ROOT / name))
        else:
            (copy / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*build, str(tmp_path)], cwd=copy, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("kdbench-*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    assert {path.name for path in (tmp_path / "installed").iterdir() if "-" not in path.name} == {"kdbench"}
    for room in ("bench", "methods", "sweeps", "results"):
        (tmp_path / "mine" / room).mkdir(parents=True)
        (tmp_path / "mine" / room / "__init__.py").write_text(f"MINE = {room!r}\n")
    code = (
        "import bench, methods, results, sweeps, kdbench, pathlib\n"
        "assert (bench.MINE, methods.MINE, results.MINE, sweeps.MINE) == ('bench', 'methods', 'results', 'sweeps')\n"
        "assert pathlib.Path(kdbench.__file__).parts[-3] == 'installed'\n"
        "assert len(kdbench.methods()) > 20 and len(kdbench.published('kd'))\n"
        "from kdbench.sweeps.suites.files import load_suite\n"
        "print(load_suite('digits').name)\n"
    )
    there = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "mine", env=there, capture_output=True, text=True, timeout=120
    )
    assert (said.returncode, said.stdout) == (0, "digits\n"), said.stderr
