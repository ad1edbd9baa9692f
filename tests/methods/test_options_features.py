"""Methods on features and their options against what their authors' programs compute, written out slowly."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.bench.configure import configure
from kdbench.methods.base import Signals, features_of
from kdbench.methods.fitnets import resizing_regressor
from kdbench.methods.functional import kd_loss
from tests.methods.options import signals, step_of


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
    assert set(configure("fitnets", {}).space()) == {"temperature", "hint_epochs"}
    assert not configure("fitnets", {"one_stage": True}).space()


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


def with_modules(method: Any, mine: Signals, theirs: Signals) -> Any:
    return dataclasses.replace(step_of(mine, theirs), auxiliary=method.auxiliary_modules(mine, (theirs,)))


@pytest.mark.parametrize(("head", "kinds"), [("tian", "conv relu conv relu conv"), ("authors", "conv conv")])
def test_vid_heads_are_the_programs_and_have_no_biases(head: str, kinds: str) -> None:
    method: Any = configure("vid", {"head": head})
    modules = method.auxiliary_modules(signals(0, 2, 3, 4, 5), (signals(1, 6, 7, 8, 9),))
    names = {nn.Conv2d: "conv", nn.ReLU: "relu"}
    for index, (mine, theirs) in enumerate([(3, 7), (4, 8), (5, 9)]):
        layers = list(modules[f"head_{index}"].mean)
        assert " ".join(names[type(layer)] for layer in layers) == kinds
        convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
        assert all(each.bias is None and each.kernel_size == (1, 1) for each in convolutions)
        widths = [(each.in_channels, each.out_channels) for each in convolutions]
        assert widths == [(mine, theirs)] + [(theirs, theirs)] * (len(convolutions) - 1)
    assert set(modules) == {"head_0", "head_1", "head_2"}


def test_vid_as_the_authors_program_has_it() -> None:
    """Cross-entropy + 0.1 times the sum over layers of a mean likelihood + T^2 KL at T = 2."""
    params = {"head": "authors", "weight": 0.1, "kd_weight": 1.0, "temperature": 2.0, "variance": 5.0134}
    method: Any = configure("vid", {**params, "depths": [0.0, 0.33, 0.67, 1.0]})
    mine, theirs = signals(0, 2, 3, 4, 5), signals(1, 6, 7, 8, 9)
    step = with_modules(method, mine, theirs)
    losses = method.loss(step)
    assert set(losses) == {"ce", "vid", "kd"}
    total = torch.zeros(())
    for index, (student, teacher) in enumerate(zip(features_of(mine), features_of(theirs), strict=True)):
        first, second = (each.weight.flatten(1) for each in step.auxiliary[f"head_{index}"].mean)
        mean = torch.einsum("oi,bihw->bohw", second @ first, student)
        variance = torch.tensor(5.0134)
        total = total + (0.5 * ((mean - teacher) ** 2 / variance + variance.log())).mean()
    torch.testing.assert_close(losses["vid"], 0.1 * total)
    torch.testing.assert_close(losses["kd"], kd_loss(mine.logits, theirs.logits, 2.0))


def test_vid_reads_the_pooled_output_and_weighs_its_term_only_where_logits_have_one() -> None:
    plain, logits = configure("vid", {}), configure("vid", {"logit_weight": 1.0})
    assert plain.needed() == {"features"} and logits.needed() == {"features", "pooled"}
    assert plain.loss_weights() == {"weight": ("vid",)} and logits.loss_weights() == {"weight": ("vid", "vid_logits")}


def test_fsp_as_tians_program_has_it() -> None:
    """The sum over consecutive maps of the mean squared difference of products averaged over positions."""
    mine, theirs = (
        Signals(signals(i).logits[:4], (maps(i, 2, 8), maps(i + 2, 3, 4), maps(i + 4, 5, 2))) for i in (0, 1)
    )
    method: Any = configure("fsp", {"weight": 1.0, "reduce": "sum", "pool": "avg", "depths": [0.0, 0.5, 1.0]})
    total = torch.zeros(())
    for first in (0, 1):
        matrices = []
        for side in (mine, theirs):
            small = features_of(side)[first + 1]
            large = F.avg_pool2d(features_of(side)[first], 2)
            matrices.append((large.unsqueeze(1) * small.unsqueeze(2)).mean(dim=(3, 4)))
        total = total + (matrices[0] - matrices[1]).square().mean()
    step = with_modules(method, mine, theirs)
    assert not step.auxiliary
    torch.testing.assert_close(method.flow(step)["fsp"], total)
    halved: Any = configure("fsp", {"pool": "avg", "depths": [0.0, 0.5, 1.0]})
    torch.testing.assert_close(halved.flow(step)["fsp"], total / 2)


def test_fsp_searches_how_long_its_first_stage_is() -> None:
    assert set(configure("fsp", {}).space()) == {"fsp_epochs"} and not configure("fsp", {"one_stage": True}).space()
    assert configure("fsp", {}).loss_weights() == {"weight": ("fsp",)}


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("at", {"beta": (1000.0, ("at",))}),
        ("sp", {"weight": (3000.0, ("sp",))}),
        ("fitnets", {"weight": (4 / 9, ("kd",))}),
        ("fsp", {"weight": (1.0, ("fsp",))}),
        ("vid", {"weight": (1.0, ("vid",))}),
        ("tinybert", {"attention_weight": (1.0, ("attention",)), "hidden_weight": (1.0, ("hidden", "embedding"))}),
        ("distilbert", {"soft_weight": (5.0, ("kd",)), "cosine_weight": (1.0, ("cosine",))}),
    ],
)
def test_weights_of_terms_start_at_the_papers_and_have_no_range(name: str, weights: dict[str, Any]) -> None:
    method = configure(name, {})
    own = method.hyperparameters()
    assert {field: (own[field], terms) for field, terms in method.loss_weights().items()} == weights
    assert not set(weights) & set(method.space())
