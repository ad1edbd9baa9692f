"""The command line in this process: what it prints, and how it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdbench.sweeps.protocols.files import load_protocol
from tests.sweeps.commands import Run

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
COMMANDS = ["methods", "compatibility", "run", "show", "explain", "sweep", "leaderboard", "status", "teachers", "sync"]
COMMANDS += ["compare", "runs"]
COMMANDS += ["published"]
COMMANDS += ["tables", "reproduce", "export", "import"]
GOOD = ["run", "--method", "kd", "--teacher", "cifar_resnet8", "--student", "cifar_resnet8_quarter"]
GOOD += ["--data", "digits", "--epochs", "1", "--train-fraction", "0.1", "--device", "cpu", "--no-mlflow"]


def changed(option: str, value: str) -> list[str]:
    arguments = list(GOOD)
    if option in arguments:
        arguments[arguments.index(option) + 1] = value
        return arguments
    return [*arguments, option, value]


def test_run_trains_the_teacher_once_and_repeats_nothing(kdbench: Run, tmp_path: Path) -> None:
    code, out, err = kdbench(*GOOD, "--json")
    first = json.loads(out)
    assert code == 0 and first["status"] == "done" and not first["already_finished"]
    assert "teacher cifar_resnet8: epoch 1/1" in err and "kd cifar_resnet8_quarter: epoch 1/1" in err
    code, out, err = kdbench(*GOOD, "--json")
    second = json.loads(out)
    assert code == 0 and second["already_finished"] and second["outcome"] == first["outcome"]
    assert "epoch" not in err and "teacher cifar_resnet8 is near chance" in err
    assert len(list((tmp_path / "runs" / "runs").iterdir())) == 2


def test_equal_seeds_give_equal_numbers_in_two_stores(kdbench: Run) -> None:
    results = []
    for store in ("a", "b"):
        _, out, _ = kdbench(*GOOD, "--json", "--store", store, "--set", "temperature=8")
        results.append(json.loads(out))
    assert results[0]["key"] == results[1]["key"]
    assert results[0]["outcome"]["scores"] == results[1]["outcome"]["scores"]
    assert results[0]["outcome"]["provenance"] == results[1]["outcome"]["provenance"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--method", "kdd", "unknown method 'kdd': did you mean kd"),
        ("--student", "cifar_resnet9", "unknown model 'cifar_resnet9': did you mean cifar_resnet"),
        ("--teacher", "wrn_40_3", "unknown model 'wrn_40_3': did you mean wrn_40_"),
        ("--data", "digitz", "unknown data set 'digitz': did you mean digits"),
        ("--set", "temprature=4", "unknown hyperparameter of kd 'temprature': did you mean temperature"),
        ("--set", "temperature=-1", "temperature must be positive, but got temperature=-1.0"),
        ("--set", "temperature=hot", "but got 'hot'"),
        ("--set", "temperature", "--set takes NAME=VALUE, but got 'temperature'"),
        ("--recipe", "lr=-1", "lr: Input should be greater than 0, but got -1"),
        ("--recipe", "learning=1", "learning: Extra inputs are not permitted"),
        ("--epochs", "0", "epochs: Input should be greater than or equal to 1, but got 0"),
        ("--epochs", "many", "Invalid value for '--epochs': Input should be a valid integer"),
        ("--train-fraction", "2", "train_fraction: Input should be less than or equal to 1, but got 2.0"),
        ("--train-fraction", "0.001", "cannot split"),
        ("--device", "abacus", "device 'abacus' cannot be used here"),
        ("--precision", "fp8", "precision must be auto, measured, fp32 or bf16, but got 'fp8'"),
        ("--data-dir", "nowhere", "there is no folder nowhere"),
        ("--data", "./nowhere", "there is no folder"),
        ("--teacher-weights", "nowhere.pt", "there is no checkpoint nowhere.pt"),
        ("--store", "/proc/kdbench", "the store /proc/kdbench cannot be written"),
        ("--colour", "red", "No such option: --colour"),
        ("--finetune", "1", "finetune: Input should be less than 1"),
        ("--method", "kd+fitnets", "fitnets is more than a loss"),
        ("--method", "kd+att", "there is no 'att'; near: at"),
        ("--method", "kd+at(depths=[2])", "depth must lie between 0 and 1, but got depth=2"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(kdbench: Run, option: str, value: str, message: str) -> None:
    code, out, err = kdbench(*changed(option, value))
    assert code == 2 and out == "" and "Traceback" not in err
    assert message in err and len(err.strip().splitlines()) == 1 and err.startswith("kdbench: ")


def test_missing_teacher_and_missing_option_are_refused(kdbench: Run) -> None:
    code, _, err = kdbench("run", "--method", "kd", "--student", "cifar_resnet8", "--data", "digits")
    assert code == 2 and "learns from a teacher: give --teacher" in err
    code, _, err = kdbench("run", "--method", "kd")
    assert code == 2 and "Missing option '--student'" in err


def test_corrupt_checkpoint_is_refused(kdbench: Run, tmp_path: Path) -> None:
    for name in ("teacher.pt", "teacher.safetensors"):
        (tmp_path / name).write_bytes(b"\x80\x04not a checkpoint")
        code, _, err = kdbench(*GOOD, "--teacher-weights", name)
        assert code == 2 and "is not a readable checkpoint" in err and len(err.strip().splitlines()) == 1


def test_users_checkpoint_is_imported_and_teaches(kdbench: Run, tmp_path: Path) -> None:
    import timm
    import torch

    torch.save({"state_dict": timm.create_model("cifar_resnet8", num_classes=10, in_chans=1).state_dict()}, "t.pt")
    code, out, _ = kdbench(*GOOD, "--teacher-weights", "t.pt", "--json")
    spec = json.loads(out)["spec"]
    assert code == 0 and spec["teachers"][0]["weights"].startswith("sha256:")
    code, out, _ = kdbench("teachers", "--json")
    (row,) = json.loads(out)["teachers"]
    assert code == 0 and row["reference"] == spec["teachers"][0]["weights"] and row["problem"] == ""


def test_teachers_lists_verifies_and_finds_damage(kdbench: Run, tmp_path: Path) -> None:
    kdbench(*GOOD)
    code, out, _ = kdbench("teachers")
    assert code == 0 and "cifar_resnet8" in out and "verified" in out
    (weights,) = (tmp_path / "runs" / "runs").glob(f"{out.split()[0].removeprefix('run:')}/*/last.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    code, out, _ = kdbench("teachers")
    assert code == 1 and "is damaged" in out


def test_methods_lists_the_registry_and_shows_one(kdbench: Run) -> None:
    code, out, _ = kdbench("methods", "--json")
    values = json.loads(out)["methods"]
    kd = next(value for value in values if value["id"] == "kd")
    assert code == 0 and kd["paper"]["year"] == 2015 and kd["hyperparameters"][0]["space"] == "1 to 20, log"
    code, out, _ = kdbench("methods", "fitnets")
    assert code == 0 and "FitNets: Hints for Thin Deep Nets" in out and "Departures" in out
    code, _, err = kdbench("methods", "fitnet")
    assert code == 2 and "did you mean fitnets" in err


def test_docs_hold_the_methods_as_they_are(kdbench: Run) -> None:
    code, out, _ = kdbench("methods", "--format", "markdown")
    docs = Path(__file__).resolve().parents[2] / "docs" / "methods.md"
    assert code == 0 and docs.read_text() == out, "docs/methods.md is old: make docs"
    code, _, err = kdbench("methods", "--format", "pdf")
    assert code == 2 and "terminal or markdown, but got --format pdf" in err


@pytest.mark.parametrize("command", ["leaderboard", "compare", "status", "sync"])
def test_reading_a_store_that_is_not_there_is_refused_and_makes_none(
    kdbench: Run, tmp_path: Path, command: str
) -> None:
    code, _, err = kdbench(command, "digits")
    assert code == 2 and "there is no store runs" in err and not (tmp_path / "runs").exists()


def hand_made_suite(root: Path) -> None:
    """A store with three methods on one pair, three seeds each."""
    from kdbench.results.store.plan import Planned, SweepPlan
    from kdbench.results.store.run_store import RunStore
    from tests.results.conftest import SPEC, SUITE, epoch, outcome

    store = RunStore(root)
    plan = SweepPlan.create(store.root, "toy", "abcd1234", SUITE)
    for method, accuracies in {"student": [0.8, 0.82, 0.81], "kd": [0.85, 0.86, 0.87], "sp": [0.84, 0.88]}.items():
        for seed, accuracy in enumerate(accuracies, start=1):
            key = f"{method}-{seed}"
            with store.attempt(key, json.dumps(SPEC), lambda _: None) as attempt:
                attempt.epoch(epoch(1), lambda: b"state")
                attempt.finish(outcome(accuracy), {"last": b"", "best": b""})
            plan.add(Planned(plan.pairs()[0], method, "seed", seed, key))


def test_compare_prints_tests_and_draws_ranks(kdbench: Run, tmp_path: Path) -> None:
    hand_made_suite(tmp_path / "runs")
    code, out, _ = kdbench("compare", "toy")
    assert code == 0 and "against student on large -> small" in out and "+5.0 ± 2.5" in out
    assert "large -> small: sp has 2 of 3 seeds." in out
    code, out, _ = kdbench("compare", "toy", "--against", "kd", "--json")
    values = json.loads(out)
    assert code == 0 and {each["control"] for each in values["comparisons"]} == {"kd"}
    code, out, _ = kdbench("compare", "toy", "--pairs")
    assert code == 0 and "ranks on kd take two seeds of three rows, but have 3 of 1." in out
    assert kdbench("compare", "toy", "--pairs", "--format", "csv")[1].startswith("pair,control,method,difference")
    bad = {
        ("--against", "student,kdd"): "unknown method of toy@abcd1234 'kdd': did you mean kd?",
        ("--pairs", "--against", "kd"): "unknown pair of toy@abcd1234 'kd'",
        ("--format", "pdf"): "unknown format 'pdf'",
        ("--plot", "nowhere/ranks.png"): "there is no folder",
        ("--plot", "ranks.png"): "there are no ranks to draw",
    }
    for arguments, message in bad.items():
        code, out, err = kdbench("compare", "toy", *arguments)
        assert code == 2 and out == "" and message in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "ranks.png").exists()


def test_runs_lists_a_store_and_filters_it(kdbench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hand_made_suite(tmp_path / "runs")
    code, out, _ = kdbench("runs", "--method", "kd", "--suite", "toy", "--json")
    values = json.loads(out)
    assert code == 0 and values["found"] == 3
    assert sorted(run["key"] for run in values["runs"]) == ["kd-1", "kd-2", "kd-3"]
    first = next(run for run in values["runs"] if run["key"] == "kd-1")
    kept = {name: first[name] for name in ("suite", "pair", "data", "phase", "state", "score", "part", "metric")}
    assert kept == {
        **{"suite": "toy@abcd1234", "pair": "large -> small", "data": "digits", "phase": "seed"},
        **{"state": "done", "score": 0.85, "part": "test", "metric": "accuracy"},
    }
    code, out, _ = kdbench("runs", "--limit", "2")
    assert code == 0 and "2 of 8 runs. --limit 0 shows all." in out
    assert out.splitlines()[1].split() == ["key", "method", "run", "state", "score", "when", "suite", "data", "pair"]
    monkeypatch.setenv("COLUMNS", "80")
    out = kdbench("runs", "--columns", "key,state,score")[1]
    assert {tuple(line.split()) for line in out.splitlines() if line.startswith(" sp-1")} == {
        ("sp-1", "done", "84.0", "%")
    }
    for option, value, message in (
        ("--method", "kdd", "unknown method of a run 'kdd': did you mean kd?"),
        ("--state", "dne", "unknown state of a run 'dne': did you mean done?"),
        ("--data", "digitz", "unknown data set of a run 'digitz': did you mean digits?"),
        ("--suite", "toi", "unknown suite of a run 'toi': did you mean toy?"),
        ("--format", "pdf", "unknown format 'pdf'"),
    ):
        code, out, err = kdbench("runs", option, value)
        assert code == 2 and out == "" and message in err and len(err.strip().splitlines()) == 1


def test_export_copies_a_suite_and_refuses_what_is_wrong(kdbench: Run, tmp_path: Path) -> None:
    hand_made_suite(tmp_path / "runs")
    code, out, _ = kdbench("export", "toy", "tables", "--json")
    values = json.loads(out)
    assert code == 0 and values["suite"] == "toy@abcd1234" and values["runs"] == 8 and values["left_out"] == []
    code, out, _ = kdbench("export", "toy", "tables")
    assert code == 0 and f"8 runs are in {tmp_path / 'tables' / 'toy'} (0.0" in out
    boards = [kdbench("compare", "toy", "--store", name)[1] for name in ("runs", "tables")]
    assert boards[0] == boards[1] and "against student on large -> small" in boards[0]
    bad = {
        ("toi", "tables"): "unknown suite in the store runs 'toi': did you mean toy?",
        ("toy", "/proc/kdbench"): "/proc/kdbench cannot be written",
        ("toy", "runs"): "is a run store",
        ("toy", "tables", "--weights-under", "-1"): "Invalid value for '--weights-under'",
    }
    for arguments, message in bad.items():
        code, out, err = kdbench("export", *arguments)
        assert code == 2 and out == "" and message in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(kdbench: Run, command: str) -> None:
    code, out, _ = kdbench(command, "--help")
    assert code == 0 and "Example: kdbench" in out


def test_help_does_not_import_torch() -> None:
    code = "import sys; sys.argv[1:] = ['--help']\nfrom sweeps import cli\ncli.guarded(cli._typer)\n"
    code += "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_folder_of_images_is_a_data_set(kdbench: Run, tmp_path: Path) -> None:
    import torch
    from torchvision.io import write_png

    for label in ("cat", "dog"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for index in range(12):
            image = torch.randint(0, 256, (3, 20, 24), dtype=torch.uint8)
            write_png(image, str(tmp_path / "pets" / label / f"{index}.png"))
    arguments = changed("--data", "./pets")
    arguments[arguments.index("--train-fraction") + 1] = "1"
    code, _, err = kdbench(*arguments)
    assert code == 2 and "give --image-size" in err
    code, out, _ = kdbench(*arguments, "--image-size", "16", "--recipe", "batch_size=8", "--json")
    values: dict[str, Any] = json.loads(out)
    assert code == 0 and values["spec"]["data"]["name"] == "folder:pets"


def test_several_teachers_compose_and_finetune(kdbench: Run) -> None:
    arguments = changed("--method", "kd+0.1*at")
    arguments[arguments.index("--epochs") + 1] = "4"
    code, out, err = kdbench(*arguments, "--teacher", "cifar_resnet8", "--finetune", "0.25", "--json")
    values = json.loads(out)
    assert code == 0, err
    spec = values["spec"]
    assert spec["method"] == "textbrewer" and spec["params"]["losses"] == "kd+0.1*at"
    weights = [teacher["weights"] for teacher in spec["teachers"]]
    assert len(weights) == len(set(weights)) == 2 and spec["recipe"]["finetune"] == 0.25
    assert "epoch 4/4 (finetune)" in err and "teacher cifar_resnet8: epoch 4/4 (train)" in err
    code, _, err = kdbench(*GOOD, "--teacher", "cifar_resnet14")
    assert code == 2 and "takes one --teacher, but got 2; those that take more: " in err and "multi_teacher" in err
    code, _, err = kdbench(*arguments, "--teacher", "cifar_resnet8", "--teacher-weights", "t.pt")
    assert code == 2 and "one --teacher-weights for each --teacher: 1 for 2" in err


def test_show_prints_scores_targets_and_the_confusion_matrix(kdbench: Run, tmp_path: Path) -> None:
    key = json.loads(kdbench(*GOOD, "--json")[1])["key"]
    code, out, _ = kdbench("show", key[:6], "--plot", "confusion.png")
    assert code == 0 and "test, last epoch (1), student, logits: accuracy" in out and "test, teacher: accuracy" in out
    assert "at most 10 % of its parameters: met (0.0" in out and (tmp_path / "confusion.png").stat().st_size > 5000
    code, out, _ = kdbench("show", key, "--json")
    values = json.loads(out)
    assert {target["name"] for target in values["targets"]} == {"accuracy", "parameters", "latency"}
    assert sum(map(sum, values["outcome"]["confusion"])) == 360
    code, _, err = kdbench("show", key, "--anytime", "anytime.png")
    assert code == 2 and "(kd, done) has no exits to compare" in err
    exits = json.loads(kdbench(*changed("--method", "multi_exit"), "--json")[1])["key"]
    code, _, _ = kdbench("show", exits, "--anytime", "anytime.png")
    assert code == 0 and (tmp_path / "anytime.png").stat().st_size > 5000
    code, _, err = kdbench("show", "zzzz")
    assert code == 2 and "unknown run 'zzzz'" in err
    code, _, err = kdbench("show", key, "--plot", "nowhere/confusion.png")
    assert code == 2 and "there is no folder" in err


def test_explain_compares_runs_and_logs_them(kdbench: Run, tmp_path: Path) -> None:
    distilled = json.loads(kdbench(*GOOD, "--json")[1])["key"]
    alone = json.loads(kdbench(*changed("--method", "student"), "--json")[1])["key"]
    call = ("explain", alone, distilled[:8], "--images", "4", "--snapshots", "1", "--plot", "concepts.png")
    code, out, err = kdbench(*call)
    assert code == 0, err
    assert "N_fg: higher is expected of distillation" in out and "trained again to the same weights" in out
    assert out.count("Targets: ") == 2 and (tmp_path / "concepts.png").exists()
    code, again, err = kdbench(*call, "--no-mlflow")
    assert code == 0 and again == out and err == ""
    code, _, err = kdbench("explain", alone, "--depth", "2")
    assert code == 2 and "depth must be from 0" in err


def test_compatibility_says_what_works_and_why_not(kdbench: Run) -> None:
    pairs = ("--methods", "kd,minilm", "--teachers", "vit", "--students", "vit,resnet")
    code, out, _ = kdbench("compatibility", *pairs, "--format", "markdown")
    assert code == 0 and "| kd       | all" in out and "| minilm   | vit" in out
    assert "- minilm: ResNet has no self-attention whose queries, keys and values could be taken." in out
    code, out, _ = kdbench("compatibility", *pairs, "--json")
    answers = {(each["method"], each["student"]): each["reason"] for each in json.loads(out)["answers"]}
    assert len(answers) == 4 and [pair for pair, reason in answers.items() if reason] == [("minilm", "resnet")]
    code, _, err = kdbench("compatibility", "--teachers", "vitt")
    assert code == 2 and "unknown family 'vitt': did you mean vit?" in err


def test_published_searches_the_papers_numbers(kdbench: Run) -> None:
    code, out, _ = kdbench("published", "--method", "at", "--data", "CIFAR-10", "--limit", "3")
    assert code == 0 and "at2017_cifar10" in out and "3 of 34 rows: 31 are left out; --limit 0 shows all." in out
    code, out, _ = kdbench("published", "--table", "fitnets2015_mnist", "--json")
    values = json.loads(out)
    assert code == 0 and values["found"] == 4 and "temperature 3" in values["protocol"]
    assert [row["value"] for row in values["rows"] if row["method"] == "kd"] == [0.65]
    code, out, err = kdbench("published", "--method", "vid", "--limit", "2", "--format", "csv")
    assert code == 0 and len(out.strip().splitlines()) == 3 and "2 of 31 rows" in err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--method", "att", "unknown published method 'att': did you mean at"),
        ("--data", "cifar", "unknown published data set 'cifar': did you mean cifar10"),
        ("--paper", "crd20", "unknown published paper 'crd20': did you mean crd2020"),
        ("--table", "crd2020_cifar100", "unknown published table 'crd2020_cifar100': did you mean crd2020_cifar100_"),
        ("--teacher", "WRN-40-3", "unknown published teacher 'WRN-40-3': did you mean WRN-40-"),
        ("--student", "", "unknown published student ''"),
        ("--format", "pdf", "unknown format 'pdf': there are csv, markdown, terminal"),
        ("--limit", "-1", "Invalid value for '--limit'"),
        ("--limit", "many", "Invalid value for '--limit'"),
    ],
)
def test_published_refuses_what_no_row_has(kdbench: Run, option: str, value: str, message: str) -> None:
    code, out, err = kdbench("published", option, value)
    assert code == 2 and out == "" and message in err
    assert len(err.strip().splitlines()) == 1 and err.startswith("kdbench: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hinton2015_mnsit"], "unknown table 'hinton2015_mnsit': did you mean hinton2015_mnist"),
        (["nothing.toml"], "there is no protocol file nothing.toml"),
        (["hinton2015_mnist", "--methods", "kd T=3"], "unknown method of hinton2015_mnist 'kd T=3': did you mean kd"),
        (["at2017_cifar10", "--pairs", "WRN-16-3"], "unknown pair of at2017_cifar10 'WRN-16-3': did you mean WRN-16-"),
        (["at2017_cifar10", "--data", "mnist"], "unknown stand-in for cifar10 'mnist'"),
        (["at2017_cifar10", "--seeds", "0"], "Invalid value for '--seeds'"),
        (["at2017_cifar10", "--scale", "tiny"], "unknown scale 'tiny': there are full, short"),
        (["at2017_cifar10", "--format", "pdf"], "unknown format 'pdf'"),
        (["at2017_cifar10", "--plot", "nowhere/a.png"], "there is no folder"),
        (["at2017_cifar10", "--no-train", "--plot", "a.png"], "there is nothing to plot"),
    ],
)
def test_reproduce_refuses_bad_input_before_anything_trains(
    kdbench: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    code, out, err = kdbench("reproduce", *arguments)
    assert code == 2 and out == "" and message in err
    assert len(err.strip().splitlines()) == 1 and not (tmp_path / "runs" / "runs").exists()


def test_reproduce_prints_a_table_that_was_never_run(kdbench: Run, tmp_path: Path) -> None:
    code, out, err = kdbench("reproduce", "hinton2015_mnist", "--no-train")
    assert code == 0 and out.count("not run") == 7 and err == "" and not (tmp_path / "runs").exists()


def test_tables_lists_costs_and_shows_a_protocol(kdbench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbench.sweeps.protocols.cost.Speeds._measured", lambda *_: 1e-4)
    code, out, _ = kdbench("tables", "--json")
    rows = {row["table"]: row for row in json.loads(out)["tables"]}
    mnist = rows["hinton2015_mnist"]
    protocol = load_protocol("hinton2015_mnist")
    epochs = 3 * protocol.teacher["epochs"] + 6 * 3 * protocol.recipe.epochs
    assert code == 0 and mnist["runs"] == 21 and mnist["status"] == "not run" and mnist["images"] == 58_800 * epochs
    assert mnist["hours"] > 0 and mnist["short"]["hours"] < mnist["hours"] and len(mnist["missing"]) == 4
    monkeypatch.setattr("kdbench.sweeps.cli.tables.cost_of", None)  # nothing is reckoned again
    code, out, _ = kdbench("tables", "--format", "markdown")
    assert code == 0 and re.search(r"\| hinton2015_mnist +\| mnist \(missing\) +\|", out)
    code, out, _ = kdbench("tables", "hinton2015_mnist")
    assert code == 0 and "recipe.augment = none    [section 3: the students' images are not moved]" in out
    code, _, err = kdbench("tables", "hinton")
    assert code == 2 and "unknown table 'hinton'" in err
