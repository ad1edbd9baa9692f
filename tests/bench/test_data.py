from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.io import write_png

from kdbench.bench.data.batches import steps_per_epoch
from kdbench.bench.data.image_batches import ImageBatches
from kdbench.bench.data.images import DATASETS, FOLDER, ImageSplits, read
from kdbench.bench.data.splits import Part, Source, content
from kdbench.bench.errors import InputError
from kdbench.bench.spec import DataSpec
from kdbench.bench.tasks import load
from kdbench.methods.base import Data
from kdbench.methods.rows import count, whole

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
CPU = torch.device("cpu")
HERE = Path(".")


def digits(**changes: Any) -> ImageSplits:
    splits = load(DataSpec(name="digits", **changes), HERE)
    assert isinstance(splits, ImageSplits)
    return splits


def rows(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def make_data(count: int = 20, size: int = 8, augment: str = "none") -> Data:
    images = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0))
    return Data(images.to(torch.uint8), torch.arange(count) % 4, images[:0].to(torch.uint8), 4, augment)


def test_digits_split_is_disjoint_whole_and_stratified() -> None:
    splits = digits(validation=0.25, test=0.2, train_fraction=0.3)
    parts = [splits.train.inputs, splits.train.unlabelled, splits.validation.inputs, splits.test.inputs]
    assert [len(part) for part in parts] == [323, 754, 360, 360] and sum(map(len, parts)) == 1797
    assert len(set().union(*map(rows, parts))) == len(rows(torch.cat(parts)))
    assert sum(len(rows(part)) for part in parts) == len(rows(torch.cat(parts)))
    for labels in (splits.train.targets, splits.validation.targets, splits.test.targets):
        counts = labels.bincount(minlength=10)
        assert counts.max() - counts.min() <= 4


def test_split_is_seeded() -> None:
    first, same, other = digits(), digits(), digits(split_seed=1)
    assert torch.equal(first.validation.inputs, same.validation.inputs)
    assert not torch.equal(first.validation.inputs, other.validation.inputs)
    assert torch.equal(first.test.inputs, other.test.inputs)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_train_fraction_moves_neither_validation_nor_test(fraction: float) -> None:
    whole, part = digits(), digits(train_fraction=fraction)
    assert torch.equal(whole.validation.inputs, part.validation.inputs)
    assert torch.equal(whole.test.targets, part.test.targets)
    assert len(part.train.inputs) + len(part.train.unlabelled) == len(whole.train.inputs)


def test_statistics_are_those_of_the_labelled_images() -> None:
    splits = digits(train_fraction=0.2)
    pixels = splits.train.inputs.float() / 255
    assert splits.mean == pytest.approx((pixels.mean().item(),)) and splits.std == pytest.approx((pixels.std().item(),))


def test_changed_data_are_refused() -> None:
    fingerprint = read("digits", 0, HERE).fingerprint
    digits(fingerprint=fingerprint)
    with pytest.raises(InputError, match="the files have changed"):
        digits(fingerprint="0" * 16)


def test_fingerprint_of_the_digits_is_that_of_earlier_runs() -> None:
    assert read("digits", 0, HERE).fingerprint == "ebd3cb9a7ece3e05"


def test_fingerprint_changes_with_one_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    source = read("digits", 0, HERE)
    images = source.train.inputs.clone()
    images[5, 0, 3, 3] += 1
    parts = (Part(images, source.train.targets), None, source.classes)
    monkeypatch.setitem(DATASETS, "digits-changed", lambda _: parts)
    assert read("digits-changed", 0, HERE).fingerprint != source.fingerprint


def test_image_size_resizes() -> None:
    assert digits(image_size=16).train.inputs.shape[-2:] == (16, 16)


def test_unknown_names_list_the_near_ones() -> None:
    with pytest.raises(InputError, match="did you mean mnist"):
        read("mnis", 0, HERE)


def test_too_few_images_to_split_are_refused() -> None:
    with pytest.raises(InputError, match="cannot split .* for labelled"):
        digits(train_fraction=0.001)


def test_steps_leave_out_a_last_batch_of_one() -> None:
    assert [steps_per_epoch(count, 10) for count in (5, 10, 20, 21, 22)] == [1, 1, 2, 2, 3]


def test_no_augmentation_gives_pixels_over_255_each_once() -> None:
    data = make_data()
    batches = list(ImageBatches(data, 8, 3, CPU).epoch(seed=0, number=1))
    assert [len(labels) for _, labels, _ in batches] == [8, 8, 4]
    inputs = torch.cat([inputs for inputs, _, _ in batches])
    assert rows((inputs * 255).round().to(torch.uint8)) == rows(data.inputs) and inputs.max() <= 1


@pytest.mark.parametrize(
    "augment", ["none", "crop", "crop-reflect+flip", "crop+flip+randaugment", "resized-crop+flip+randaugment"]
)
def test_batches_depend_on_seed_and_epoch_alone(augment: str) -> None:
    data = make_data(augment=augment)

    def draw(seed: int, number: int) -> Tensor:
        return torch.cat([inputs for inputs, _, _ in ImageBatches(data, 8, 3, CPU).epoch(seed, number)])

    first = draw(0, 1)
    torch.manual_seed(99)
    assert torch.equal(first, draw(0, 1))
    assert not torch.equal(first, draw(0, 2)) and not torch.equal(first, draw(1, 1))


@pytest.mark.parametrize(("augment", "mode"), [("crop", "constant"), ("crop-reflect", "reflect")])
def test_crop_is_a_window_of_the_padded_image(augment: str, mode: str) -> None:
    data = make_data(size=16, augment=augment)
    padded = torch.nn.functional.pad(data.inputs.float(), [2] * 4, mode=mode)
    windows = padded.unfold(2, 16, 1).unfold(3, 16, 1).permute(0, 2, 3, 1, 4, 5).reshape(20, 25, -1)
    places = set()
    for number in range(1, 16):
        for inputs, _, _ in ImageBatches(data, 20, 1, CPU).epoch(0, number):
            for image in inputs * 255:
                matches = (windows - image.flatten()).abs().amax(dim=2) < 0.01
                assert matches.any()
                places.add(int(matches.nonzero()[0, 1]))
    assert places == set(range(25))


def test_flip_mirrors_about_half() -> None:
    data = make_data(count=200, augment="flip")
    plain, mirrored = rows(data.inputs), rows(data.inputs.flip(-1))
    (batch,) = [(inputs * 255).round().to(torch.uint8) for inputs, _, _ in ImageBatches(data, 200, 1, CPU).epoch(0, 1)]
    flipped = [image.numpy().tobytes() in mirrored for image in batch]
    assert all(image.numpy().tobytes() in plain | mirrored for image in batch)
    assert 70 < sum(flipped) < 130


def test_a_batch_of_one_which_batch_norm_cannot_take_is_never_drawn() -> None:
    assert [len(labels) for _, labels, _ in ImageBatches(make_data(count=9), 8, 4, CPU).epoch(0, 1)] == [8]


def test_labels_stay_with_their_images() -> None:
    data = make_data()
    where = {image.numpy().tobytes(): int(label) for image, label in zip(data.inputs, data.targets, strict=True)}
    for inputs, labels, _ in ImageBatches(data, 8, 3, CPU).epoch(0, 1):
        for image, label in zip((inputs * 255).round().to(torch.uint8), labels, strict=True):
            assert where[image.numpy().tobytes()] == label


def test_indices_say_which_images_these_are() -> None:
    data = make_data(count=40)
    for inputs, labels, indices in ImageBatches(data, 8, 3, CPU).epoch(0, 1):
        assert indices.dtype == torch.int64 and torch.equal(labels, data.targets[indices])
        assert torch.equal((inputs * 255).round().to(torch.uint8), data.inputs[indices])


def test_stream_names_all_that_batches_show_but_targets() -> None:
    data = make_data(augment="crop")
    pixel = data.inputs.clone()
    pixel[7, 2, 3, 3] += 1
    changes: list[dict[str, Any]] = [
        {},
        {"inputs": pixel},
        {"inputs": data.inputs.flip(0)},
        {"augment": "crop+flip"},
        {"magnitude": 10},
    ]
    streams = [ImageBatches(dataclasses.replace(data, **change), 8, 3, CPU).stream for change in changes]
    streams += [ImageBatches(data, 4, 3, CPU).stream, ImageBatches(data, 8, 2, CPU).stream]
    assert len(set(streams)) == 7 and all(re.fullmatch("[0-9a-f]{16}", stream) for stream in streams)
    relabelled = dataclasses.replace(data, targets=data.targets.flip(0), inputs=data.inputs.clone())
    assert ImageBatches(relabelled, 8, 3, CPU).stream == streams[0]


def test_content_is_that_of_the_pixels_wherever_they_lie() -> None:
    images = make_data().inputs
    assert content(images) == content(images.clone()) == content(images.permute(1, 0, 2, 3).clone().permute(1, 0, 2, 3))
    assert content(images) != content(images[:-1]) and len(content(images[:0])) == 32


@pytest.mark.parametrize(("augment", "fixed"), [("none", True), ("flip", False), ("resized-crop", False)])
def test_batches_are_fixed_without_augmentation(augment: str, fixed: bool) -> None:
    assert ImageBatches(make_data(augment=augment), 8, 3, CPU).fixed is fixed


def test_extended_data_keep_the_number_of_batches() -> None:
    assert len(list(ImageBatches(make_data(count=200), 8, 3, CPU).epoch(0, 1))) == 3


def pictures(folder: Path, count: int) -> None:
    for index, name in enumerate(("ant", "bee")):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = torch.full((3, 20 + number, 30), 40 * index + number, dtype=torch.uint8)
            write_png(image, str(folder / name / f"{number}.png"))


def test_folder_of_images_is_read_in_both_layouts(tmp_path: Path) -> None:
    pictures(tmp_path / "flat", 5)
    source = read(f"{FOLDER}flat", 16, tmp_path)
    assert source.train.inputs.shape == (10, 3, 16, 16) and source.test is None and source.classes == ("ant", "bee")
    pictures(tmp_path / "split" / "train", 3)
    pictures(tmp_path / "split" / "val", 2)
    source = read(f"{FOLDER}split", 16, tmp_path)
    assert len(source.train.targets) == 6 and source.test is not None and source.test.targets.tolist() == [0, 0, 1, 1]


def test_folder_with_a_train_part_alone_keeps_its_classes(tmp_path: Path) -> None:
    pictures(tmp_path / "half" / "train", 3)
    source = read(f"{FOLDER}half", 16, tmp_path)
    assert source.classes == ("ant", "bee") and source.test is None


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        read(f"{FOLDER}nothing", 16, tmp_path)
    pictures(tmp_path / "flat", 2)
    with pytest.raises(InputError, match="give --image-size"):
        read(f"{FOLDER}flat", 0, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="does not hold one folder of images a class"):
        read(f"{FOLDER}empty", 16, tmp_path)
    (tmp_path / "flat" / "ant" / "1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"ant/1.png cannot be decoded as an image") as error:
        read(f"{FOLDER}flat", 8, tmp_path)
    assert "\n" not in str(error.value)


def test_missing_files_say_where_they_go(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cifar10-jpeg/train.parquet.*--data-dir"):
        read("cifar10-jpeg", 0, tmp_path)


def shared(name: str, folder: str) -> Source:
    if not (SHARED / folder).is_dir():
        pytest.skip(f"no {SHARED / folder}")
    return read(name, 0, SHARED)


def test_mnist_is_read_from_torchvisions_layout() -> None:
    source = shared("mnist", "MNIST")
    assert source.train.inputs.shape == (60_000, 1, 28, 28) and source.test is not None
    assert source.test.inputs.shape == (10_000, 1, 28, 28)
    assert source.train.targets.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def test_cifar10_jpeg_is_read_from_parquet() -> None:
    source = shared("cifar10-jpeg", "cifar10-jpeg")
    assert source.train.inputs.shape == (50_000, 3, 32, 32) and source.classes[0] == "airplane"
    assert source.train.targets.bincount().tolist() == [5000] * 10
    mean = source.train.inputs.float().mean(dim=(0, 2, 3)) / 255
    torch.testing.assert_close(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=2e-3, rtol=0)


def test_a_folders_own_parts_are_what_they_are_called(tmp_path: Path) -> None:
    for part, counts in {"train": (8, 9), "val": (2, 3), "test": (4, 5)}.items():
        for name, images in zip(("cat", "dog"), counts, strict=True):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            for number in range(images):
                image = torch.full((3, 8, 8), 10 * len(part) + number, dtype=torch.uint8)
                write_png(image, str(tmp_path / "pets" / part / name / f"{number}.png"))
    spec = DataSpec(name="folder:pets", image_size=8)
    splits = load(spec, tmp_path)
    assert [count(part.inputs) for part in (splits.train, splits.validation, splits.test)] == [17, 5, 9]
    assert whole(splits.validation.inputs)[:, 0, 0, 0].tolist() == [30, 31, 30, 31, 32]
    other = load(spec.model_copy(update={"split_seed": 7}), tmp_path)
    assert torch.equal(whole(other.validation.inputs), whole(splits.validation.inputs))
    before = read("folder:pets", 8, tmp_path).fingerprint
    shutil.rmtree(tmp_path / "pets" / "test")
    read.cache_clear()
    splits = load(spec, tmp_path)  # as ImageNet has it: what is held out alone is the test part
    assert count(splits.test.inputs) == 5 and read("folder:pets", 8, tmp_path).fingerprint != before
