"""What tables are reckoned to take: by what is kept beside the protocols, and by one network that is measured here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kdbench.bench.data.info import data_info
from kdbench.bench.spec import ModelSpec
from kdbench.sweeps.protocols.cost import Speeds, _asked, cores, networks_of, reference
from kdbench.sweeps.protocols.files import bundled

CPU = torch.device("cpu")
CIFAR = data_info("cifar10")


def test_every_network_of_the_bundled_protocols_has_a_speed() -> None:
    asked = {_asked(*network) for name in bundled() for network in networks_of(name)}
    lacking = asked - reference().keys()
    assert not lacking, f"python -m kdbench.sweeps.protocols.cost measures {sorted(lacking)}"
    assert all(0 < seconds < 1e4 for seconds in reference().values())


def test_a_machine_is_measured_by_one_network_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    pace = reference()["wrn_16_1 {} 3x32 to 10 in batches of 128"]

    def twice(self: Speeds, model: ModelSpec, *_: object) -> float:
        measured.append(model.name)
        return 2 * pace

    monkeypatch.setattr(Speeds, "_measured", twice)
    speeds = Speeds(tmp_path, CPU)
    asked = "wrn_40_2 {} 3x32 to 10 in batches of 128"
    assert speeds(ModelSpec(name="wrn_40_2"), CIFAR, 128) == pytest.approx(2 * reference()[asked])
    assert speeds(ModelSpec(name="wrn_16_2"), CIFAR, 128) > 0 and measured == ["wrn_16_1"]
    assert speeds(ModelSpec(name="wrn_40_2"), CIFAR, 32) == 2 * pace and measured == ["wrn_16_1", "wrn_40_2"]
    again = Speeds(tmp_path, CPU)
    assert again.pace == 2 and measured == ["wrn_16_1", "wrn_40_2"], "it is remembered"
    (name,) = [name for name in again.known if name.startswith("wrn_16_1")]
    (tmp_path / "speeds.json").write_text(json.dumps({name.replace("wrn_16_1", "wrn_40_2"): 7.0}))
    assert Speeds(tmp_path, CPU)(ModelSpec(name="wrn_40_2"), CIFAR, 128) == 7, "what was measured here is better known"


def test_a_step_is_measured_on_this_machine(tmp_path: Path) -> None:
    seconds = Speeds(tmp_path, CPU).measured(ModelSpec(name="cifar_resnet8_quarter"), data_info("digits"), 8)
    assert 0 < seconds * cores() < 10
