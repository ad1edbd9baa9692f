"""A user's own method in commands: run, swept in worker processes, edited, and found again from the store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbench.bench import outside
from kdbench.methods import OUTSIDE
from kdbench.results.store.plan import SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.sweeps.cli.sweep import changed
from kdbench.sweeps.protocols.files import load_protocol
from kdbench.sweeps.suites.files import load_suite
from tests.outside import MY_KD
from tests.sweeps.commands import Run
from tests.sweeps.conftest import TINY

SMALL = ["--epochs", "1", "--trials", "1", "--seeds", "1", "--workers", "1", "--precision", "fp32"]


def forget() -> None:
    """As another process, which has loaded nothing."""
    OUTSIDE.clear()
    outside.SOURCES.clear()


@pytest.fixture(autouse=True)
def _unloaded() -> Iterator[None]:
    yield
    forget()


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "suites" / "my_method.py"
    path.parent.mkdir()
    path.write_text(MY_KD)
    (path.parent / "mine.toml").write_text(TINY.replace('["student", "kd", "sp"]', '["my_method.py:MyKD"]'))
    return path


def rows(out: str) -> list[str]:
    return [row["method"] for row in json.loads(out)["rows"]]


@pytest.mark.slow
def test_a_sweep_of_a_file_is_taken_up_again_and_an_edited_method_is_another(kdbench: Run, mine: Path) -> None:
    sweep = ["sweep", "suites/mine.toml", "--store", "runs", *SMALL, "--json"]
    code, out, err = kdbench(*sweep)
    assert code == 0, err
    (first,) = rows(out)
    plan, store = SweepPlan.find(Path("runs"), "mine"), RunStore(Path("runs"))
    digest = outside.SOURCES[first[-8:]].sha256
    assert (store.root / "methods" / digest / "my_method.py").read_text() == MY_KD
    specs = {each.key: store.get(each.key).spec for each in plan.runs() if each.phase != "teacher"}  # type: ignore[union-attr]
    assert {spec.method for spec in specs.values()} == {first}

    assert kdbench("export", "mine", "evidence", "--store", "runs")[0] == 0
    assert kdbench("import", "evidence/mine", "--store", "again")[0] == 0
    assert Path("again", "methods", digest, "my_method.py").read_text() == MY_KD

    forget()
    before = {path: path.stat().st_mtime_ns for path in store.root.glob("runs/*/DONE.json")}
    mine.rename(mine.with_name("gone.py"))
    code, _, err = kdbench(*sweep)
    assert code == 2 and f"unknown file of {mine.parent.resolve()} 'my_method.py'" in err
    (mine.parent / "mine.toml").write_text(TINY)
    code, out, err = kdbench(*sweep, "--methods", first)
    assert code == 0 and rows(out) == [first], err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(store.root.glob("runs/*/DONE.json"))) == len(before)

    mine.write_text(MY_KD.replace("self.weight * F", "2 * self.weight * F"))
    code, out, err = kdbench(*sweep, "--methods", f"{mine}:MyKD,{first}")
    assert code == 0, err
    (second,) = set(rows(out)) - {first}
    assert second.startswith("MyKD@") and SweepPlan.find(Path("runs"), "mine").folder == plan.folder
    assert len(list(store.root.glob("runs/*/DONE.json"))) == len(before) + 2

    code, _, err = kdbench("submit", "mine", "--method", first, "--store", "runs")
    assert code == 2 and "is not finished" in err
    code, _, err = kdbench(*sweep, "--methods", f"student,kd,{first}")
    assert code == 0, err
    assert kdbench("submit", "mine", "--method", first, "--out", "entry.json", "--store", "runs")[0] == 0
    forget()
    code, out, _ = kdbench("verify", "entry.json")
    assert code == 0 and "all 8 checks pass" in out and not OUTSIDE
    code, out, _ = kdbench("verify", "entry.json", "--rerun", "1")
    assert code == 0 and "seed 1 gives its score again" in out and "all 9 checks pass" in out and first in OUTSIDE


def test_a_run_of_a_file_is_kept_under_its_class_and_source(kdbench: Run, mine: Path) -> None:
    pair = ["--teacher", "cifar_resnet8", "--student", "cifar_resnet8_quarter", "--data", "digits", "--epochs", "1"]
    command = ["run", "--method", str(mine), *pair, "--store", "runs", "--no-mlflow", "--json"]
    code, out, err = kdbench(*command)
    assert code == 0, err
    assert "MyKD@" in out and not json.loads(out)["already_finished"]
    forget()
    assert json.loads(kdbench(*command)[1])["already_finished"]
    assert "logits, each image's mean removed" in kdbench("methods", f"{mine}:MyKD")[1]
    code, _, err = kdbench("run", "--method", "my_method.py:MyKd", *pair)
    assert code == 2 and len(err.strip().splitlines()) == 1 and "unknown file of" in err


def test_a_kept_source_that_was_edited_is_refused(kdbench: Run, mine: Path, tmp_path: Path) -> None:
    from kdbench.sweeps.scheduling.sources import provide

    name = outside.method_id(str(mine))
    provide(name, tmp_path / "runs")
    forget()
    provide(name, tmp_path / "runs")
    assert name in OUTSIDE
    forget()
    (kept,) = (tmp_path / "runs" / "methods").glob("*/my_method.py")
    kept.write_text(MY_KD + "\n")
    code, _, err = kdbench("sweep", "digits", "--methods", name, "--store", "runs")
    assert code == 2 and "is damaged or was edited" in err


def test_a_suite_names_methods_from_outside_wherever_it_names_methods(mine: Path) -> None:
    path = mine.parent / "mine.toml"
    path.write_text(
        TINY.replace('["student", "kd", "sp"]', '["student", "kd+my_method.py:MyKD", "mine"]')
        + '\n[tuning.starts.mine]\nweight = 3.0\n\n[settings.mine]\nmethod = "my_method.py:MyKD"\n'
        + '\n[settings."my_method.py:MyKD"]\nweight = 2.0\n\n[reasons]\n"my_method.py" = "it is new"\n'
    )
    suite = load_suite(str(path))
    name = outside.method_id(str(mine))
    assert suite.methods == ("student", f"kd+{name}", "mine") and suite.reasons == {name: "it is new"}
    assert suite.configured("mine", {}).id == name
    assert suite.configured(name, {}).hyperparameters() == {"weight": 2.0}


def test_a_protocol_names_methods_from_outside(mine: Path, tmp_path: Path) -> None:
    from importlib import resources

    text = (resources.files("kdbench.sweeps") / "protocols" / "hinton2015_mnist.toml").read_text()
    row = '\n[[cells]]\nlabel = "mine"\nmethod = "my_method.py:MyKD"\nprinted = false\n'
    path = mine.parent / "own.toml"
    place = text.index("[sources]")
    sources = text[place:].replace("[sources]", '[sources]\n"cells.mine" = "our choice"')
    path.write_text('table = "hinton2015_mnist"\n' + text[:place] + row + "\n" + sources)
    protocol = load_protocol(str(path))
    assert protocol.cells[-1].method == outside.method_id(str(mine))


def test_method_that_no_pair_lists_is_added_to_the_pairs_of_a_suite_that_list_their_own(
    mine: Path, tmp_path: Path
) -> None:
    listed = TINY.replace('methods = ["student", "kd", "sp"]', 'methods = ["student"]')
    listed = listed.replace('quarter"\n', 'quarter"\nmethods = ["student", "kd"]\n', 1)
    other = '[[pairs]]\nteacher = "cifar_resnet14"\nstudent = "cifar_resnet8"\nmethods = ["sp"]\n'
    (tmp_path / "listed.toml").write_text(listed.replace("[data]", other + "[data]"))
    suite, method = load_suite(str(tmp_path / "listed.toml")), f"{mine}:MyKD"

    def compared(methods: str) -> list[tuple[str, ...]]:
        some = changed(suite, {"methods": methods})
        return [tuple(name.partition("@")[0] for name in some.methods_of(pair)) for pair in some.pairs]

    assert compared(method) == [("MyKD",), ("MyKD",)]
    assert compared(f"student,{method}") == [("student", "MyKD"), ("MyKD",)]
    assert compared("student,dml") == [("student", "dml"), ("dml",)]
    assert compared("kd,sp") == [("kd",), ("sp",)] and compared("sp") == [("sp",)]
