"""The tutorial's files and commands do what it says, and a new method passes at once."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbench.bench import outside
from kdbench.methods import OUTSIDE
from tests.sweeps.commands import kdbench

TUTORIAL = (Path(__file__).resolve().parents[1] / "docs" / "tutorial.md").read_text()
BLOCK = re.compile(r'```(python|sh)(?: title="([^"]*)")?\n(.*?)```', re.DOTALL)


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    OUTSIDE.clear()
    outside.SOURCES.clear()


def carry_out(command: str) -> str:
    """What a command prints."""
    words = shlex.split(command)
    if words[0] == "pytest":
        root = Path(__file__).resolve().parents[1]
        pytest_ = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words[1:]]
        ended = subprocess.run(pytest_, capture_output=True, text=True, env={"PYTHONPATH": str(root)})
        assert ended.returncode == 0, ended.stdout
        return ended.stdout
    code, out, err = kdbench(*words[1:])
    assert code == 0, out + err
    return out


def follow(slow: bool) -> list[str]:
    """Does all that the tutorial says, its slow commands if so asked."""
    printed = []
    for kind, name, text in BLOCK.findall(TUTORIAL):
        if kind == "python":
            Path(name).write_text(text)
        elif slow or name != "takes minutes":
            printed += [carry_out(command) for command in text.strip().splitlines()]
    return printed


def test_the_tutorial_does_what_it_says() -> None:
    printed = "\n".join(follow(slow=False))
    assert "my_method.py and test_my_method.py are written" in printed and "1 passed" in printed
    assert "all 12 checks pass" in printed and re.search("MyMethod@[0-9a-f]{8}", printed)


@pytest.mark.slow
def test_the_tutorial_ends_with_a_leaderboard() -> None:
    assert re.search(r"MyMethod@[0-9a-f]{8} .* \d\d\.\d", follow(slow=True)[-1])


def test_a_new_method_passes_its_test_and_the_contract_at_once() -> None:
    assert "kdbench check" in carry_out("kdbench new-method own_way")
    assert "2 passed" in carry_out("pytest -q test_own_way.py")
    assert "OwnWay@" in carry_out("kdbench check own_way.py")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("kd", "kd is a built-in method"),
        ("My-Method", "named in small letters"),
        ("class", "named in small letters"),
        ("there", "there.py would be overwritten"),
    ],
)
def test_a_new_method_takes_no_name_that_is_taken(name: str, said: str) -> None:
    Path("there.py").write_text("")
    code, out, err = kdbench("new-method", name)
    assert code == 2 and not out and said in err and len(err.splitlines()) == 1
    assert [path.name for path in Path().iterdir()] == ["there.py"] and not Path("there.py").read_text()
    assert kdbench("new-method", "fresh", "--folder", "nowhere")[0] == 2
