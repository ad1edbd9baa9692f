"""Segmentation: the same engine, methods and cache on another task, with a decision for each pixel."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

import kdbench.bench.training.engine
from kdbench.bench.configure import configure
from kdbench.bench.data.images import ImageSplits
from kdbench.bench.data.splits import Part
from kdbench.bench.errors import InputError
from kdbench.bench.record import Outcome
from kdbench.bench.spec import DataSpec, ModelSpec, Recipe, Spec
from kdbench.bench.tasks import load, task_of
from kdbench.bench.tasks.segmentation import TASK, SegmentationBatches, composed_digits, decisions
from kdbench.bench.teachers.backends import Memory as MemoryBackend
from kdbench.bench.teachers.cache import TeacherCache
from kdbench.methods.base import Data
from kdbench.methods.functional import kd_loss
from tests.conftest import Memory

CPU = torch.device("cpu")
DATA = DataSpec(name="composed-digits", task="segmentation", validation=0.2)
STUDENT, TEACHER = ModelSpec(name="cifar_resnet8_quarter"), ModelSpec(name="cifar_resnet8")
RECIPE = Recipe(epochs=2, batch_size=8, lr=0.02, augment="crop", schedule="cosine")


@pytest.fixture(scope="module")
def few() -> ImageSplits:
    """Twenty-four training images."""
    splits = load(DATA, Path("/nonexistent"))
    assert isinstance(splits, ImageSplits)

    def first(part: Part | Data, count: int) -> Any:
        return part.inputs[:count], part.targets[:count]  # type: ignore[index]

    train = dataclasses.replace(splits.train, **dict(zip(("inputs", "targets"), first(splits.train, 24), strict=True)))
    parts = {"validation": Part(*first(splits.validation, 12)), "test": Part(*first(splits.test, 12))}
    return dataclasses.replace(splits, train=train, **parts)


@pytest.fixture(scope="module")
def teacher(few: ImageSplits) -> bytes:
    """Weights of a network from random ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = TASK.build(TEACHER, few).state_dict()
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in state.items()})


@pytest.fixture(scope="module")
def carried_out(few: ImageSplits, teacher: bytes) -> Callable[..., tuple[Outcome, dict[str, bytes], Memory]]:
    """Carries out a run of a method with its defaults."""

    def run(method: str, cache: TeacherCache | None = None) -> tuple[Outcome, dict[str, bytes], Memory]:
        spec = Spec(
            method=method,
            params=configure(method, {}).hyperparameters(),
            student=STUDENT,
            teachers=(TEACHER.model_copy(update={"weights": "run:t"}),),
            data=DATA,
            recipe=RECIPE,
            seed=1,
        )
        memory = Memory({"run:t": teacher})
        return *kdbench.bench.training.engine.run(spec, few, memory, CPU, cache), memory

    return run


def test_composed_digits_are_equal_on_every_machine_and_test_digits_are_others() -> None:
    source = task_of("segmentation").read(DATA, Path("/nonexistent"))
    assert source.fingerprint == "780cdcf692d87006" and len(source.classes) == 11
    assert source.train.inputs.shape == (1000, 1, 32, 32) and source.test.targets.shape == (400, 32, 32)  # type: ignore[union-attr]
    assert set(source.train.targets.unique().tolist()) == set(range(11))  # type: ignore[union-attr]
    alone = composed_digits("train", 3, slice(0, 1))
    assert set(alone.targets.unique().tolist()) == {0, 1}  # type: ignore[union-attr]  # the first digit is a 0


def test_a_pixel_has_a_class_just_where_there_is_ink() -> None:
    part = composed_digits("train", 50, slice(0, 1200))
    assert torch.equal(part.inputs[:, 0] > 0, part.targets > 0)  # type: ignore[call-overload,index,operator]


def test_a_crop_moves_pixels_and_classes_alike(few: ImageSplits) -> None:
    data = dataclasses.replace(few.train, augment="crop:6+flip")
    batch = next(SegmentationBatches(data, 24, 1, CPU).epoch(0, 1))
    images, classes = batch.inputs, batch.targets
    assert isinstance(images, Tensor) and isinstance(classes, Tensor) and classes.dtype == torch.int64
    assert torch.equal(images[:, 0] > 0, classes > 0) and images.max() <= 1
    assert not torch.equal(classes, few.train.targets[batch.indices])  # type: ignore[index,arg-type]


@pytest.mark.parametrize("augment", ["randaugment", "crop+resized-crop"])
def test_augmentations_that_part_pixels_from_classes_are_refused(augment: str, few: ImageSplits) -> None:
    with pytest.raises(InputError, match="would part pixels from their classes.*takes crop, flip, none"):
        SegmentationBatches(dataclasses.replace(few.train, augment=augment), 8, 1, CPU)


def test_decisions_are_pixels_row_by_row_of_image_after_image() -> None:
    logits = torch.randn(2, 5, 3, 4)
    rows = decisions(logits)
    assert rows.shape == (24, 5)
    assert torch.equal(rows[1 * 12 + 2 * 4 + 3], logits[1, :, 2, 3])


def test_miou_is_the_mean_over_classes_that_occur() -> None:
    targets = torch.tensor([[[0, 0], [1, 1]]])
    logits = F.one_hot(torch.tensor([0, 1, 1, 1]), 3).float()
    scores = TASK.evaluate(logits, targets)
    assert scores["mIoU"] == pytest.approx((1 / 2 + 2 / 3) / 2) and scores["accuracy"] == 0.75


@pytest.mark.parametrize("method", ["student", "kd", "at", "sp", "fitnets", "vid", "dml", "textbrewer"])
def test_methods_train_without_knowing_the_task(method: str, carried_out: Callable[..., Any]) -> None:
    outcome, _, memory = carried_out(method)
    assert outcome.status == "done" and outcome.metric.name == "mIoU"
    assert 0 < outcome.headline("last", "test") <= 1 and outcome.headline("last", "test", "accuracy") > 0
    assert memory.epochs[-1].validation == outcome.headline("last", "validation")
    assert sum(map(sum, outcome.confusion)) == 12 * 32 * 32


def test_kd_is_the_mean_over_pixels(few: ImageSplits) -> None:
    student, teacher = (torch.randn(2, 11, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    by_pixel = [
        F.kl_div((student[b, :, y, x] / 2).log_softmax(0), (teacher[b, :, y, x] / 2).softmax(0), reduction="sum") * 4
        for b in range(2)
        for y in range(4)
        for x in range(4)
    ]
    value = kd_loss(decisions(student), decisions(teacher), 2.0)
    assert value.item() == pytest.approx(torch.stack(by_pixel).mean().item(), rel=1e-5)


@pytest.mark.parametrize("method", ["kd", "at"])
def test_answers_of_teachers_are_kept_by_sample_to_the_bit(method: str, carried_out: Callable[..., Any]) -> None:
    outcome, files, _ = carried_out(method)
    cache = TeacherCache(MemoryBackend(2**30))
    carried_out(method, cache)
    again, same, _ = carried_out(method, cache)
    assert same == files and again.scores == outcome.scores
    assert again.cost["teacher_cached"] == again.cost["teacher_forwards"] > 0


@pytest.mark.parametrize(
    ("method", "lacking"),
    [
        ("minilm", "class_targets and qkv"),
        ("noisy_student", "class_targets"),
        ("multi_exit", "class_targets"),
        ("at_grad", "input_grad"),
    ],
)
def test_a_method_is_refused_by_what_it_reads(method: str, lacking: str, carried_out: Callable[..., Any]) -> None:
    outcome, _, _ = carried_out(method)
    assert outcome.status == "unsupported"
    rest = "which the task segmentation does not have; it has features, pixels."
    assert outcome.reason == f"{method} reads {lacking}, {rest}"


def test_unknown_data_name_the_near_ones_of_the_task() -> None:
    with pytest.raises(InputError, match="data set of the task segmentation 'composed': did you mean composed-digits"):
        load(DATA.model_copy(update={"name": "composed"}), Path("/nonexistent"))
