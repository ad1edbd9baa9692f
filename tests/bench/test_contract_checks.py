"""Methods that break the contract are told what to change; one that keeps to it passes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbench.bench import outside
from kdbench.bench.contract.checks import CHECKS, check
from kdbench.bench.contract.rules import Broken
from kdbench.bench.contract.toy import Toy
from kdbench.bench.outside import method_id
from kdbench.methods import OUTSIDE
from tests.outside import MY_KD
from tests.sweeps.commands import kdbench

LOSS = '"centred": self.weight * F.mse_loss(mine, theirs)}'


@pytest.fixture(autouse=True)
def _unloaded() -> Iterator[None]:
    yield
    OUTSIDE.clear()
    outside.SOURCES.clear()


def toy(folder: Path, text: str) -> Toy:
    (folder / "mine.py").write_text(text)
    return Toy(method_id("mine.py", folder))


def auxiliary(use: str) -> str:
    """The method with a layer of its own."""
    made = (
        "    def auxiliary_modules(self, student, teachers):\n"
        "        from torch import nn\n"
        "        return nn.ModuleDict({'layer': nn.Linear(10, 10)})\n\n    def loss("
    )
    return MY_KD.replace("    def loss(", made).replace("F.mse_loss(mine, theirs)", use)


BROKEN = {
    "says where it comes from": (
        MY_KD.replace('    """Loss = the task', '    """Loss."""\n    """'),
        "docstring must say the loss as an equation",
    ),
    "defaults lie in the search space": (
        MY_KD.replace('loss_weight(1.0, "centred")', "tuned(1.0, FloatDistribution(2.0, 3.0))").replace(
            "import torch.nn",
            "from kdbench.methods.base import tuned\n"
            "from optuna.distributions import FloatDistribution\nimport torch.nn",
        ),
        "the default weight=1.0 is outside of",
    ),
    "says what it is given": (
        MY_KD + "\n    def uses_unlabelled(self) -> bool:\n        return True\n",
        "uses_unlabelled() says True, but its stages' data lack them",
    ),
    "losses are named numbers": (
        MY_KD.replace(LOSS, '"centred": self.weight * (mine - theirs).square().mean(dim=1)}'),
        "loss 'centred' is (54,), not a tensor without dimensions",
    ),
    "gradients reach what they should": (
        auxiliary("F.mse_loss(mine, theirs)"),
        "no gradient reaches student/auxiliary/layer.bias, student/auxiliary/layer.weight: use it in the loss",
    ),
    "weights are calibrated": (
        MY_KD.replace('loss_weight(1.0, "centred")', 'loss_weight(1.0, "center")'),
        "names ['center'], but the losses are called ['ce', 'centred']",
    ),
    "one seed gives one result": (
        MY_KD.replace("F.mse_loss(mine, theirs)}", "F.mse_loss(mine, theirs) * __import__('random').random()}"),
        "the same seed gave other weights",
    ),
    "goes on to the bit": (
        MY_KD.replace("@method\n", "SEEN = []\n\n\n@method\n")
        .replace("        return {**step", "        SEEN.append(1)\n        return {**step")
        .replace("F.mse_loss(mine, theirs)}", "F.mse_loss(mine, theirs) * (1 + 0.1 * (len(SEEN) % 16))}"),
        "keep what changes in training in auxiliary_modules",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_a_rule_is_told_what_to_change(tmp_path: Path, name: str) -> None:
    text, said = BROKEN[name]
    with pytest.raises(Broken) as broken:
        CHECKS[name](toy(tmp_path, text))
    assert said in str(broken.value)


def test_check_says_what_fails_and_ends_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = "says where it comes from"
    for name in set(CHECKS) - {first, "losses are named numbers"}:
        monkeypatch.delitem(CHECKS, name)
    monkeypatch.chdir(tmp_path)
    Path("good.py").write_text(MY_KD)
    Path("mine.py").write_text(BROKEN[first][0].replace("F.mse_loss(mine, theirs)", "F.mse_loss(mine, thiers)"))
    code, out, _ = kdbench("check", "mine.py")
    assert code == 1 and "2 of 2 checks fail" in out and BROKEN[first][1] in out
    code, out, _ = kdbench("check", "mine.py", "--json")
    (one, two) = json.loads(out)["checks"]
    assert code == 1 and one["check"] == first and not one["passes"]
    assert (
        two["problem"].startswith("it raised NameError: name 'thiers' is not defined")
        and "mine.py:26)" in two["problem"]
    )
    assert kdbench("check", "good.py")[:1] == (0,) and kdbench("check", "kd", "--format", "markdown")[0] == 0
    code, out, err = kdbench("check", "mime.py")
    assert code == 2 and not out and len(err.splitlines()) == 1 and "did you mean mine.py?" in err
    assert list(check("kd"))[0].problem == ""
