"""Contrastive distillation: its loss against loops and by hand, its negatives, and its banks in training."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.bench.configure import configure
from kdbench.bench.data.splits import Splits
from kdbench.methods import crd
from kdbench.methods.base import Data, Signals, Unsupported
from kdbench.methods.crd import Banks, crd_loss, log_contrast
from tests.methods.losses import draw
from tests.methods.modern import LABELS, gradient
from tests.methods.options import CNN, carried_out, spec_of, started

CLASSES = torch.tensor([2, 0, 1, 0, 2, 2, 0, 1])
"""Of eight images."""


def loop_crd(scores: Tensor, samples: int) -> float:
    total, c = 0.0, (scores.shape[1] - 1) / samples
    for own, *others in scores.tolist():
        total += math.log(own / (own + c + 1e-7)) + sum(math.log(c / (other + c + 1e-7)) for other in others)
    return -total / len(scores)


def test_loss_equals_the_loop_and_passes_gradcheck() -> None:
    scores = draw(5, 7).exp()
    assert crd_loss(scores, 40).item() == pytest.approx(loop_crd(scores, 40), rel=1e-9)
    assert crd_loss(scores.float(), 40).item() == pytest.approx(loop_crd(scores, 40), rel=1e-4)
    assert torch.autograd.gradcheck(lambda s: crd_loss(s, 40), (scores.requires_grad_(),))


def test_loss_by_hand() -> None:
    # Two others of four images: c = 1/2. log (1/2) / 1 = -0.693147 for the image and log (1/2) / 2 = -1.386294 for
    # each of two others of 3/2; by o: -(1/o - 1/(o + c)) = -1, and 1/(o + c) = 1/2 for each of the others.
    scores = torch.tensor([[0.5, 1.5, 1.5]], dtype=torch.float64)
    assert crd_loss(scores, 4).item() == pytest.approx(5 * math.log(2), rel=1e-6)
    assert gradient(lambda s: crd_loss(s, 4), scores).tolist()[0] == pytest.approx([-1.0, 0.5, 0.5], rel=1e-6)
    for bad in (torch.ones(3), torch.ones(3, 1)):
        with pytest.raises(ValueError, match="an image and M others"):
            crd_loss(bad, 4)


def test_logarithms_of_scores_may_be_large() -> None:
    scores = torch.tensor([[1e4, -1e4, 1e4]], requires_grad=True)
    log_contrast(scores, 4).backward()
    assert scores.grad is not None and scores.grad.isfinite().all()


@pytest.mark.parametrize("number", [5, 6])
def test_negatives_are_of_other_classes_and_all_different_where_there_are_so_many(number: int) -> None:
    torch.manual_seed(0)
    banks, asked, seen = Banks(CLASSES, 4), torch.arange(8), [set[int]() for _ in CLASSES]
    for _ in range(60):
        chosen = banks.others(asked, number)
        assert chosen.shape == (8, number) and not (CLASSES[chosen] == CLASSES[:, None]).any()
        different = [len(set(row)) for row in chosen.tolist()]
        assert min(different) == number if number == 5 else max(different) <= 6
        for place, row in zip(seen, chosen.tolist(), strict=True):
            place.update(row)
    for label, found in zip(CLASSES, seen, strict=True):
        assert found == set(torch.nonzero(label != CLASSES).flatten().tolist())
    with pytest.raises(Unsupported, match="all training images are of one"):
        Banks(torch.zeros(3, dtype=torch.long), 4)


def test_scores_are_over_a_scale_of_the_first_batch_and_banks_move_half_way() -> None:
    torch.manual_seed(0)
    banks = Banks(CLASSES, 3).double()
    anchors, chosen = F.normalize(draw(2, 3), dim=1), torch.tensor([[1, 0, 2], [6, 4, 7]])
    before = {name: getattr(banks, name).clone() for name in ("student", "teacher")}
    assert all(value.abs().max() <= 1 for value in before.values()) and before["student"].std() > 0.3
    expected = [
        [math.exp(sum(a * b for a, b in zip(anchor, before["teacher"][j].tolist(), strict=True)) / 0.07) for j in row]
        for anchor, row in zip(anchors.tolist(), chosen.tolist(), strict=True)
    ]
    scale = 8 * sum(map(sum, expected)) / 6
    for _ in range(2):
        found = banks.scores(0, anchors, chosen, 0.07).exp()
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64) / scale)
        assert banks.scales.tolist() == pytest.approx([scale, -1.0])
        expected, anchors = [[1.0] * 3] * 2, anchors * 0
    banks.follow(torch.tensor([1, 6]), draw(2, 3, seed=3), draw(2, 3, seed=4), 0.5)
    for seed, name in ((3, "student"), (4, "teacher")):
        after, new = getattr(banks, name), draw(2, 3, seed=seed)
        assert torch.equal(after[[0, 2, 3, 4, 5, 7]], before[name][[0, 2, 3, 4, 5, 7]])
        wanted = (before[name][[1, 6]] + new) / (before[name][[1, 6]] + new).norm(dim=1, keepdim=True)
        torch.testing.assert_close(after[[1, 6]], wanted)


def test_method_is_both_contrasts_of_its_embeddings(monkeypatch: pytest.MonkeyPatch, digits: Splits) -> None:
    run = started(spec_of("crd", *CNN, negatives=3), digits)
    fixed = torch.arange(3).expand(32, 3)
    monkeypatch.setattr(Banks, "others", lambda self, indices, number: fixed)
    banks: Any = run.auxiliary["banks"]
    bank = {"student": banks.student.clone(), "teacher": banks.teacher.clone()}
    weights = {side: [value.clone() for value in run.auxiliary[side].parameters()] for side in bank}
    seen = run.one_update()
    step, total = seen.step, 0.0
    assert step.indices is not None
    pooled = {"student": step.student.pooled, "teacher": step.teacher.pooled}
    for side, other in (("student", "teacher"), ("teacher", "student")):
        embedded = F.normalize(F.linear(pooled[side].detach(), *weights[side]), dim=1)  # type: ignore[union-attr]
        chosen = torch.cat([step.indices[:, None], fixed], dim=1)
        scores = (torch.einsum("bd,bmd->bm", embedded, bank[other][chosen]) / 0.07).exp()
        total += loop_crd(scores / (len(banks.labels) * scores.mean()), len(banks.labels))
    assert float(seen.losses["crd"].detach()) == pytest.approx(0.8 * total, rel=1e-4)
    moved = torch.nonzero((banks.student != bank["student"]).any(dim=1)).flatten()
    assert torch.equal(moved, step.indices.sort().values)


def test_banks_are_of_all_training_images_and_of_their_classes() -> None:
    seen, learner = Signals(draw(2, 4), pooled=draw(2, 6)), configure("crd", {"width": 5})
    data = Data(torch.zeros(5, 1, 8, 8), LABELS, torch.zeros(0, 1, 8, 8), 4)
    for targets in (LABELS, F.one_hot(LABELS, 4).float()):
        modules: Any = learner.modules_of_data(seen, (seen,), Data(data.inputs, targets, data.unlabelled, 4))
        assert torch.equal(modules["banks"].labels, LABELS) and modules["banks"].student.shape == (5, 5)
        assert set(modules["banks"].state_dict()) == {"student", "teacher", "scales"}


def test_contrast_adds_to_other_losses(digits: Splits) -> None:
    outcome, _, memory = carried_out(spec_of("kd+0.8*crd(negatives=20)", *CNN), digits)
    assert outcome.status == "done" and memory.epochs[0].losses["student/crd"] > 0
    assert crd.CRD().contrast_temperature == 0.07
