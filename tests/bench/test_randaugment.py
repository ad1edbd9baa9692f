"""RandAugment in batches is torchvision's RandAugment of each image, of which the public behaviour alone is used."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import RandAugment

from kdbench.bench.data.randaugment import AT_ONCE, OPERATIONS, applied, randaugment

KINDS = [
    (name, negative) for name, each in OPERATIONS.items() for negative in ((False, True) if each.signed else (False,))
]


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int = 20, size: int = 16, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, channels, size, size), generator=draws()).to(torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("magnitude", [1, 9, 30])
def test_every_operation_and_direction_is_torchvisions(magnitude: int, channels: int) -> None:
    """torchvision draws an operation, then, of those that have one, a direction."""
    image, transform, seen = noise(1, 17, channels)[0], RandAugment(num_ops=1, magnitude=magnitude), set()
    for seed in range(250):
        torch.manual_seed(seed)
        theirs = transform(image)
        torch.manual_seed(seed)
        name, operation = list(OPERATIONS.items())[int(torch.randint(len(OPERATIONS), ()))]
        negative = operation.signed and bool(torch.rand(()) <= 0.5)
        assert torch.equal(applied(operation, image[None], magnitude, negative)[0], theirs), (name, negative)
        seen.add((name, negative))
    assert seen == set(KINDS)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "negative"), KINDS)
def test_every_operation_treats_each_image_of_a_batch_by_itself(name: str, negative: bool, channels: int) -> None:
    images = noise(12, 17, channels)
    images[3], images[4], images[5] = 0, 255, 7
    for magnitude in (1, 9, 30):
        batched = applied(OPERATIONS[name], images, magnitude, negative)
        alone = [applied(OPERATIONS[name], image[None], magnitude, negative)[0] for image in images]
        assert torch.equal(batched, torch.stack(alone))


@pytest.mark.parametrize("size", [16, 300])
def test_randaugment_in_groups_is_randaugment_image_by_image(size: int) -> None:
    images = noise(20, size)
    assert size < 300 or images[:2].nbytes > AT_ONCE
    generator, expected = draws(5), list(images)
    for _ in range(2):
        drawn = torch.randint(len(OPERATIONS), (20,), generator=generator)
        negative = torch.rand(20, generator=generator) < 0.5
        for place in range(20):
            operation = list(OPERATIONS.values())[drawn[place]]
            expected[place] = applied(operation, expected[place], 9, operation.signed and bool(negative[place]))
    before = images.clone()
    assert torch.equal(randaugment(images, 9, draws(5)), torch.stack(expected)) and torch.equal(images, before)


def test_each_operation_and_direction_is_drawn_as_often_as_by_torchvision() -> None:
    image = noise(1, 24)
    count = 6000
    drawn = Counter(map(bytes, randaugment(image.expand(count, -1, -1, -1), 9, draws(), rounds=1).flatten(1).numpy()))
    expected: Counter[bytes] = Counter()
    for operation in OPERATIONS.values():
        for negative in (False, True):
            result = applied(operation, image, 9, negative and operation.signed)
            expected[result.numpy().tobytes()] += count / len(OPERATIONS) / 2  # type: ignore[assignment]
    assert set(drawn) == set(expected)
    chi_square = sum((drawn[key] - expected[key]) ** 2 / expected[key] for key in expected)
    assert chi_square < len(expected) + 4 * math.sqrt(2 * len(expected))
