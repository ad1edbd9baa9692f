"""The arrows between the packages: nothing upstream imports anything downstream."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.configure import by_role
from methods import REGISTRY

ROOT = Path(__file__).resolve().parents[1]
OURS = {"methods", "bench", "sweeps", "results"}


def imported(package: str) -> set[str]:
    """Every module that a package's files import, also inside functions."""
    found: set[str] = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module)
    return found


def outside(modules: set[str]) -> set[str]:
    return {name.split(".")[0] for name in modules} - set(sys.stdlib_module_names) - OURS


def test_methods_import_torch_and_distributions_alone() -> None:
    modules = imported("methods")
    assert outside(modules) == {"torch", "optuna"}
    assert {name for name in modules if name.startswith("optuna")} == {"optuna.distributions"}
    assert not {name.split(".")[0] for name in modules} & (OURS - {"methods"})


def test_bench_imports_nothing_downstream() -> None:
    assert not {name.split(".")[0] for name in imported("bench")} & {"sweeps", "results"}


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
    assert writers == ["tracker.py"]


def test_results_run_without_torch() -> None:
    code = "import sys, results.analysis.leaderboard, results.pages.board, results.analysis.status\n"
    code += "assert 'torch' not in sys.modules"
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
