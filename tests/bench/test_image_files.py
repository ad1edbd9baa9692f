from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pickle
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.io import write_jpeg, write_png
from torchvision.transforms.v2.functional import resize

import kdbench.bench.data.images
import kdbench.bench.training.engine
from kdbench.bench.data.augment import crop_boxes
from kdbench.bench.data.batches import Batch
from kdbench.bench.data.image_batches import ImageBatches
from kdbench.bench.data.image_files import MOST_WORKERS, FileBatches, ImageFiles, loader_workers
from kdbench.bench.data.images import FOLDER, ImageSplits, read
from kdbench.bench.data.splits import Part, Source, content
from kdbench.bench.errors import InputError
from kdbench.bench.seeds import generator
from kdbench.bench.spec import DataSpec
from kdbench.bench.tasks import load, task_of
from kdbench.methods.base import Data, Unsupported
from kdbench.methods.functional import with_unlabelled
from kdbench.methods.rows import Rows, count, join, split, take, whole
from tests.conftest import Memory
from tests.methods.options import SMALL, memory_of, spec_of

CPU = torch.device("cpu")
SIZE = 16
NAME = f"{FOLDER}insects"


def pictures(folder: Path, counts: dict[str, int]) -> None:
    """Smooth coloured noise of many shapes, JPEG and PNG."""
    draws = torch.Generator().manual_seed(0)
    for name, images in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(images):
            noise = torch.rand(1, 3, 5, 7, generator=draws) * 255
            shape = (SIZE + 5 * (number % 4), 40 - 3 * (number % 5))
            image = F.interpolate(noise, shape, mode="bilinear")[0].to(torch.uint8)
            if number % 2:
                write_png(image, str(folder / name / f"{number}.png"))
            else:
                write_jpeg(image, str(folder / name / f"{number}.jpg"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("home")
    pictures(path / "insects", {"ant": 20, "bee": 20, "cicada": 21})
    return path


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Folders of more than ten images do not fit into memory."""
    read.cache_clear()
    monkeypatch.setattr(kdbench.bench.data.images, "LARGEST_FOLDER", 10 * 3 * SIZE**2)
    yield
    read.cache_clear()


def in_memory(home: Path) -> Source:
    """The same folder, where it fits."""
    return read.__wrapped__(NAME, SIZE, home)


@pytest.fixture
def files(home: Path, streams: None) -> ImageFiles:
    images = read(NAME, SIZE, home).train.inputs
    assert isinstance(images, ImageFiles)
    return images


def pixels(images: Rows) -> Tensor:
    return torch.cat([whole(batch) for batch in split(images, 7)])


def drawn(files: ImageFiles, augment: str, number: int, workers: int = 0, seed: int = 3) -> list[Batch]:
    data = Data(files, torch.arange(len(files)) % 3, files.take(slice(0)), 3, augment)
    batches = ImageBatches(data, 8, 4, CPU)
    assert batches.files is not None
    batches.files = FileBatches(files, 8, batches.used, "resized-crop" in augment, CPU, workers)
    return list(batches.epoch(seed, number))


def equal(first: list[Batch], second: list[Batch]) -> bool:
    pairs = [pair for batches in zip(first, second, strict=True) for pair in zip(*batches, strict=True)]
    return all(torch.equal(one, other) for one, other in pairs)


def test_streamed_pixels_are_those_in_memory(home: Path, files: ImageFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kdbench.bench.data.images, "LARGEST_FOLDER", 2**30)
    source = in_memory(home)
    assert isinstance(source.train.inputs, Tensor) and files.shape == source.train.inputs.shape == (61, 3, SIZE, SIZE)
    assert torch.equal(pixels(files), source.train.inputs) and len(files) == 61
    assert [len(batch) for batch in files.split(25)] == [25, 25, 11]
    assert [tuple(batch.shape) for batch in files.take(slice(0)).split(25)] == [(0, 3, SIZE, SIZE)]


def test_streamed_splits_are_those_in_memory(home: Path, streams: None, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = DataSpec(name=NAME, image_size=SIZE, train_fraction=0.5, validation=0.2, test=0.2)
    streamed = load(spec, home)
    monkeypatch.setattr(kdbench.bench.data.images, "LARGEST_FOLDER", 2**30)
    read.cache_clear()
    held = load(spec, home)
    assert isinstance(streamed, ImageSplits) and isinstance(held, ImageSplits)
    assert (streamed.channels, streamed.size) == (3, SIZE) and isinstance(streamed.train.unlabelled, ImageFiles)
    for name in ("train", "validation", "test"):
        one, other = getattr(streamed, name), getattr(held, name)
        assert torch.equal(one.targets, other.targets) and torch.equal(pixels(one.inputs), other.inputs)
    assert torch.equal(pixels(streamed.train.unlabelled), held.train.unlabelled)
    assert streamed.mean == pytest.approx(held.mean, abs=1e-5)
    assert streamed.std == pytest.approx(held.std, rel=1e-3)


def test_mean_of_many_files_is_that_of_a_sample(home: Path, streams: None, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = DataSpec(name=NAME, image_size=SIZE)
    every = load(spec, home)
    monkeypatch.setattr(kdbench.bench.data.images, "SAMPLED", 20)
    sample = load(spec, home)
    assert sample.mean == load(spec, home).mean != every.mean and sample.mean == pytest.approx(every.mean, abs=0.05)


def test_a_train_part_that_streams_goes_with_a_test_part_that_fits(tmp_path: Path, streams: None) -> None:
    pictures(tmp_path / "insects" / "train", {"ant": 8, "bee": 8})
    pictures(tmp_path / "insects" / "val", {"ant": 2, "bee": 2})
    source = read(NAME, SIZE, tmp_path)
    assert isinstance(source.train.inputs, ImageFiles) and source.test and isinstance(source.test.inputs, Tensor)


def test_masks_indices_slices_and_joins_choose_the_same_images_as_of_a_tensor(files: ImageFiles) -> None:
    images, draws = pixels(files), torch.Generator().manual_seed(0)
    mask, indices = torch.rand(61, generator=draws) < 0.3, torch.randint(61, (50,), generator=draws)
    for chosen in (mask, indices, slice(3, 9), slice(0)):
        assert torch.equal(pixels(take(files, chosen)), images[chosen])
    joined = join([take(files, mask), take(files, slice(2)), files])
    assert isinstance(joined, ImageFiles) and torch.equal(pixels(joined), torch.cat([images[mask], images[:2], images]))
    assert torch.equal(pixels(pickle.loads(pickle.dumps(files))), images)


def test_unlabelled_files_join_the_labelled(home: Path, streams: None) -> None:
    data = load(DataSpec(name=NAME, image_size=SIZE, train_fraction=0.5), home).train
    both = with_unlabelled(data, cast(Any, None))
    assert isinstance(both.inputs, ImageFiles) and len(both.inputs) == count(both.targets)
    assert torch.equal(pixels(both.inputs), torch.cat([pixels(data.inputs), pixels(data.unlabelled)]))


def test_few_images_are_decoded_as_a_whole_and_many_refused(files: ImageFiles) -> None:
    few = files.take(slice(10))
    assert whole(few).dtype == torch.uint8 and torch.equal(whole(few), pixels(files)[:10])
    assert torch.equal(task_of("image").prepared(few, CPU), pixels(files)[:10] / 255)
    for many in (files, files.take(slice(11))):
        with pytest.raises(Unsupported, match="GiB of pixels at once.*--image-size"):
            whole(many)


def test_files_join_no_tensor_and_no_files_of_another_folder_or_size(files: ImageFiles, tmp_path: Path) -> None:
    larger = ImageFiles(files.root, files.entries, 2 * SIZE, files.limit)
    elsewhere = ImageFiles(tmp_path, files.entries, SIZE, files.limit)
    for others in ([larger], [elsewhere], [torch.zeros(1, 3, SIZE, SIZE)], [files, larger]):
        with pytest.raises(Unsupported, match="joined with those of one folder and size alone"):
            join([files, *others])


def test_fingerprint_follows_paths_sizes_labels_and_image_size_but_not_the_place(
    home: Path, tmp_path: Path, streams: None
) -> None:
    def fingerprint(size: int = SIZE) -> str:
        read.cache_clear()
        return read(NAME, size, tmp_path).fingerprint

    shutil.copytree(home / "insects", tmp_path / "insects", copy_function=shutil.copyfile)
    first = read(NAME, SIZE, home).fingerprint
    assert fingerprint() == first != fingerprint(24)
    bee = tmp_path / "insects" / "bee"
    (bee / "0.jpg").rename(bee / "000.jpg")
    second = fingerprint()
    write_png(torch.zeros(3, 30, 30, dtype=torch.uint8), str(bee / "1.png"))
    third = fingerprint()
    bee.rename(tmp_path / "insects" / "wasp")
    assert len({first, second, third, fingerprint()}) == 4


def test_stream_follows_the_state_of_the_files(home: Path, tmp_path: Path, streams: None) -> None:
    shutil.copytree(home / "insects", tmp_path / "insects")

    def state() -> str:
        read.cache_clear()
        images = read(NAME, SIZE, tmp_path).train.inputs
        assert content(images) != content(take(images, slice(-1)))
        return ImageBatches(Data(images, torch.zeros(61, dtype=torch.long), images, 3), 8, 4, CPU).stream

    first = state()
    assert state() == first
    os.utime(tmp_path / "insects" / "ant" / "0.jpg", (1, 1))
    assert state() != first


@pytest.mark.parametrize("augment", ["none", "crop+flip", "crop-reflect", "crop+flip+randaugment"])
def test_batches_of_files_are_those_of_the_same_images_in_memory(files: ImageFiles, augment: str) -> None:
    images = pixels(files)
    data = Data(images, torch.arange(61) % 3, images[:0], 3, augment)
    for steps in (4, 8):
        streamed = dataclasses.replace(data, inputs=files)
        batches = list(ImageBatches(data, 10, steps, CPU).epoch(3, 2))
        assert equal(list(ImageBatches(streamed, 10, steps, CPU).epoch(3, 2)), batches)
        assert [count(batch.targets) for batch in batches] == [10] * min(steps, 6)


@pytest.mark.parametrize("augment", ["none", "resized-crop+flip"])
def test_batches_do_not_depend_on_the_number_of_workers(files: ImageFiles, augment: str) -> None:
    here = drawn(files, augment, 1)
    assert equal(here, drawn(files, augment, 1, workers=2)) and equal(here, drawn(files, augment, 1, workers=1))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_does_not_depend_on_those_before_it_nor_moves_random_numbers(files: ImageFiles, workers: int) -> None:
    data = Data(files, torch.arange(61), files.take(slice(0)), 3, "resized-crop")
    batches = ImageBatches(data, 8, 4, CPU)
    batches.files = FileBatches(files, 8, batches.used, True, CPU, workers)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    one, two = (list(batches.epoch(3, number)) for number in (1, 2))
    next(batches.epoch(3, 7))
    three = list(batches.epoch(3, 3))
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert before[2] == np.random.get_state()[1].tolist()
    fresh = ImageBatches(data, 8, 4, CPU)
    assert equal(three, list(fresh.epoch(3, 3))) and not equal(three, one) and not equal(one, two)
    assert not equal(three, list(fresh.epoch(4, 3)))


def test_workers_refuse_two_epochs_at_a_time(files: ImageFiles) -> None:
    batches = FileBatches(files, 8, 32, False, CPU, 1)
    first, second = batches.epoch(torch.arange(32), 1), batches.epoch(torch.arange(32), 2)
    next(first)
    next(second)
    with pytest.raises(RuntimeError, match="one epoch at a time"):
        next(first)


def test_a_resized_crop_is_a_box_of_the_whole_file_by_its_own_seed(files: ImageFiles) -> None:
    order = torch.tensor([5, 40, 5])
    (batch,) = FileBatches(files, 3, 3, True, CPU, 0).epoch(order, 77)
    assert torch.equal(batch[0], batch[2])
    for place, made in zip(order.tolist(), batch, strict=True):
        image = files.decode(place)
        ((top, left, height, width),) = crop_boxes(1, *image.shape[1:], generator(77, "box", place)).tolist()
        box = image[:, top : top + height, left : left + width]
        assert torch.equal(made, resize(box, [SIZE, SIZE]))


def test_a_daemon_decodes_without_processes_of_its_own() -> None:
    assert 1 <= loader_workers() <= MOST_WORKERS
    with multiprocessing.get_context("spawn").Pool(1) as daemons:
        assert daemons.apply(loader_workers) == 0


def test_a_file_that_is_no_image_is_named(home: Path, tmp_path: Path, streams: None) -> None:
    shutil.copytree(home / "insects", tmp_path / "insects")
    (tmp_path / "insects" / "ant" / "1.png").write_bytes(b"no picture")
    images = read(NAME, SIZE, tmp_path).train.inputs
    assert isinstance(images, ImageFiles)
    with pytest.raises(InputError, match=r"ant/1.png cannot be decoded as an image"):
        pixels(images)
    with pytest.raises(InputError, match=r"ant/1.png cannot be decoded as an image"):
        list(FileBatches(images, 61, 61, False, CPU, 1).epoch(torch.arange(61), 0))


@pytest.fixture
def splits(home: Path, streams: None) -> ImageSplits:
    found = load(DataSpec(name=NAME, image_size=SIZE, validation=0.2, test=0.2), home)
    assert isinstance(found, ImageSplits)
    return found


@pytest.mark.parametrize("augment", ["none", "resized-crop+flip"])
def test_a_run_on_streamed_images_ends_well(splits: ImageSplits, augment: str) -> None:
    recipe = {"epochs": 2, "batch_size": 8, "augment": augment}
    spec = spec_of("student", SMALL, recipe=recipe)
    memory = Memory({})
    outcome, weights = kdbench.bench.training.engine.run(spec, splits, memory, CPU)
    assert outcome.status == "done", outcome.reason
    assert all(np.isfinite(list(epoch.losses.values())).all() for epoch in memory.epochs) and len(memory.epochs) == 2
    assert 0 <= outcome.scores["last"].part("test")["student"]["logits"]["accuracy"] <= 1 and "last" in weights


def held_out(splits: ImageSplits) -> dict[str, Part]:
    return {"validation": splits.validation, "test": splits.test}


def test_a_run_on_streamed_images_is_that_on_the_same_images_in_memory(splits: ImageSplits) -> None:
    spec = spec_of("student", SMALL, recipe={"batch_size": 8, "augment": "crop+flip"})
    train = dataclasses.replace(splits.train, inputs=pixels(splits.train.inputs))
    parts = {name: Part(pixels(part.inputs), part.targets) for name, part in held_out(splits).items()}
    in_memory = dataclasses.replace(splits, train=train, **parts)
    _, streamed = kdbench.bench.training.engine.run(spec, splits, Memory({}), CPU)
    _, expected = kdbench.bench.training.engine.run(spec, in_memory, Memory({}), CPU)
    assert streamed == expected


def test_a_method_that_needs_all_pixels_is_refused_with_the_reason(splits: ImageSplits) -> None:
    spec = spec_of("model_compression", SMALL, SMALL, recipe={"batch_size": 8})
    outcome, _ = kdbench.bench.training.engine.run(spec, splits, memory_of(spec, splits), CPU)
    assert outcome.status == "unsupported" and "do not fit into memory" in outcome.reason
