"""What users gave by mistake: one clear line each, and no run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torchvision.io import write_png

from tests.sweeps.commands import Run
from tests.sweeps.conftest import TINY

STUDENT = ["run", "--method", "student", "--student", "cifar_resnet8_quarter", "--epochs", "1", "--device", "cpu"]
STUDENT += ["--no-mlflow", "--recipe", "batch_size=8"]


def pictures(folder: Path, counts: dict[str, int]) -> None:
    """Noise that is darker in the first class than in the last."""
    draws = torch.Generator().manual_seed(len(counts))
    for place, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = torch.rand(3, 16, 16, generator=draws) * 120 + 100 * place
            write_png(image.to(torch.uint8), str(folder / name / f"{number}.png"))


def refused(result: tuple[int, str, str]) -> str:
    """The one line by which a command refuses what it was given."""
    code, out, err = result
    assert code == 2 and out == "" and len(err.strip().splitlines()) == 1 and err.startswith("kdbench: "), err
    return err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "batch_size=100000000000000000000"], "batch_size: Input should be less than or equal to 1000000"),
        (["--recipe", "lr=Infinity"], "lr: Input should be a finite number, but got inf"),
        (["--recipe", "weight_decay=NaN"], "weight_decay: Input should be a finite number, but got nan"),
        (["--seed", "-1"], "Invalid value for '--seed': Input should be greater than or equal to 0"),
        (["--store", ""], "--store takes the path of a folder, but got an empty text"),
    ],
)
def test_numbers_and_names_that_cannot_be(kdbench: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in refused(kdbench(*STUDENT, "--data", "digits", *arguments))
    assert not list(tmp_path.glob("**/spec.json"))


@pytest.mark.parametrize("command", [["sweep", "digits"], ["compatibility"]])
@pytest.mark.parametrize("names", ["", " , "])
def test_no_methods_are_not_all_methods(kdbench: Run, command: list[str], names: str) -> None:
    assert f"--methods takes names with commas between them, but got {names!r}" in refused(
        kdbench(*command, "--methods", names)
    )


def test_folders_that_hold_no_classes(kdbench: Run, tmp_path: Path) -> None:
    pictures(tmp_path / "one", {"cat": 9})
    pictures(tmp_path / "bare", {"cat": 9, "dog": 9, "yak": 0})
    pictures(tmp_path / "torn" / "train", {"cat": 9, "dog": 9})
    pictures(tmp_path / "torn" / "test", {"cat": 9, "yak": 9})
    for folder, message in (
        ("one", "holds one class alone, cat"),
        ("bare", "Found no valid file for the classes yak"),
        ("torn", "hold different classes: dog, yak are in one alone"),
    ):
        assert message in refused(kdbench(*STUDENT, "--data", f"./{folder}", "--image-size", "16"))


@pytest.mark.parametrize("command", ["sweep", "reproduce", "tables"])
def test_files_that_are_no_toml(kdbench: Run, tmp_path: Path, command: str) -> None:
    (tmp_path / "latin.toml").write_bytes(b'seeds = 1\nname = "caf\xe9"\n')
    assert "latin.toml is not UTF-8, as TOML is: line 2 has byte 0xe9" in refused(kdbench(command, "latin.toml"))
    (tmp_path / "torn.toml").write_bytes(b"seeds = \n")
    assert "torn.toml is not TOML: " in refused(kdbench(command, "torn.toml"))


@pytest.mark.parametrize("bound", ["inf", "nan"])
def test_a_range_without_an_end_is_refused_before_a_teacher_is_trained(kdbench: Run, tiny: Path, bound: str) -> None:
    tiny.write_text(tiny.read_text() + f"[tuning.ranges.kd]\ntemperature = {{ low = 1.0, high = {bound} }}\n")
    message = refused(kdbench("sweep", str(tiny), "--device", "cpu"))
    assert f"tuning.ranges.kd.temperature.high: Input should be a finite number, but got {bound}" in message
    assert not Path("runs").exists()


def test_a_database_that_is_none_is_said(kdbench: Run, tiny: Path) -> None:
    Path("runs").mkdir()
    Path("runs/optuna.db").write_bytes(b"no database at all" * 100)
    message = refused(kdbench("sweep", str(tiny), "--device", "cpu"))
    assert "optuna.db cannot be read as Optuna's database" in message and "move it away and run again" in message


def test_a_suite_names_a_folder_by_a_path_beside_its_file(
    kdbench: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tiny.parent / "pets", {"cat": 3, "dog": 2})
    (tiny.parent / "elsewhere").mkdir()
    monkeypatch.chdir(tiny.parent / "elsewhere")
    for name in ("./pets", "pets", str(tiny.parent / "pets")):
        tiny.write_text(TINY.replace('name = "digits"', f'name = "{name}"\nimage_size = 0'))
        assert f"images of {tiny.parent / 'pets'} need one size" in refused(kdbench("sweep", str(tiny)))
        tiny.write_text(TINY.replace('name = "digits"', f'name = "{name}"\nimage_size = 16'))
        assert "cannot split 5 samples of folder:pets" in refused(kdbench("sweep", str(tiny)))


def test_the_command_alone_is_readable_and_says_its_version(kdbench: Run) -> None:
    code, out, err = kdbench()
    assert code == 0 and err == "" and "Usage: kdbench" in out.splitlines()[0] + out.splitlines()[1]
    assert len(out.splitlines()) > 15 and any(line.split()[:1] == ["sweep"] for line in out.splitlines())
    code, out, err = kdbench("--version")
    assert code == 0 and err == "" and re.fullmatch(r"kdbench \d+\.\d+\.\d+\n", out)
    assert "No such command 'swep'" in refused(kdbench("swep"))
