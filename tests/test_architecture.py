"""The arrows between packages and rooms: nothing upstream imports anything downstream. And how long code may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbench.bench.configure import by_role
from kdbench.methods import REGISTRY

ROOT = Path(__file__).resolve().parents[1]
OURS = {"methods", "bench", "sweeps", "results"}
FILES = [path for package in sorted(OURS) for path in sorted((ROOT / package).rglob("*.py"))]
ROOMS = (
    *("errors", "schema", "atomic", "seeds", "record", "spec", "outside", "configure", "environment"),
    *("data", "networks", "evaluation", "tasks", "teachers", "training", "deploy"),
    *("contract", "compatibility", "speed"),
)
"""The folders and files of bench: each imports only those before it."""
LONGEST_FILE, LONGEST_FUNCTION = 300, 50


def modules_of(path: Path) -> set[str]:
    """Every module that a file imports, also inside functions; ours without the package's name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            room = node.module.removeprefix("kdbench.") in OURS
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names if room}
    return {name.removeprefix("kdbench.") for name in found}


def imported(package: str) -> set[str]:
    """Every module that a package's files import, also inside functions."""
    return set().union(*(modules_of(path) for path in FILES if path.is_relative_to(ROOT / package)))


def outside(modules: set[str]) -> set[str]:
    return {name.split(".")[0] for name in modules} - set(sys.stdlib_module_names) - OURS


def nodes(paths: list[Path]) -> Iterator[tuple[str, ast.AST]]:
    """Every node of these files, with where it is."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}", node


def test_methods_import_torch_and_distributions_alone() -> None:
    modules = imported("methods")
    assert outside(modules) == {"torch", "optuna"}
    assert {name for name in modules if name.startswith("optuna")} == {"optuna.distributions"}
    assert not {name.split(".")[0] for name in modules} & (OURS - {"methods"})


def test_bench_imports_nothing_downstream() -> None:
    assert not {name.split(".")[0] for name in imported("bench")} & {"sweeps", "results"}


def test_every_room_of_bench_has_its_place() -> None:
    names = {path.stem if path.is_file() else path.name for path in (ROOT / "bench").iterdir()}
    assert names - {"__init__", "__pycache__"} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_of_bench_imports_only_those_before_it(room: str) -> None:
    place = ROOT / "bench" / room
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    modules = set().union(*map(modules_of, files))
    others = {name.split(".")[1] for name in modules if name.startswith("bench.")} - {room}
    assert others <= set(ROOMS[: ROOMS.index(room)])


@pytest.mark.parametrize("package", sorted(OURS - {"sweeps"}))
def test_sweeps_are_on_top(package: str) -> None:
    assert not [name for name in imported(package) if name.split(".")[0] == "sweeps"]


def test_results_import_schemas_and_errors_alone() -> None:
    modules = imported("results")
    schemas = {f"bench.{name}" for name in ("record", "spec", "schema", "errors", "atomic")}
    assert {name for name in modules if name.split(".")[0] in OURS - {"results"}} == schemas
    assert not outside(modules) & {"torch", "timm", "optuna"}


def test_mlflow_has_one_writer() -> None:
    writers = [
        path.name
        for package in OURS
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"^\s*(import|from) mlflow", path.read_text(), re.MULTILINE)
    ]
    assert sorted(writers) == ["experiment.py", "mlflow_model.py", "tracker.py"], "of runs, and of a model's folder"


def test_results_run_without_torch() -> None:
    code = """if True:
        import importlib, pkgutil, sys
        from kdbench import results
        for module in pkgutil.walk_packages(results.__path__, "kdbench.results."):
            importlib.import_module(module.name)
        assert not {"torch", "torchvision", "timm", "optuna", "kdbench.methods"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("path", sorted((ROOT / "bench").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_bench_names_no_method(path: Path) -> None:
    """ "student" is also the role of a network, so it is not looked for, and "at" also a word: as a string alone."""
    text = path.read_text()
    names = "|".join(sorted(set(REGISTRY) - {"student", "at"}))
    assert re.findall(rf"\b({names})\b", text) == []
    assert "at" not in [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]


def test_one_method_has_each_role_in_comparisons() -> None:
    roles = [method.role for method in REGISTRY.values() if method.role]
    assert sorted(roles) == ["baseline", "control"]
    control, baseline = REGISTRY[by_role("control")], REGISTRY[by_role("baseline")]
    assert not control.needs_teacher and baseline.needs_teacher


def test_no_file_is_longer_than_300_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_function_is_longer_than_50_lines() -> None:
    lengths = {
        f"{place} {node.name}": node.end_lineno - node.lineno + 1
        for place, node in nodes(FILES)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}


def test_no_method_writes_cross_entropy_by_itself() -> None:
    """It is the task's, by `Step.task_loss`; `functional.py` has it for the tasks."""
    own = {"cross_entropy", "nll_loss", "CrossEntropyLoss", "NLLLoss"}
    files = [path for path in FILES if path.is_relative_to(ROOT / "methods") and path.name != "functional.py"]
    used = [(place, getattr(node, "attr", getattr(node, "id", ""))) for place, node in nodes(files)]
    assert [(place, name) for place, name in used if name in own] == []


def test_files_are_replaced_whole_by_one_function() -> None:
    """`Path.replace` has one argument, `str.replace` two, and `dataclasses.replace` keywords."""
    other = {"rename", "renames", "move", "mkstemp", "NamedTemporaryFile"}
    found = []
    for place, node in nodes([path for path in FILES if path != ROOT / "bench" / "atomic.py"]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name, alone = node.func.attr, len(node.args) == 1 and not node.keywords
            if name in other or (name == "replace" and (alone or ast.unparse(node.func) == "os.replace")):
                found.append(place)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(".tmp"):
            found.append(place)
    assert found == []


@pytest.mark.parametrize("package", sorted(OURS))
def test_rooms_are_imported_as_parts_of_kdbench(package: str) -> None:
    """Their own names are those of folders that users have too."""
    names = [name for _, node in nodes(FILES) for name in _names(node)]
    assert [name for name in names if name.split(".")[0] == package] == []
    assert (ROOT / "kdbench" / package).resolve() == ROOT / package


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
