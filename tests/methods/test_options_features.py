"""Methods on features and their options against what their authors' programs compute, written out slowly."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.configure import configure
from bench.data.splits import Splits
from methods.base import Signals, features_of
from methods.fitnets import resizing_regressor
from methods.functional import kd_loss
from tests.methods.options import CNN, signals, spec_of, started, step_of, values


def maps(seed: int, channels: int, size: int) -> Tensor:
    return torch.randn(4, channels, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("progress", "lam"), [(0.0, 4.0), (0.5, 2.5), (1.0, 1.0)])
def test_fitnets_soft_loss_has_the_gradient_of_the_authors_softened_cross_entropy(progress: float, lam: float) -> None:
    """Equation 2: H(y, P_S) + lambda H(P_T^tau, P_S^tau), without tau^2, lambda from 4 to 1 and tau = 3."""
    student, teacher = signals(0).logits.requires_grad_(), signals(1).logits
    step = dataclasses.replace(step_of(Signals(student), Signals(teacher)), progress=progress)
    method: Any = configure("fitnets", {})
    losses = method.distill(step)
    soft = -((teacher / 3).softmax(dim=1) * (student / 3).log_softmax(dim=1)).sum(dim=1).mean()
    (expected,) = torch.autograd.grad(lam * soft, student, retain_graph=True)
    (found,) = torch.autograd.grad(losses["kd"], student, retain_graph=True)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(losses["ce"], F.cross_entropy(student, step.targets))


def test_fitnets_weights_in_play_are_those_of_the_stages_it_has() -> None:
    assert configure("fitnets", {}).loss_weights() == {"weight": ("kd",)}
    assert configure("fitnets", {"one_stage": True}).loss_weights() == {"hint_weight": ("hint",)}
    assert "weight" not in type(configure("fitnets", {})).space()


@pytest.mark.parametrize(
    ("mine", "theirs", "layer", "kernel"),
    [(8, 4, nn.Conv2d, 3), (4, 8, nn.ConvTranspose2d, 4), (8, 8, nn.Conv2d, 1), (8, 2, nn.Conv2d, 1)],
)
def test_fitnets_one_stage_regressor_is_the_programs(mine: int, theirs: int, layer: type, kernel: int) -> None:
    guided, hint = maps(0, 3, mine), maps(1, 5, theirs)
    first, norm, relu = resizing_regressor(guided, hint)  # type: ignore[misc]
    assert type(first) is layer and first.kernel_size == (kernel, kernel) and first.bias is not None
    assert isinstance(norm, nn.BatchNorm2d) and norm.num_features == 5 and isinstance(relu, nn.ReLU)
    if theirs in (mine // 2, mine, 2 * mine):
        assert first(guided).shape == hint.shape


@pytest.mark.parametrize("sizes", [(8, 8), (8, 4), (4, 8), (8, 2)])
def test_fitnets_one_stage_hint_is_the_mean_squared_difference(sizes: tuple[int, int]) -> None:
    mine, theirs = (Signals(signals(i).logits[:4], (maps(i, 3 + 2 * i, size),)) for i, size in enumerate(sizes))
    method: Any = configure("fitnets", {"one_stage": True, "hint_weight": 50.0})
    auxiliary = method.auxiliary_modules(mine, (theirs,))
    step = dataclasses.replace(step_of(mine, theirs), auxiliary=copy.deepcopy(auxiliary))
    guided, hint = features_of(mine)[0], features_of(theirs)[0]
    guided = F.avg_pool2d(guided, 4) if sizes == (8, 2) else guided
    regressed = auxiliary["regressor"](guided)
    assert not (regressed < 0).any()
    losses = method.joint(step)
    torch.testing.assert_close(losses["hint"], 50 * (regressed - hint).square().mean())
