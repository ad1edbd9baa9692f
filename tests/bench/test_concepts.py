"""Entropies of linear features against their closed form; counts, distances and detours by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from kdbench.bench.data.splits import Splits
from kdbench.bench.evaluation.concepts import (
    Concepts,
    Feature,
    centre,
    concepts,
    discarded,
    ink,
    learning_speed,
    pixel_entropies,
    ratio,
    stage_feature,
)
from kdbench.bench.networks.build import build
from kdbench.bench.networks.network import Network
from kdbench.bench.spec import ModelSpec
from kdbench.methods.base import Unsupported

CONSTANT = 0.5 * math.log(2 * math.pi * math.e)


def scaled(weights: Tensor) -> Feature:
    """f(x) = w x, pixel by pixel."""
    return lambda images: images * weights


def test_entropies_of_a_linear_feature_are_those_of_its_closed_form() -> None:
    """With |g_i| = |w_i| the loss is sum_i w_i^2 sigma_i^2 / sum_j w_j^2 - (beta / n) sum_i log sigma_i.

    Its derivative by sigma_i vanishes at sigma_i^2 = (beta / 2) mean_j w_j^2 / w_i^2 = noise^2 mean_j w_j^2 / w_i^2.
    """
    weights = torch.tensor([[1.0, 2.0, 4.0], [0.5, 1.0, 3.0], [2.0, 1.0, 0.7]])
    noise = 0.05
    sigma = noise * weights.square().mean().sqrt() / weights
    entropies = pixel_entropies(scaled(weights), torch.rand(4, 1, 3, 3), noise, steps=400, samples=16)
    assert entropies.shape == (4, 3, 3)
    assert torch.allclose(entropies.mean(dim=0), sigma.log() + CONSTANT, atol=0.1)
    doubled = (entropies[:, 0, 0] - entropies[:, 0, 1]).mean()
    assert float(doubled) == pytest.approx(math.log(2), abs=0.1)


def test_entropies_do_not_depend_on_the_scale_of_the_feature() -> None:
    weights, images = torch.rand(4, 4) + 0.5, torch.rand(2, 3, 4, 4)
    small = pixel_entropies(scaled(weights), images, steps=50)
    large = pixel_entropies(scaled(1000 * weights), images, steps=50)
    assert torch.allclose(small, large, atol=1e-3)


def test_a_pixel_that_the_feature_ignores_is_no_concept() -> None:
    weights = torch.ones(4, 4)
    weights[1, 1] = 0
    weights[2, 2] = 5
    entropies = pixel_entropies(scaled(weights), torch.rand(2, 1, 4, 4), steps=200)
    inner = torch.zeros(2, 4, 4, dtype=torch.bool)
    inner[:, 1:3, 1:3] = True
    assert torch.allclose(entropies[:, 1, 1], torch.tensor(CONSTANT), atol=0.1), "the widest noise: a whole range"
    found = concepts(entropies, inner, threshold=0.5)
    assert found.foreground.nonzero().tolist() == [[0, 2, 2], [1, 2, 2]]
    assert not found.background.any()


def test_entropies_of_a_feature_that_ignores_everything_are_finite_and_equal() -> None:
    entropies = pixel_entropies(lambda images: images * 0, torch.rand(2, 1, 3, 3), steps=30)
    assert entropies.isfinite().all() and entropies.std() < 1e-6


def test_entropies_depend_on_the_seed_alone() -> None:
    images = torch.rand(2, 1, 4, 4)
    before = torch.get_rng_state()
    first, second, other = (pixel_entropies(torch.relu, images, steps=20, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state()), "the global random state is left alone"


def test_concepts_are_counted_by_hand() -> None:
    entropies = torch.tensor([[[3.0, 2.0], [1.0, 3.4]], [[0.0, 0.0], [5.0, 9.0]]])
    foreground = torch.tensor([[[False, True], [True, False]], [[True, True], [True, True]]])
    found = concepts(entropies, foreground, threshold=1.5)  # the background's mean is 3.2 in the first image
    assert found.foreground.tolist() == [[[False, False], [True, False]], [[False, False], [False, False]]]
    assert not found.background.any()
    beside = concepts(torch.tensor([[[0.5, 4.0], [3.0, 4.5]]]), foreground[:1], threshold=1.5)
    assert not beside.foreground.any()  # the mean is 2.5: of 0.5 and 4.5
    assert beside.background.tolist() == [[[True, False], [False, False]]]
    everything = concepts(entropies[1:], foreground[1:], threshold=0.1)
    assert not everything.foreground.any(), "without a background nothing is below it"


def test_ratio_is_the_mean_over_images_with_concepts() -> None:
    def image(*on: int) -> Tensor:
        mask = torch.zeros(4, dtype=torch.bool)
        mask[list(on)] = True
        return mask.view(2, 2)

    found = Concepts(torch.stack([image(0, 1, 2), image(), image()]), torch.stack([image(3), image(0), image()]))
    assert ratio(found) == pytest.approx((3 / 4 + 0) / 2)
    assert ratio(Concepts(*(mask[2:] for mask in found))) is None


def test_learning_speed_by_hand() -> None:
    weights = [
        [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])],  # norm 5
        [torch.tensor([3.0, 0.0]), torch.tensor([[9.0]])],  # 5 on
        [torch.tensor([3.0, 10.0]), torch.tensor([[9.0]])],  # 10 on
        [torch.tensor([3.0, 10.0]), torch.tensor([[9.5]])],  # 0.5 on
    ]
    counts = torch.tensor([[1, 0, 2, 0], [5, 1, 1, 0], [5, 4, 0, 0]])
    mean, std = learning_speed(counts, weights)
    distances = [3.0, 3.1, 1.0]  # the first of equal maxima; the last image never has a concept
    expected = sum(distances) / 3
    assert mean == pytest.approx(expected)
    assert std == pytest.approx(math.sqrt(sum((value - expected) ** 2 for value in distances) / 3))
    assert learning_speed(torch.zeros(3, 2), weights) == (None, None)


def test_discarded_by_hand() -> None:
    snapshots = torch.zeros(3, 3, 1, 4, dtype=torch.bool)
    snapshots[0, 0, 0, :2] = True  # the first image: 0 and 1, then 1 and 2, at last 2 alone: 2 of 3 are lost
    snapshots[1, 0, 0, 1:3] = True
    snapshots[2, 0, 0, 2] = True
    snapshots[:, 1, 0, 3] = True  # the second keeps what it has; the third never has any
    assert discarded(snapshots) == pytest.approx((2 / 3 + 0) / 2)
    assert discarded(snapshots[:, 2:]) is None


def test_ink_is_above_otsus_threshold() -> None:
    image = torch.tensor([[10, 12, 11, 200], [9, 210, 190, 10], [12, 11, 205, 10], [10, 60, 9, 11]], dtype=torch.uint8)
    images = torch.stack([image, torch.full((4, 4), 7, dtype=torch.uint8)]).unsqueeze(1)
    expected = torch.tensor([[0, 0, 0, 1], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    assert torch.equal(ink(images)[0], expected)
    assert not ink(images)[1].any(), "an image of one grey has no ink"


def test_centre_is_about_half_of_the_area() -> None:
    mask = centre(torch.zeros(2, 3, 32, 32))
    assert mask.shape == (2, 32, 32)
    assert float(mask.float().mean()) == pytest.approx(0.5, abs=0.05)
    assert torch.equal(mask, mask.flip(1)) and torch.equal(mask, mask.flip(2)) and bool(mask[0, 16, 16])


@pytest.mark.parametrize(("depth", "stage", "size"), [(0.0, 1, 8), (0.5, 3, 4), (1.0, 4, 2)])
def test_stage_feature_taps_the_stage_at_a_depth(digits: Splits, depth: float, stage: int, size: int) -> None:
    network = build(ModelSpec(name="cifar_resnet8_quarter"), digits)
    feature, number, count = stage_feature(network, depth)
    images = torch.rand(2, 1, 8, 8, requires_grad=True)
    values = feature(images)
    assert (number, count) == (stage, 4) and values.shape[2:] == (size, size)
    (grad,) = torch.autograd.grad(values.sum(), images)
    assert grad.abs().sum() > 0 and not network.training


def test_stage_feature_refuses_a_network_without_stages() -> None:
    with pytest.raises(Unsupported, match="Linear has no stages"):
        stage_feature(Network(nn.Linear(1, 1), (0.0,), (1.0,), 0), 0.5)
