"""Protocols as they are kept, and a tiny table reproduced from the first run to the last."""

from __future__ import annotations

import json
import os
import posixpath
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from mlflow import MlflowClient
from pydantic import TypeAdapter

from kdbench.bench.data.info import check_data, check_stand_in, data_info, missing, training_images
from kdbench.bench.data.splits import Part, Source, divided
from kdbench.bench.errors import InputError
from kdbench.bench.spec import ModelSpec
from kdbench.methods.rows import count
from kdbench.results.analysis.paper_table import Table
from kdbench.results.analysis.reproduced import Reproduced
from kdbench.results.analysis.reproduction import reproduction_of as reproduction_of_table
from kdbench.results.analysis.reproduction import reproduction_of_plan
from kdbench.results.analysis.status import status_of
from kdbench.results.analysis.verdict import Judgement
from kdbench.results.pages.reproduction import reproduction_report
from kdbench.results.store.export import export
from kdbench.results.store.plan import SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.tracking.tracker import metric_name
from kdbench.sweeps.cli.place import Place
from kdbench.sweeps.cli.tables import reproduce_and_show
from kdbench.sweeps.protocols.cost import cost_of
from kdbench.sweeps.protocols.files import UNSOURCED, bundled, load_protocol, read_protocol, written
from kdbench.sweeps.protocols.protocol import Protocol
from kdbench.sweeps.protocols.reproduce import imported, reproduction_of
from kdbench.sweeps.protocols.request import table_request
from kdbench.sweeps.scheduling import projector
from tests.sweeps.commands import kdbench

LISTEN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # also below nohup, which ignores it
KDBENCH = [sys.executable, "-c", f"{LISTEN}; from kdbench.sweeps.cli import main; main()"]
TINY = """
about = "A tiny table."
table = "hinton2015_mnist"
metric = "test_errors"
statistic = "mean"
margin = { test_errors = 10 }
epoch = "last"
seeds = 2
departures = ["Digits are no MNIST."]

[data]
name = "digits"
validation = 0.25

[networks."MLP 784-1200-1200-10"]
name = "cifar_resnet8_quarter"

[networks."MLP 784-800-800-10"]
name = "cifar_resnet8_quarter"

[recipe]
epochs = 2
batch_size = 64
optimizer = "sgd"
lr = 0.05
momentum = 0.9
weight_decay = 0.0
schedule = "cosine"
augment = "none"

[teacher]
epochs = 1

[[pairs]]
teacher = "MLP 784-1200-1200-10"
student = "MLP 784-800-800-10"

[[cells]]
label = "teacher"
method = "teacher"

[[cells]]
label = "student"
method = "student"

[[cells]]
label = "kd T=20"
method = "kd"
params = { temperature = 20.0 }

[[cells]]
label = "kd T=1"
method = "kd"
params = { temperature = 1.0 }
printed = false

[short]
recipe = { epochs = 1 }
seeds = 1

[sources]
"*" = "our choice: a test"
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def reproduce(tmp_path: Path, *arguments: str, code: int = 0) -> tuple[str, str]:
    """Runs the command; the tiny table in a store of the test's unless another is named."""
    here = ["--store", str(tmp_path / "store"), "--workers", "2", "--precision", "fp32", "--device", "cpu"]
    ended, out, err = kdbench("reproduce", *arguments, *here)
    assert ended == code, err
    return out, err


def place(store: Path) -> Place:
    return Place(store, "cpu", "fp32", workers=2)


def shown(store: Path, table: Path, form: str = "terminal", scale: str = "full", train: bool = False) -> str:
    """What the command prints, in this process: nothing is left to train."""
    request = table_request(load_protocol(str(table)), scale)
    return reproduce_and_show(request, place(store), form, train=train)[1]


def finished(store: Path) -> dict[str, float]:
    return {path.parent.name: path.stat().st_mtime for path in (store / "runs").glob("*/DONE.json")}


@pytest.mark.parametrize("name", bundled())
def test_bundled_protocols_load_and_every_value_has_a_source(name: str) -> None:
    values, protocol = read_protocol(name)
    paths = [path for path, _ in written({k: v for k, v in values.items() if k not in UNSOURCED})]
    assert len(paths) > 15 and all(protocol.source(path) for path in paths)
    unused = [
        key for key in protocol.sources if not any(protocol.source(path) == protocol.sources[key] for path in paths)
    ]
    assert unused == []


@pytest.mark.parametrize("name", bundled())
def test_bundled_protocols_find_their_published_rows(name: str) -> None:
    protocol = load_protocol(name)
    request = table_request(protocol)
    printed = [want.published for want in request.wanted() if want.published]
    assert printed and {row.table for row in printed} == {protocol.table}
    assert all(row.metric == want.metric for want in request.wanted() if (row := want.published))
    assert protocol.digest() != table_request(protocol, "short").protocol.digest()
    said = protocol.model_copy(update={"short": type(protocol.short)(), "table": "other", "teacher_seeds": 9})
    other = protocol.model_copy(update={"epoch": "best" if protocol.epoch == "last" else "last"})
    assert said.digest() == protocol.digest() != other.digest()


@pytest.mark.parametrize("name", bundled())
def test_margins_are_at_most_half_of_what_a_table_claims(name: str) -> None:
    """Half of the median gain over the student, to a tenth; and never more than half a point or ten images."""
    protocol = load_protocol(name)
    wanted = [want for want in table_request(protocol).wanted() if want.published and want.phase == "seed"]
    alone = {want.quantity: want.published for want in wanted if want.alone}
    claimed: dict[str, list[float]] = {}
    for want in wanted:
        if want.published and not want.alone and (student := alone.get(want.quantity)):
            claimed.setdefault(want.metric, []).append(abs(want.published.value - student.value))
    for metric, margin in protocol.margin.items():
        assert margin <= (10 if metric.startswith("test_errors") else 0.5)
        if metric in claimed:
            assert margin <= max(0.1, round(statistics.median(claimed[metric]) / 2, 1))


def test_published_numbers_stand_where_the_papers_have_them() -> None:
    found = {want.label: want.published for want in table_request(load_protocol("hinton2015_mnist_omit")).wanted()}
    values = {label: published.value for label, published in found.items() if published}
    assert values == {
        "kd without 3s": 206,
        "kd without 3s of which on 3s": 133,
        "kd without 3s bias corrected": 109,
        "kd without 3s bias corrected, of which on 3s": 14,
        "kd of 7s and 8s alone": 47.3,
        "kd of 7s and 8s alone bias corrected": 13.2,
    }
    exits = [
        want
        for want in table_request(load_protocol("multiexit2019_cifar100")).wanted()
        if want.part[:3] in ("150", "500")
    ]
    values = {(w.part[:3], w.label): w.published.value for w in exits if w.published}
    assert len(exits) == 5 * 11 and values["150", "semi-supervised, 150 images a class exit 1"] == 79.9
    assert values["500", "labels alone, 500 images a class exit 1"] == 87.5
    order = [*(f"stage_{number}" for number in range(1, 11)), "last"]
    for want in exits:
        within = order[: int(want.label.rpartition(" ")[2])]
        assert list(want.best_of) == (within if len(within) > 1 else []) and (want.best_of or want.prediction in within)
    mutual = table_request(load_protocol("dml2018_cifar100")).wanted()
    pairs = [(w.pair, w.label, w.published.value) for w in mutual if w.published and w.label.startswith("dml of two")]
    assert [value for _, _, value in pairs] == [78.96, 70.73, 76.13, 71.10, 80.28, 77.39]


@pytest.mark.parametrize("name", ["multiexit2019_cifar100", "multiexit2019_cifar100_anytime"])
def test_exits_learn_of_the_papers_images_at_rates_that_are_the_programs(name: str) -> None:
    protocol = load_protocol(name)
    labels = torch.arange(50_000) % 100
    cifar = Part(torch.zeros(50_000, 1, 1, 1, dtype=torch.uint8), labels)
    source = Source(cifar, cifar, tuple(map(str, range(100))), "")
    specs = [protocol.data.model_copy(update=subset.data) for subset in protocol.parts]
    sizes = [count(divided(source, spec, labels).train.inputs) for spec in specs]
    assert sizes == [100 * each for each in (100, 200, 300, 450)]
    request = table_request(protocol, seeds=1)
    rates = {row[2].label: spec.recipe.lr for row in request.rows() for spec in request.specs(*row)}
    assert rates == {"labels alone": 1.1, "multi_exit": 0.5, "semi-supervised": 0.5}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"*" = "our choice: a test"',
            'metric = "here"',
            "no source for statistic, margin.test_errors, epoch, seeds",
        ),
        ("momentum = 0.9\n", "", "the recipe must write out momentum"),
        ('method = "kd"\nparams = { temperature = 20.0 }', 'method = "kdd"', "unknown method 'kdd': did you mean kd"),
        ("temperature = 20.0", "temperature = -1", "temperature must be positive"),
        ("printed = false", 'printed = true\npairs = ["a -> b"]', "unknown pair of tiny 'a -> b'"),
        ('label = "kd T=1"', 'label = "kd T=20"', "labels must differ"),
        ('name = "cifar_resnet8_quarter"', 'name = "cifar_resnet9"', "unknown model 'cifar_resnet9'"),
        ('table = "hinton2015_mnist"', 'table = "vid2019_cifar10"', "published.csv has no number of teacher"),
        ('name = "digits"', 'name = "digitz"', "unknown data set of a protocol 'digitz': did you mean digits"),
        ("{ test_errors = 10 }", "{ error_top1 = 1 }", "there is no margin for test_errors"),
        ("{ test_errors = 10 }", "{ test_errors = 0 }", "Input should be greater than 0"),
        ("seeds = 2", "seeds = 0", "seeds: Input should be greater than or equal to 1"),
        ("seeds = 2", "seeds =", "is not TOML"),
    ],
)
def test_protocol_that_breaks_a_rule_is_refused(table: Path, old: str, new: str, message: str) -> None:
    table.write_text(TINY.replace(old, new, 1))
    with pytest.raises(InputError) as error:
        load_protocol(str(table))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_request_selects_scales_and_stands_in() -> None:
    protocol = load_protocol("sp2019_cifar10")
    request = table_request(protocol, "short", methods="SP", data="cifar10-jpeg")
    assert request.labels == ("sp",) and request.seeds == 1 and sum(each.runs for each in request.expected()) == 2
    assert request.incomparable == "short scale; cifar10-jpeg stands in for cifar10"
    assert [spec.recipe.epochs for row in request.rows() for spec in request.specs(*row)] == [3]
    assert table_request(protocol).incomparable == ""
    chosen = table_request(load_protocol("at2017_cifar10"), pairs="WRN-40-1 -> WRN-16-1, wrn-40-2", seeds=2)
    assert chosen.pairs == ("WRN-40-1 -> WRN-16-1", "WRN-40-2 -> WRN-16-2") and chosen.seeds == 2
    with pytest.raises(InputError, match="unknown pair of sp2019_cifar10 'WRN-40-3'"):
        table_request(protocol, pairs="WRN-40-3")
    shares = load_protocol("vid2019_cifar10")
    assert {part.name for _, part, _ in table_request(shares, methods="vid", parts="all,2 %").rows()} == {
        "",
        "2 % of the training set",
    }
    short = table_request(shares, "short")
    assert {want.part for want in short.wanted() if want.phase == "seed"} == {"2 % of the training set"}
    assert [want.row for want in short.wanted() if want.phase == "teacher"] == ["teacher"]
    with pytest.raises(InputError, match="unknown part of vid2019_cifar10 '3 %': did you mean"):
        table_request(shares, parts="3 %")
    with pytest.raises(InputError, match="unknown stand-in for cifar10 'mnist': there are cifar10, cifar10-jpeg"):
        table_request(protocol, data="mnist")


def test_students_alone_and_teachers_are_trained_once_for_several_pairs() -> None:
    request = table_request(load_protocol("crd2020_cifar100_same"), methods="student,teacher")
    specs = [spec for row in request.rows() for spec in request.specs(*row)]
    teachers = [spec for pair in request.protocol.pairs for spec in request.teachers(pair)]
    assert len(specs) == 21 and len({spec.key for spec in specs}) == 18  # ResNet-20 has two teachers
    assert len(teachers) == 7 and len({spec.key for spec in teachers}) == 5
    assert cost_of(request, None).runs == 18 + 5


def test_cost_counts_images_of_every_network(table: Path) -> None:
    protocol = load_protocol(str(table))
    images = training_images(protocol.data)
    assert images == round(1797 * 0.8 * 0.75)
    cost = cost_of(table_request(protocol), lambda model, info, batch, asked: 3600.0)
    assert (cost.runs, cost.images) == (7, images * (1 + 6 * 2))
    assert cost.hours == pytest.approx(images * (1 + 2 * 2 + 4 * 2 * (1 + 1 / 3)))
    two = table_request(load_protocol("dml2018_cifar100"), pairs="ResNet-32 -> ResNet-32", methods="dml", seeds=1)
    assert cost_of(two, None).images == 2 * 200 * 49_000
    calls: dict[str, bool] = {}
    cost_of(
        table_request(load_protocol("at2017_imagenet")),
        lambda model, info, batch, asked: calls.setdefault(model.name, asked),
    )
    assert [asked for name, asked in calls.items() if name == "resnet18"] == [False] and True in calls.values()


def test_missing_data_say_which_files_and_how_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(name: str, size: int, folder: Path) -> None:
        raise InputError("no network")

    monkeypatch.setattr("kdbench.bench.data.info.read", refuse)
    for name in ("mnist", "cifar100", "cifar10", "folder:imagenet"):
        data = Protocol.model_fields["data"].annotation
        assert data is not None
        with pytest.raises(InputError) as error:
            check_data(data(name=name), tmp_path)
        text = str(error.value)
        assert all(str(tmp_path / file) in text for file in missing(name, tmp_path)) and data_info(name).get in text
        assert "--data-dir" in text and ("cifar10-jpeg may stand in" in text) == (name == "cifar10")
    check_stand_in("cifar10", "cifar10-jpeg")


def test_a_table_whose_data_are_missing_trains_nothing(tmp_path: Path) -> None:
    out, err = reproduce(tmp_path, "sp2019_cifar10", "--data", "cifar10-jpeg", "--data-dir", str(tmp_path), code=2)
    assert out == "" and "cifar10-jpeg/train.parquet" in err and len(err.strip().splitlines()) == 1
    assert finished(tmp_path / "store") == {} and not (tmp_path / "store" / "suites").exists()


def test_tiny_table_runs_prints_every_format_and_repeats_nothing(tmp_path: Path, table: Path) -> None:
    store = tmp_path / "store"
    out, err = reproduce(tmp_path, str(table), "--methods", "teacher,student", "--json")
    values: dict[str, Any] = json.loads(out)
    assert [row["label"] for row in values["rows"]] == ["teacher", "student"] and "[3/3] student seed" in err
    assert values["rows"][1]["published"]["value"] == 146 and set(values["rows"][1]["seeds"]) == {"1", "2"}
    assert values["rows"][0]["reason"] == "fewer than 3 seeds"
    assert "2 of the table's 4 numbers are shown." in values["notes"]
    before = finished(store)
    out = shown(store, table)
    assert out.count("not run") == 2 and "Unfinished: 2 of 4 numbers." in out and finished(store) == before
    out, err = reproduce(tmp_path, str(table), "--plot", str(tmp_path / "plot.png"))
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG") and "Departure: Digits are no MNIST." in out
    assert "[7/7] kd T=" in err and "kd T=1" in out and "not published" in out
    whole = finished(store)
    assert len(whole) == 7 and before.items() <= whole.items()
    assert shown(store, table, train=True).split() == out.split() and finished(store) == whole
    for form, mark in {"markdown": "| row ", "latex": r"\toprule", "csv": "table,scale,pair,row"}.items():
        assert mark in shown(store, table, form)
    copy = tmp_path / "copy"
    assert export(SweepPlan.find(store, "tiny"), RunStore(store), copy).runs == 7
    tree = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    assert shown(copy, table) == shown(store, table)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == tree
    reproduce(tmp_path, str(table), "--scale", "short", "--methods", "student")
    short = shown(store, table, scale="short")
    assert "not comparable: short scale" in short and "tiny (short scale, digits)" in short
    assert len(finished(store)) == 8 and len(list((store / "suites" / "tiny").iterdir())) == 2
    plan = SweepPlan.find(store, "tiny")
    assert status_of(plan, RunStore(store)).methods == {"student": {"done": 1}} and plan.expected() == 1


def logged(store: Path) -> tuple[dict[str, float], dict[str, str], dict[str, bytes]]:
    """Metrics, tags and files of MLflow's one run "reproduction" of the tiny table, at full scale."""
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name LIKE 'tiny@%'")
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    (run,) = [run for run in runs if run.info.run_name == "reproduction"]
    paths = [artifact.path for artifact in client.list_artifacts(run.info.run_id)]
    files = {path: Path(client.download_artifacts(run.info.run_id, path)).read_bytes() for path in paths}
    assert run.info.status == "FINISHED"
    return dict(run.data.metrics), dict(run.data.tags), files


@pytest.mark.slow
def test_table_is_logged_to_mlflow_and_rebuilt_by_sync(tmp_path: Path, table: Path) -> None:
    store = tmp_path / "store"
    reproduce(tmp_path, str(table), "--methods", "teacher,student", "--seeds", "1")
    metrics, tags, files = logged(store)
    name = "MLP 784-1200-1200-10 to MLP 784-800-800-10/{}/test_errors"
    assert metrics["verdict/not run"] == 2 and "ours/" + name.format("kd T_20") not in metrics
    assert metrics["published/" + name.format("kd T_20")] == 74 and metrics["verdict/equivalent"] == 0
    values = json.loads(reproduce(tmp_path, str(table), "--json")[0])
    metrics, tags, files = logged(store)
    for row in values["rows"]:
        label = name.format(row["label"].replace("=", "_"))
        assert metrics[f"ours/{label}"] == row["value"]
        if row["published"]:
            assert metrics[f"published/{label}"] == row["published"]["value"]
            assert metrics[f"difference/{label}"] == row["difference"]
    assert "published/" + name.format("kd T_1") not in metrics
    verdicts = [row["verdict"] for row in values["rows"]]
    for verdict in ("equivalent", "different", "inconclusive", "not comparable", "not run", "not published"):
        assert metrics[f"verdict/{verdict}"] == verdicts.count(verdict)
    assert files.keys() == {f"reproduction.{suffix}" for suffix in ("json", "md", "tex", "csv", "png")}
    assert files["reproduction.md"].decode() == shown(store, table, "markdown")
    assert files["reproduction.csv"].decode() == shown(store, table, "csv")
    assert len(json.loads(files["reproduction.json"])["data"]) == 2 + 4, "gains, then numbers"
    assert json.loads(tags["mlflow.loggedArtifacts"]) == [{"path": "reproduction.json", "type": "table"}]
    assert (tags["table"], tags["scale"], tags["data"]) == ("tiny", "full", "digits")
    lost = shutil.copytree(store, tmp_path / "lost", ignore=shutil.ignore_patterns("mlflow*"))
    for _ in range(2):
        assert kdbench("sync", "tiny", "--store", str(lost))[0] == 0
        assert logged(lost) == (metrics, tags, files)
    reproduce(tmp_path, str(table), "--seeds", "1")  # fewer again: what MLflow shows is what the table says
    fewer, _, _ = logged(store)
    assert fewer["verdict/not comparable"] == 3 and fewer["verdict/not published"] == 1
    first = next(row for row in values["rows"] if row["label"] == "student")["seeds"]["1"]
    assert fewer["ours/" + name.format("student")] == first
    plan = SweepPlan.find(store, "tiny")
    request = table_request(load_protocol(str(table)), seeds=1)
    assert reproduction_of_plan(plan, RunStore(store)) == reproduction_of(request, store)


def test_mlflow_that_cannot_be_written_is_a_warning(
    tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projector, "GRACE", 1.0)
    (tmp_path / "store" / "mlflow.db").mkdir(parents=True)
    out, _ = reproduce(tmp_path, str(table), "--scale", "short", "--methods", "student")
    assert "MLflow was not brought up to date" in out and "kdbench sync" in out
    assert len(finished(tmp_path / "store")) == 1


@pytest.mark.parametrize("name", bundled())
def test_every_number_of_a_table_has_a_metric_of_its_own(name: str) -> None:
    table = table_request(load_protocol(name)).table()
    rows = [Reproduced(want, 1.0, None, {1: 1.0}, Judgement("inconclusive", difference=0.0)) for want in table.wanted]
    shown = replace(reproduction_of_table(table, None, None), rows=rows)
    names = [metric_name(number.name) for number in reproduction_report(shown).metrics]
    assert len(set(names)) == len(names) and max(map(len, names)) < 250
    assert all(posixpath.normpath(name) == name for name in names)
    assert TypeAdapter(Table).validate_json(json.dumps(table.values())) == table


def test_table_kept_by_another_kdbench_is_named(tmp_path: Path) -> None:
    request = table_request(load_protocol("hinton2015_mnist"))
    plan = SweepPlan.create(tmp_path, "tiny", "abcd1234", request.record() | {"reproduction": {"name": "tiny"}})
    with pytest.raises(InputError, match="is of another kdbench: kdbench reproduce tiny writes it anew"):
        reproduction_of_plan(plan, RunStore(tmp_path))
    plan.suite = plan.suite.model_copy(update={"reproduction": None})
    assert reproduction_of_plan(plan, RunStore(tmp_path)) is None


def test_published_weights_teach_untrained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, table: Path) -> None:
    def config(name: str) -> SimpleNamespace:
        images: dict[str, Any] = {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.25,) * 3}
        return SimpleNamespace(num_classes=classes, has_weights=True, **images)

    def create(name: str, pretrained: bool = False, **args: Any) -> Any:
        if pretrained and classes == 9:
            raise RuntimeError("no connection")
        return built(name, **args)

    built, name = timm.create_model, 'name = "cifar_resnet8_quarter"'
    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr(timm, "get_pretrained_cfg", config)
    table.write_text(TINY.replace(name, f'{name}\npretrained = "cifar_resnet8"', 1))
    mixed_up = {"mean": (0.5,)}
    refusals: tuple[tuple[int, int, dict[str, Any], str], ...] = (
        (1000, 10, {}, "tell 1000 classes, but the data have 10: name weights for 10 classes, or leave pretrained out"),
        (9, 9, {}, "are missing: run once"),
        (9, 9, mixed_up, "takes 3 channels, but got mean"),
    )
    for classes, digits, args, message in refusals:  # noqa: B007  (the closures above read it)
        part = SimpleNamespace(train=SimpleNamespace(classes=digits), channels=1, size=8, mean=(0.5,), std=(0.5,))
        model = ModelSpec(name="cifar_resnet8", weights="pretrained", args=args)
        with pytest.raises(InputError, match=message):
            imported(model, part, RunStore(tmp_path))  # type: ignore[arg-type]
    classes = 10
    request = table_request(load_protocol(str(table)), methods="teacher,student,kd")
    assert sum(each.runs for each in request.expected()) == 6
    assert [w.phase for w in request.wanted()] == ["taught", "seed", "seed", "seed"]
    values = reproduce_and_show(request, place(tmp_path))[0]
    runs = [run for key in finished(tmp_path) if (run := RunStore(tmp_path).get(key))]
    taught = [run for run in runs if run.spec.teachers]
    weights = {run.spec.teachers[0].weights for run in taught}
    assert len(taught) == 4 and weights == {f"sha256:{next((tmp_path / 'imported').iterdir()).stem}"}
    assert taught[0].outcome and taught[0].spec.teachers[0].args["in_chans"] == 3
    wrong = round((1 - taught[0].outcome.teacher["test"]["accuracy"]) * 360)
    assert values["rows"][0]["value"] == wrong and "published weights" in values["rows"][0]["reason"]


@pytest.mark.parametrize("name", ["cifar_resnet20", "resnet200", "resnet34.nowhere"])
def test_network_without_published_weights_is_named(tmp_path: Path, name: str) -> None:
    data = SimpleNamespace(train=SimpleNamespace(classes=1000))
    with pytest.raises(InputError, match=rf"timm has no weights of {name}: name .*, or leave pretrained out, so that"):
        imported(ModelSpec(name=name, weights="pretrained"), data, RunStore(tmp_path))  # type: ignore[arg-type]


def test_gpu_script_goes_on_when_a_table_has_no_number_yet(tmp_path: Path) -> None:
    """Nothing can be plotted or exported, the csv fails with half a line written, and every table gets its turn."""
    script = Path(__file__).parents[2] / "results" / "reproduced" / "gpu.sh"
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text(
        '#!/bin/sh\ncase "$*" in\n*--plot*|*export*|*--device*) exit 1;;\n*csv*) printf half; exit 1;;\n'
        '*) echo "table $4";;\nesac\n'
    )
    python.chmod(0o755)
    out.mkdir()
    (out / "one.csv").write_text("earlier")
    path = os.pathsep.join((str(tmp_path), os.environ["PATH"]))
    command = ["sh", str(script), str(tmp_path / "store"), str(out), str(tmp_path)]
    done = subprocess.run(command, env={"PATH": path, "TABLES": "one two"}, capture_output=True, text=True)
    assert done.returncode == 0 and all(f"two{says}" in done.stderr for says in (".csv: not", ": no plot", ": not exp"))
    found = {file.name: file.read_text() for file in out.iterdir()}
    assert found == {"one.md": "table one\n", "two.md": "table two\n", "one.csv": "earlier"}


@pytest.mark.slow
def test_interrupted_table_goes_on(tmp_path: Path, table: Path) -> None:
    store = tmp_path / "store"
    command = [*KDBENCH, "reproduce", str(table), "--store", str(store), "--workers", "1", "--precision", "fp32"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(3000):
        if len(finished(store)) >= 2:
            break
        time.sleep(0.1)
    process.terminate()
    process.communicate(timeout=60)
    before = finished(store)
    assert 2 <= len(before) < 7
    out, _ = reproduce(tmp_path, str(table), "--json")
    assert before.items() <= finished(store).items() and len(finished(store)) == 7
    assert all(row["value"] is not None for row in json.loads(out)["rows"])
