"""Tasks are files of a folder; one that no code knows, with named tensors, is trained, cached, resumed and scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import kdbench.bench.tasks
import kdbench.bench.training.engine
from kdbench.bench.configure import configure
from kdbench.bench.data.splits import Splits
from kdbench.bench.errors import InputError
from kdbench.bench.record import Metric, Outcome, Stopped
from kdbench.bench.spec import DataSpec, ModelSpec, Recipe, Spec
from kdbench.bench.tasks import Task, load, read, task_of, tasks
from kdbench.bench.teachers.backends import Disk
from kdbench.bench.teachers.cache import TeacherCache
from kdbench.bench.training.engine import updates
from kdbench.bench.training.interleave import interleave
from kdbench.methods.base import SAMPLES, SIGNALS, Unsupported
from tests.conftest import Memory
from tests.harness import CPU

HERE = Path("/nonexistent")
FOLDER = Path(kdbench.bench.tasks.__file__).parent
NAMES = sorted({path.stem for path in FOLDER.glob("*.py")} - {"__init__", "base"} | {"tagging"})
TAGGING = DataSpec(name="sequences", task="tagging", validation=0.2)
WIDE, NARROW = (ModelSpec(name="tagger", args={"width": width}) for width in (24, 8))


@pytest.fixture(scope="module", autouse=True)
def plugged() -> Iterator[None]:
    """Puts the task that only tests have beside the others, as a file of their folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            kdbench.bench.tasks, "__path__", [*kdbench.bench.tasks.__path__, str(Path(__file__).with_name("plugged"))]
        )
        yield
    task_of.cache_clear()


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_the_folder_is_a_task_of_its_name(name: str) -> None:
    task = task_of(name)
    assert tasks() == NAMES and task.name == name and task is task_of(name)
    assert isinstance(task, Task) and isinstance(task.primary, Metric) and task.offers <= SIGNALS | SAMPLES


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("imag", "did you mean image"),
        ("segmentatoin", "did you mean segmentation"),
        ("", f"there are {', '.join(NAMES)}"),
    ],
)
def test_an_unknown_task_lists_the_near_names_or_all(name: str, hint: str) -> None:
    for ask in (lambda: task_of(name), lambda: load(DataSpec(name="digits", task=name), HERE)):
        with pytest.raises(InputError, match=f"unknown task '{name}': {hint}"):
            ask()
    with pytest.raises(InputError, match="unknown task"):
        read(DataSpec(name="digits", task=name), HERE)


def test_only_tasks_after_the_first_enter_the_key() -> None:
    assert "task" not in DataSpec(name="digits", task="image").model_dump()
    spec = Spec(method="student", student=NARROW, data=TAGGING)
    assert spec.key != spec.model_copy(update={"data": TAGGING.model_copy(update={"task": "image"})}).key
    assert Spec.model_validate_json(spec.canonical()) == spec


def test_a_method_is_refused_by_all_that_the_task_lacks_and_told_what_it_has() -> None:
    task_of("tagging").check("kd", frozenset())
    task_of("tagging").check("tinybert", frozenset({"tokens"}))
    with pytest.raises(Unsupported) as refused:
        task_of("tagging").check("vild", frozenset({"pooled", "tokens", "class_targets"}))
    assert str(refused.value) == (
        "vild reads class_targets and pooled, which the task tagging does not have; it has tokens."
    )


def test_data_changed_since_the_run_was_specified_are_refused() -> None:
    source = read(TAGGING, HERE)
    load(TAGGING.model_copy(update={"fingerprint": source.fingerprint}), HERE)
    with pytest.raises(InputError, match="the data sequences .* the files have changed"):
        load(TAGGING.model_copy(update={"fingerprint": "0" * 16}), HERE)


# Whole runs on named tensors


@pytest.fixture(scope="module")
def sequences() -> Splits:
    return load(TAGGING.model_copy(update={"train_fraction": 0.5}), HERE)


def spec_of(method: str, augment: str = "mask", **recipe: Any) -> Spec:
    return Spec(
        method=method,
        params=configure(method, {}).hyperparameters(),
        student=NARROW,
        teachers=(WIDE.model_copy(update={"weights": "run:t"}),),
        data=TAGGING,
        recipe=Recipe(**{"epochs": 3, "batch_size": 8, "lr": 0.1, "augment": augment, **recipe}),
    )


@pytest.fixture(scope="module")
def teacher(sequences: Splits) -> bytes:
    spec = spec_of("student", epochs=20).model_copy(update={"student": WIDE, "teachers": ()})
    outcome, files = kdbench.bench.training.engine.run(spec, sequences, Memory({}), CPU)
    assert outcome.headline("last", "test") > 0.8
    return files["last"]


@pytest.fixture(scope="module")
def carried_out(sequences: Splits, teacher: bytes) -> Callable[..., tuple[Outcome, dict[str, bytes], Memory]]:
    def run(spec: Spec, cache: TeacherCache | None = None, **recorder: Any) -> tuple[Outcome, dict[str, bytes], Memory]:
        memory = Memory({"run:t": teacher}, **recorder)
        return *kdbench.bench.training.engine.run(spec, sequences, memory, CPU, cache), memory

    return run


@pytest.mark.parametrize("method", ["student", "kd", "dml", "tolerant_teacher", "scheduled_kd"])
def test_methods_on_predictions_learn_a_task_that_no_code_knows(method: str, carried_out: Callable[..., Any]) -> None:
    outcome, _, memory = carried_out(spec_of(method, epochs=20))
    assert outcome.status == "done", outcome.reason
    assert outcome.metric.name == "tagged" and "student/tags" in memory.epochs[-1].losses
    assert memory.epochs[-1].validation == outcome.headline("last", "validation")
    assert outcome.headline("last", "test") > 0.6 and memory.epochs[-1].train > 0.6  # by chance 0.25
    assert outcome.headline("best", "validation") == max(epoch.validation for epoch in memory.epochs)
    assert outcome.cost["parameters"] > 0 and outcome.cost["multiply_adds"] > 0
    assert outcome.cost.get("latency_ms", 1) > 0, "on a core that is not quiet it is not measured"


def test_decisions_that_do_not_count_are_left_out_of_the_confusion(
    sequences: Splits, carried_out: Callable[..., Any]
) -> None:
    outcome, _, _ = carried_out(spec_of("kd"))
    targets: Any = sequences.test.targets
    of_each = torch.tensor(outcome.confusion).sum(dim=1)
    assert torch.equal(of_each, targets["classes"][targets["classes"] >= 0].bincount(minlength=4))


def test_a_method_on_features_is_refused_before_anything_is_trained(carried_out: Callable[..., Any]) -> None:
    outcome, files, memory = carried_out(spec_of("at"))
    assert outcome.status == "unsupported" and not files and not memory.epochs
    assert outcome.reason == "at reads features, which the task tagging does not have; it has tokens."


@pytest.mark.parametrize("augment", ["mask", "none"])
def test_answers_about_named_tensors_are_kept_and_shared_to_the_bit(
    augment: str, sequences: Splits, teacher: bytes, carried_out: Callable[..., Any], tmp_path: Path
) -> None:
    spec = spec_of("kd", augment)
    outcome, files, memory = carried_out(spec)
    cache = TeacherCache(Disk(tmp_path, 2**24))
    recorders = [Memory({"run:t": teacher}) for _ in range(2)]
    together = interleave([updates(spec, sequences, recorder, CPU, cache) for recorder in recorders], CPU)
    again, same, _ = carried_out(spec, TeacherCache(Disk(tmp_path, 2**24)))
    for result in (*together, (again, same)):
        assert not isinstance(result, Exception)
        assert result[1] == files and result[0].scores == outcome.scores
    assert again.cost["teacher_cached"] == again.cost["teacher_forwards"] == 3 * 36 > outcome.cost["teacher_cached"]
    assert recorders[0].epochs[-1].losses == recorders[1].epochs[-1].losses == memory.epochs[-1].losses


@pytest.mark.parametrize("method", ["kd", "dml"])
def test_an_interrupted_run_on_named_tensors_goes_on_to_the_same_weights(
    method: str, sequences: Splits, teacher: bytes, carried_out: Callable[..., Any]
) -> None:
    spec = spec_of(method, finetune=0.4)
    outcome, files, memory = carried_out(spec)
    assert [epoch.stage == "finetune" for epoch in memory.epochs] == [False, False, True]
    for stop in (1, 2):
        first = Memory({"run:t": teacher}, stop_after=stop)
        with pytest.raises(Stopped):
            kdbench.bench.training.engine.run(spec, sequences, first, CPU)
        resumed, same, _ = carried_out(spec, resume=first.state)
        assert same == files and resumed.scores == outcome.scores


def test_a_stage_may_take_a_part_of_named_tensors(sequences: Splits) -> None:
    labelled: Any = sequences.train.inputs
    unlabelled: Any = sequences.train.unlabelled
    assert len(labelled["ids"]) == len(labelled["mask"]) == len(unlabelled["ids"]) == 36
    both = torch.cat([labelled["ids"], unlabelled["ids"]])
    batches = task_of("tagging").batches(dataclasses.replace(sequences.train, augment="none"), 8, 5, CPU)
    shown: Any = [batch.inputs for batch in batches.epoch(0, 1)]
    ids = torch.cat([each["ids"] for each in shown])
    assert {tuple(row) for row in ids.tolist()} <= {tuple(row) for row in both[:36].tolist()}
