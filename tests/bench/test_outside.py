"""Methods, networks, data sets and tasks from outside the package: found when they are named, refused in one line."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kdbench.bench import outside
from kdbench.bench.configure import by_role, configure
from kdbench.bench.errors import InputError
from kdbench.bench.networks.build import check_model
from kdbench.bench.outside import method_id
from kdbench.bench.spec import DataSpec, ModelSpec, ids_from_outside
from kdbench.bench.tasks import load, task_of
from kdbench.methods import OUTSIDE, REGISTRY
from tests.outside import MY_KD


@pytest.fixture(autouse=True)
def _unloaded() -> Iterator[None]:
    outside.brought.cache_clear()
    yield
    OUTSIDE.clear()
    outside.SOURCES.clear()
    outside.brought.cache_clear()


def write(folder: Path, text: str = MY_KD, name: str = "my_method.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(name: str, folder: Path | None = None) -> str:
    """The one line that says why."""
    with pytest.raises(InputError) as error:
        method_id(name, folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_method_is_named_by_its_class_and_its_source(tmp_path: Path) -> None:
    path = write(tmp_path)
    name = method_id(f"{path}:MyKD")
    assert re.fullmatch("MyKD@[0-9a-f]{8}", name) and ids_from_outside(f'{{"method": "{name}"}}') == [name]
    assert method_id(str(path)) == name == method_id("my_method.py:MyKD", tmp_path) == method_id(name)
    assert configure(name, {"weight": "2"}).hyperparameters() == {"weight": 2.0}
    assert name not in REGISTRY and method_id("kd") == "kd"
    copy = write(tmp_path / "elsewhere", name="renamed.py")
    assert method_id(str(copy)) == name
    path.write_text(MY_KD.replace("loss_weight(1.0", "loss_weight(3.0"))
    edited = method_id(str(path))
    assert edited != name and configure(edited, {}).weight == 3.0 and configure(name, {}).weight == 1.0  # type: ignore[attr-defined]


def test_a_method_from_outside_can_be_added_to_others(tmp_path: Path) -> None:
    write(tmp_path)
    name = method_id("kd+2*my_method.py:MyKD(weight=0.5)", tmp_path)
    assert re.fullmatch(r"kd\+2\*MyKD@\w{8}\(weight=0\.5\)", name)
    assert configure(name, {}).needs_teacher


def test_one_that_extends_a_built_in_method_does_not_take_its_part_in_tables(tmp_path: Path) -> None:
    text = "from kdbench.methods.base import method\nfrom kdbench.methods.kd import KD\n\n"
    text += "@method\nclass Hotter(KD):\n    '''Hot.'''\n"
    name = method_id(str(write(tmp_path, text)))
    assert configure(name, {}).role == "" and by_role("baseline") == "kd" and REGISTRY["kd"].role == "baseline"


def test_a_file_that_a_test_imports_registers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, name="imported_in_passing.py")
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(REGISTRY)
    __import__("imported_in_passing")
    assert before == REGISTRY and not OUTSIDE
    assert sys.modules["imported_in_passing"].MyKD.id == "MyKD"


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        (MY_KD, "my_metod.py", "unknown file of {folder} 'my_metod.py': did you mean my_method.py?"),
        (MY_KD, "my_method.py:MyKd", "unknown method of {file} 'MyKd': did you mean MyKD?"),
        (MY_KD, "my_method.py:F", "F of {file} is no method"),
        (MY_KD.replace("@method\n", ""), "my_method.py:MyKD", "MyKD of {file} is not registered: put @method above"),
        (MY_KD.replace("@method\n", ""), "my_method.py", "it has none: put @method above a Method"),
        (MY_KD.replace("class MyKD(", "class MyKD(("), "my_method.py", "{file}:12: invalid syntax."),
        (MY_KD + "\n1 / 0\n", "my_method.py", "{file}:27: ZeroDivisionError: division by zero"),
        (MY_KD + "\nraise SystemExit(3)\n", "my_method.py", "{file}:27: SystemExit: 3"),
        (MY_KD + "\nimport a_neighbour\n", "my_method.py", "what it imports must be installed"),
        (MY_KD.replace("    paper =", "    source ="), "my_method.py", "method MyKD@"),
        (MY_KD.replace("MyKD", "KD"), "my_method.py", "class KD of {file} has the name of the built-in method kd"),
        (MY_KD + MY_KD[MY_KD.index("@method") :].replace("MyKD", "Other"), "my_method.py", "it has 2: name one, as"),
        (MY_KD, "no.such.module:MyKD", "there is no module no.such.module"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, name: str, said: str) -> None:
    path = write(tmp_path, text)
    assert said.format(file=path, folder=tmp_path) in refused(name, tmp_path)


def test_a_file_that_fails_leaves_nothing_behind_and_can_be_mended(tmp_path: Path) -> None:
    path = write(tmp_path, MY_KD + "\n1 / 0\n")
    before = set(sys.modules)
    refused(str(path))
    assert not OUTSIDE and not outside.SOURCES and not set(sys.modules) - before
    assert method_id(str(write(tmp_path))) in OUTSIDE


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "my_method.py").write_bytes(b"\xff\xfe\x00")
    assert "my_method.py:" in refused("my_method.py", tmp_path)


OTHERS = """
from kdbench.bench.data.images import DATASETS
from kdbench.bench.data.splits import Part
from kdbench.bench.tasks.image import ImageClassification

NAMING = ImageClassification()


def net(**kwargs):
    import timm

    return timm.create_model("cifar_resnet8", **kwargs)


def half(data_dir):
    part, test, classes = DATASETS["digits"](data_dir)
    return Part(part.inputs[:900], part.targets[:900]), test, classes
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that brings one thing of each kind."""
    folder = tmp_path / "site"
    write(folder, "WEIGHT = 4.0\n", "afternoon/defaults.py")
    text = MY_KD.replace("from kdbench.methods.checks", "from .defaults import WEIGHT\nfrom kdbench.methods.checks")
    write(folder, text.replace("loss_weight(1.0", "loss_weight(WEIGHT"), "afternoon/method.py")
    write(folder, "", "afternoon/__init__.py")
    write(folder, OTHERS, "afternoon/others.py")
    write(
        folder,
        "[kdbench.networks]\nafternoon_net = afternoon.others:net\nafternoon_none = afternoon.others:none\n"
        "[kdbench.datasets]\nhalf-digits = afternoon.others:half\n[kdbench.tasks]\nnaming = afternoon.others:NAMING\n"
        "[kdbench.methods]\nmykd = afternoon.method:MyKD\nsp = afternoon.method:MyKD\nbroken = afternoon.none:MyKD\n",
        "afternoon-1.0.dist-info/entry_points.txt",
    )
    write(folder, "Metadata-Version: 2.1\nName: afternoon\nVersion: 1.0\n", "afternoon-1.0.dist-info/METADATA")
    monkeypatch.syspath_prepend(folder)
    for name in [each for each in sys.modules if each.partition(".")[0] == "afternoon"]:
        monkeypatch.delitem(sys.modules, name)  # that of another test, whose folder is gone
    outside.brought.cache_clear()
    return folder


def test_an_installed_package_brings_methods_by_name_or_by_module(package: Path) -> None:
    name = method_id("mykd")
    assert name == method_id("afternoon.method:MyKD") and configure(name, {}).weight == 4.0  # type: ignore[attr-defined]
    assert method_id("kd+mykd") == f"kd+{name}"


def test_an_installed_package_brings_networks_data_sets_and_tasks(package: Path) -> None:
    data = DataSpec(name="half-digits", task="naming", validation=0.25)
    splits = load(data, Path("/nonexistent"))
    assert sum(len(part.targets) for part in (splits.train, splits.validation, splits.test)) == 900  # type: ignore[union-attr]
    network = task_of("naming").build(ModelSpec(name="afternoon_net"), splits)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(InputError, match="afternoon_none is afternoon.others:none of an installed package"):
        check_model("afternoon_none")
    with pytest.raises(InputError, match="did you mean half-digits"):
        load(data.model_copy(update={"name": "half-digit"}), Path("/nonexistent"))


def test_an_installed_package_takes_no_name_of_ours(package: Path) -> None:
    assert "an installed package calls afternoon.method:MyKD sp, as a built-in method" in refused("sp")
    assert "there is no module afternoon.none" in refused("broken")
