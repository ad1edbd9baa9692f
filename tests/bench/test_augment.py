from __future__ import annotations

import hashlib
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import resized_crop as torchvision_resized_crop

from kdbench.bench.data.augment import (
    AUGMENTATIONS,
    RATIO,
    Augment,
    check_augment,
    crop_boxes,
    resized_crop,
)
from kdbench.bench.data.image_batches import ImageBatches
from kdbench.bench.errors import InputError
from kdbench.methods.base import Data

CPU = torch.device("cpu")


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int = 20, size: int = 16, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, channels, size, size), generator=draws()).to(torch.uint8)


def test_unknown_names_list_the_near_ones() -> None:
    assert check_augment("crop+flip") == ("crop", "flip")
    with pytest.raises(InputError, match="did you mean flip"):
        check_augment("crop+flop")


@pytest.mark.parametrize(
    ("augment", "recorded"),
    [
        ("none", "651943f6d5af1fb9"),
        ("crop", "f2776fa51f7bf73b"),
        ("crop-reflect", "19b95e33977a40ba"),
        ("flip", "eb42755036a41e59"),
        ("crop+flip", "7cc8d1e903086333"),
        ("crop-reflect+flip", "8c067e778b15d461"),
    ],
)
def test_crops_and_flips_are_bitwise_those_of_earlier_runs(augment: str, recorded: str) -> None:
    digest, images = hashlib.sha256(), noise()
    batches = ImageBatches(Data(images, torch.arange(20) % 4, images[:0], 4, augment), 8, 3, CPU)
    for number in (1, 2):
        for inputs, labels, _ in batches.epoch(3, number):
            digest.update(inputs.contiguous().numpy().tobytes() + labels.numpy().tobytes())
    assert digest.hexdigest()[:16] == recorded


@pytest.mark.parametrize("kind", ["crop", "crop-reflect"])
def test_a_crop_takes_the_padding_that_it_is_told(kind: str) -> None:
    images = noise()
    assert torch.equal(Augment((f"{kind}:2",), 0, 3, 1)(images), Augment((kind,), 0, 3, 1)(images))  # an eighth of 16
    moved = Augment((f"{kind}:1",), 0, 3, 1)(images)
    padded = F.pad(images.float(), [1] * 4, mode="reflect" if kind == "crop-reflect" else "constant").byte()
    windows = torch.stack([padded[:, :, y : y + 16, x : x + 16] for y in range(3) for x in range(3)])
    which = (windows == moved).flatten(2).all(dim=2)
    assert which.any(dim=0).all()
    assert which.any(dim=1).sum() > 4


@pytest.mark.parametrize("augment", ["crop:0", "crop:", "crop:-1", "crop:two", "flip:2"])
def test_a_padding_is_a_whole_number_of_pixels_of_a_crop(augment: str) -> None:
    with pytest.raises(InputError, match="take pixels, at least 1, as crop:2"):
        check_augment(augment)


@pytest.mark.parametrize("augment", ["crop+crop-reflect", "crop:2+flip+crop:2"])
def test_two_crops_are_refused(augment: str) -> None:
    with pytest.raises(InputError, match=r"a recipe has one crop, not 2: leave crop(:2)? alone"):
        check_augment(augment)


def test_images_are_mirrored_by_fewer_pixels_than_they_have() -> None:
    def batches(augment: str) -> ImageBatches:
        return ImageBatches(Data(noise(), torch.zeros(20).long(), noise()[:0], 4, augment), 8, 3, CPU)

    moved = Augment(("crop-reflect:15",), 0, 3, 1)(noise())
    padded = F.pad(noise().float(), [15] * 4, mode="reflect").byte()
    assert any(torch.equal(moved[0], padded[0, :, y : y + 16, x : x + 16]) for y in range(31) for x in range(31))
    for augment in ("crop-reflect:15", "crop-reflect", "crop:16"):
        batches(augment)
    with pytest.raises(InputError, match="crop-reflect:16: images of 16x16 can be mirrored by at most 15 pixels; give"):
        batches("crop-reflect:16+flip")


def test_augmentations_are_applied_in_the_order_in_which_they_are_listed() -> None:
    names = ("randaugment", "flip", "crop", "resized-crop")
    listed = tuple(sorted(names, key=AUGMENTATIONS.index))
    assert torch.equal(Augment(names, 9, 3, 1)(noise()), Augment(listed, 9, 3, 1)(noise()))
    images, one = noise(), Augment(listed, 9, 3, 1)
    for name in listed:
        step = Augment((name,), 9, 3, 1)
        step.views = one.views
        images = step(images)
    assert torch.equal(images, Augment(listed, 9, 3, 1)(noise()))


def test_another_augmentation_moves_no_draw_of_crop_and_flip() -> None:
    names = ("crop", "flip")
    plain, strong = Augment(names, 0, 0, 1), Augment((*names, "randaugment"), 0, 0, 1)
    for _ in range(2):
        plain(noise())
        strong(noise())
    assert torch.equal(plain.views.get_state(), strong.views.get_state())


def test_resized_crop_is_torchvisions_of_each_image() -> None:
    images = noise(30, 32)
    for image, box, made in zip(images, crop_boxes(30, 32, 32, draws(3)), resized_crop(images, draws(3)), strict=True):
        exact = torchvision_resized_crop(image.float(), *box.tolist(), size=[32, 32], antialias=False)
        assert (made.float() - exact).abs().max() < 0.501


@pytest.mark.parametrize(("height", "width"), [(32, 32), (375, 500), (40, 200), (200, 40)])
def test_boxes_lie_within_and_are_distributed_as_timms(height: int, width: int) -> None:
    from timm.data.transforms import RandomResizedCropAndInterpolation

    boxes = crop_boxes(4000, height, width, draws()).double()
    top, left, rows, columns = boxes.unbind(dim=1)
    assert min(top.min(), left.min()) >= 0 and min(rows.min(), columns.min()) >= 1
    assert (top + rows).max() <= height and (left + columns).max() <= width
    assert (columns / rows).log().abs().max() < math.log(RATIO[1]) + 2 / rows.min()
    blank = torch.zeros(3, height, width)
    random.seed(0)
    get_params = RandomResizedCropAndInterpolation.get_params
    theirs = torch.tensor([get_params(blank, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)]).double()
    spread = theirs.std(dim=0) * math.sqrt(2 / 4000)
    assert ((boxes.mean(dim=0) - theirs.mean(dim=0)).abs() < 5 * spread + 1e-9).all()
    torch.testing.assert_close(boxes.std(dim=0), theirs.std(dim=0), rtol=0.1, atol=1e-9)


def test_box_that_fits_nowhere_is_the_largest_central_one() -> None:
    assert crop_boxes(1, 10, 1000, draws()).tolist() == [[0, 493, 10, 13]]
    assert crop_boxes(1, 1000, 10, draws()).tolist() == [[493, 0, 13, 10]]


@pytest.mark.parametrize("names", [(name,) for name in AUGMENTATIONS] + [("crop-reflect", "flip")], ids="+".join)
@pytest.mark.parametrize("channels", [1, 3])
def test_augmented_images_lie_in_memory_as_they_are_indexed(names: tuple[str, ...], channels: int) -> None:
    """Grey images of other strides pass for channels_last, in which convolutions give other bits or crash."""
    augmented = Augment(names, 9, 3, 1)(noise(channels=channels))
    assert augmented.stride() == (channels * 256, 256, 16, 1)


@pytest.mark.slow
def test_a_process_that_trains_on_mirrored_grey_images_does_not_crash() -> None:
    """See `kdbench.bench.networks.network.corrupted_by_channels_last`; a crash here would be that of all tests."""
    code = """if True:
        from pathlib import Path
        from kdbench.bench.tasks import load
        from tests.conftest import DATA, Memory
        from tests.harness import OpenRun
        from tests.methods.options import LARGE, SMALL, spec_of
        digits = load(DATA, Path("/nonexistent"))
        for model in (SMALL, LARGE):
            spec = spec_of("student", model, recipe={"epochs": 3, "augment": "crop-reflect"})
            run = OpenRun(spec, digits, Memory({}))
            for _ in run.updates():
                gradients = [weight.grad for weight in run.students[0].network.parameters() if weight.dim() == 4]
                assert len(gradients) > 5 and all(each.isfinite().all() and each.any() for each in gradients)
            assert len(run.recorder.epochs) == 3
    """
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=120)
