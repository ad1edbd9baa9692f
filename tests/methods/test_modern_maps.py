"""Modern losses of maps before activations: slow loops in float64, values by hand, and what methods make of maps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.bench.configure import configure
from kdbench.bench.data.splits import Splits
from kdbench.methods import ab, ft, ofd, reviewkd, semckd
from kdbench.methods.base import TEACHER, Signals, Step, Unsupported
from kdbench.methods.functional import even_pairs
from tests.methods.losses import draw, loop_pool, loop_unit, refuses
from tests.methods.modern import LABELS, gradient, mean
from tests.methods.options import CNN, carried_out, spec_of, step_of, values

MAPS = [(5, 3, 8, 8), (5, 4, 4, 4), (5, 2, 3, 5), (5, 6, 1, 1)]
"""Shapes, shallow to deep."""


def loop_square(first: Tensor, second: Tensor) -> float:
    return mean([(a - b) ** 2 for a, b in zip(first.flatten().tolist(), second.flatten().tolist(), strict=True)])


def loop_context(students: list[Tensor], teachers: list[Tensor]) -> float:
    total = 0.0
    for mine, theirs in zip(students, teachers, strict=True):
        weight, weights, value = 1.0, 1.0, loop_square(mine, theirs)
        for level in (4, 2, 1):
            if level < mine.shape[2]:
                weight /= 2
                weights += weight
                value += weight * loop_square(loop_pool(mine, level, level), loop_pool(theirs, level, level))
        total += value / weights
    return total


def loop_overhaul(student: Tensor, teacher: Tensor, margin: Tensor) -> float:
    total, (images, channels, height, width) = 0.0, student.shape
    for i, c, y, x in [
        (i, c, y, x) for i in range(images) for c in range(channels) for y in range(height) for x in range(width)
    ]:
        mine, theirs = student[i, c, y, x].item(), max(teacher[i, c, y, x].item(), margin[0, c, 0, 0].item())
        total += (mine - theirs) ** 2 if mine > theirs or theirs > 0 else 0.0
    return total


def test_context_loss_equals_the_loop_and_passes_gradcheck() -> None:
    students, teachers = [draw(*shape) for shape in MAPS], [draw(*shape, seed=1) for shape in MAPS]
    loss = reviewkd.hierarchical_context_loss
    assert loss(students, teachers).item() == pytest.approx(loop_context(students, teachers), rel=1e-9)
    singles = [[each.float() for each in maps] for maps in (students, teachers)]
    assert loss(*singles).item() == pytest.approx(loop_context(students, teachers), rel=1e-4)
    inputs = tuple(each.requires_grad_() for each in students)
    assert torch.autograd.gradcheck(lambda *maps: loss(maps, teachers), inputs)
    assert loss(teachers, teachers).item() == 0
    refuses(lambda: loss(students[:1], [teachers[1]]), MAPS[0], MAPS[1])
    with pytest.raises(ValueError):
        loss(students, teachers[:2])


def test_context_loss_by_hand() -> None:
    # 2x2 map, differences (2, 0, 0, 0): mean square 1. Pooled to 1: 0.5 squared 0.25, weight 1/2: 1.125 / 1.5 = 0.75.
    # Its gradient at the first place: (2 * 2 / 4 + 1/2 * 2 * 0.5 / 4) / 1.5 = 0.75, at others 0.125 / 1.5 = 1/12.
    student, teacher = torch.tensor([[[[2.0, 0.0], [0.0, 0.0]]]], dtype=torch.float64), torch.zeros(1, 1, 2, 2).double()
    assert reviewkd.context_loss(student, teacher).item() == pytest.approx(0.75)
    found = gradient(lambda s: reviewkd.context_loss(s, teacher), student)
    assert found.flatten().tolist() == pytest.approx([0.75, 1 / 12, 1 / 12, 1 / 12])


def review_signals() -> tuple[Signals, Signals]:
    pairs = []
    for seed, widths in ((0, (3, 4, 5)), (10, (2, 6, 7))):
        maps = tuple(draw(5, width, 8 >> i, 8 >> i, seed=seed + i).float() for i, width in enumerate(widths))
        pooled = draw(5, widths[-1] + 1, seed=seed + 5).float()
        pairs.append(Signals(draw(5, 4, seed=seed).float(), maps, pooled, preactivations=tuple(m - 1 for m in maps)))
    return pairs[0], pairs[1]


def with_modules(name: str, mine: Signals, theirs: Signals, progress: float = 0.5, **params: Any) -> tuple[Any, Step]:
    torch.manual_seed(0)
    learner: Any = configure(name, params)
    made = step_of(mine, theirs, labels=LABELS, progress=progress)
    return learner, replace(made, auxiliary=learner.auxiliary_modules(mine, (theirs,)))


@pytest.mark.parametrize("both", [False, True])
def test_review_goes_from_deep_to_shallow_to_the_teachers_maps_before_activations(both: bool) -> None:
    mine, theirs = review_signals()
    learner, step = with_modules("reviewkd", mine, theirs, student_preactivations=both)
    own = mine.preactivations if both else mine.features
    assert own is not None and theirs.preactivations is not None
    assert mine.pooled is not None and theirs.pooled is not None
    maps = [*own, mine.pooled[:, :, None, None]]
    targets = [*theirs.preactivations, theirs.pooled[:, :, None, None]]
    told, deeper = [], torch.empty(0)
    for place in (3, 2, 1, 0):
        fusion: Any = step.auxiliary[f"fusion_{place}"]
        joined = fusion.reduce(maps[place])
        if place < 3:
            deeper = F.interpolate(deeper, maps[place].shape[-2:])
            gates = torch.cat([joined, deeper], dim=1)
            gates = torch.sigmoid(F.conv2d(gates, fusion.gates[0].weight, fusion.gates[0].bias))
            joined = gates[:, 0:1] * joined + gates[:, 1:2] * deeper
        deeper = joined
        told.insert(0, fusion.expand(joined))
    expected = reviewkd.hierarchical_context_loss(told, targets).item()
    assert values(learner.loss(step))["review"] == pytest.approx(5 * expected, rel=1e-5)
    early = values(learner.loss(replace(step, progress=1 / 24)))
    assert early["review"] == pytest.approx(5 * expected / 2, rel=1e-5) and learner.calibrated_at() == 1 / 12
    assert step.auxiliary["fusion_3"].gates is None and {
        fusion.reduce[0].out_channels for fusion in step.auxiliary.values()
    } == {6}  # type: ignore[union-attr, index]


def test_maps_of_bare_stems_are_left_out_and_others_matched_evenly() -> None:
    mine, theirs = review_signals()
    _, step = with_modules("reviewkd", replace(mine, stem=1), theirs)
    assert len(step.auxiliary) == 3
    assert even_pairs("abc", "ABCDE") == [("a", "A"), ("b", "C"), ("c", "E")]
    assert even_pairs("ab", "A") == [("b", "A")]


def test_margin_is_the_mean_below_zero() -> None:
    weight, bias = torch.tensor([1.0, -2.0, 0.5, 1.0, 1e-8]), torch.tensor([0.0, 1.0, 3.0, 3.0, -1.0])
    draws = torch.randn(400_000, 5, generator=torch.Generator().manual_seed(0)) * weight + bias
    found = ofd.margin(weight, bias)
    for channel in (0, 1, 3, 4):
        below = draws[:, channel][draws[:, channel] < 0]
        assert found[channel].item() == pytest.approx(below.mean().item(), abs=0.02)
    assert found[0].item() == pytest.approx(-math.sqrt(2 / math.pi), rel=1e-6)
    assert found[2].item() == -1.5, "six deviations above zero: 3 below"
    assert ofd.margin(torch.zeros(2), torch.tensor([1.0, 0.0])).abs().max() < 1e-30


def test_overhaul_loss_equals_the_loop_and_passes_gradcheck() -> None:
    student, teacher, margin = draw(3, 4, 2, 3), draw(3, 4, 2, 3, seed=1), -draw(1, 4, 1, 1, seed=2).abs()
    loss = ofd.overhaul_loss(student, teacher, margin)
    assert loss.item() == pytest.approx(loop_overhaul(student, teacher, margin), rel=1e-9)
    assert torch.autograd.gradcheck(lambda s: ofd.overhaul_loss(s, teacher, margin), (student.requires_grad_(),))
    refuses(lambda: ofd.overhaul_loss(student, teacher[:2], margin), (3, 4, 2, 3), (2, 4, 2, 3))


def test_overhaul_loss_by_hand() -> None:
    # Teacher 2, -5, -5, -0.2 with margin -1: 2, -1, -1, -0.2. Student 1: -1; -3 is below a negative one: nothing;
    # 0 above -1: 1; 0.8 above -0.2: 1. Squares 1 + 0 + 1 + 1, gradients twice the differences.
    student = torch.tensor([1.0, -3.0, 0.0, 0.8]).view(1, 1, 2, 2)
    teacher, margin = torch.tensor([2.0, -5.0, -5.0, -0.2]).view(1, 1, 2, 2), torch.full((1, 1, 1, 1), -1.0)
    assert ofd.overhaul_loss(student, teacher, margin).item() == pytest.approx(3.0)
    found = gradient(lambda s: ofd.overhaul_loss(s, teacher, margin), student)
    assert found.flatten().tolist() == pytest.approx([-2.0, 0.0, 2.0, 2.0])


def test_overhaul_halves_stages_from_the_last_and_takes_margins_from_the_teachers_norms() -> None:
    mine, theirs = review_signals()
    maps = theirs.preactivations or ()
    norms = tuple(torch.stack([torch.ones(each.shape[1]), torch.zeros(each.shape[1])]) for each in maps)
    theirs = replace(theirs, norms=norms)
    learner, step = with_modules("ofd", mine, theirs, weight=1.0)
    expected = 0.0
    for place, (own, target) in enumerate(zip(mine.preactivations or (), maps, strict=True)):
        connected = step.auxiliary[f"connector_{place}"](own)
        bound = torch.full((1, target.shape[1], 1, 1), -math.sqrt(2 / math.pi))
        expected += ofd.overhaul_loss(connected, target, bound).item() / (4, 2, 1)[place] / 5
    assert values(learner.loss(step))["ofd"] == pytest.approx(expected, rel=1e-5)
    assert not [name for name in step.auxiliary.state_dict() if "margins" in name]
    kinds = [type(layer) for layer in step.auxiliary["connector_0"]]  # type: ignore[arg-type]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d]
    with pytest.raises(Unsupported, match="without a batch norm before its last activation"):
        learner.auxiliary_modules(mine, (replace(theirs, norms=(*norms[:2], None)),))


def loop_boundary(student: Tensor, teacher: Tensor, margin: float) -> float:
    total = 0.0
    for f, g in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        if g > 0 and f <= margin:
            total += (f - margin) ** 2
        if g <= 0 and f > -margin:
            total += (f + margin) ** 2
    return total


def loop_factor(student: Tensor, teacher: Tensor) -> float:
    both = [[loop_unit(image) for image in each.flatten(1).tolist()] for each in (student, teacher)]
    return mean([abs(a - b) for s, t in zip(*both, strict=True) for a, b in zip(s, t, strict=True)])


@pytest.mark.parametrize(
    ("loss", "loop"),
    [
        (lambda s, t: ab.boundary_loss(s, t, 0.7), lambda s, t: loop_boundary(s, t, 0.7)),
        (ft.factor_loss, loop_factor),
    ],
    ids=["boundary", "factor"],
)
def test_losses_of_one_map_equal_their_loops_and_pass_gradcheck(loss: Any, loop: Any) -> None:
    student, teacher = draw(3, 4, 2, 3), draw(3, 4, 2, 3, seed=1)
    assert loss(student, teacher).item() == pytest.approx(loop(student, teacher), rel=1e-9)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), (student.requires_grad_(),))
    refuses(lambda: loss(student, teacher[:2]), (3, 4, 2, 3), (2, 4, 2, 3))
    assert gradient(lambda s: loss(s, teacher), torch.zeros_like(teacher)).isfinite().all()


def test_boundary_and_factor_loss_by_hand() -> None:
    # Active: (1 - 0.5)^2 and nothing for 2; not active: (1 + 0.5)^2 and nothing for -2.
    student, teacher = torch.tensor([0.5, 2.0, 0.5, -2.0]).view(1, 1, 2, 2), torch.tensor([1.0, 1, 0, -1])
    assert ab.boundary_loss(student, teacher.view(1, 1, 2, 2), 1.0).item() == pytest.approx(2.5)
    found = gradient(lambda s: ab.boundary_loss(s, teacher.view(1, 1, 2, 2), 1.0), student)
    assert found.flatten().tolist() == pytest.approx([-1.0, 0.0, 3.0, 0.0])
    # (3, 4) / 5 against (0, 1): 0.6 and 0.2.
    factors = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[0.0, 7.0]]]])
    assert ft.factor_loss(*factors).item() == pytest.approx(0.4)


def test_boundaries_are_learned_first_halved_from_the_last_stage() -> None:
    mine, theirs = review_signals()
    learner, step = with_modules("ab", mine, theirs, kd_weight=1.0)
    first, second = learner.stages((TEACHER,))
    assert (first.epochs, second.epochs) == (0.125, 0.875) and set(learner.space()) == {"weight"}
    expected = 0.0
    for place, (own, target) in enumerate(zip(mine.preactivations or (), theirs.preactivations or (), strict=True)):
        connected = step.auxiliary[f"connector_{place}"](own)
        expected += ab.boundary_loss(connected, target, 1.0).item() / (4, 2, 1)[place] / 5 * 3 / 1000
    assert values(first.loss(step)) == pytest.approx({"boundaries": expected}, rel=1e-5)
    assert set(second.loss(step)) == {"ce", "kd"} and set(configure("ab", {}).loss(step)) == {"ce"}
    assert not configure("ab", {}).auxiliary_modules(mine, (mine,)), "equal widths need no connector"


def test_paraphraser_is_trained_first_and_fixed_after(digits: Splits) -> None:
    mine, theirs = review_signals()
    learner, step = with_modules("ft", mine, theirs)
    encoder, decoder, translator = (step.auxiliary[name] for name in ("encoder", "decoder", "translator"))
    assert mine.features and theirs.features
    target = theirs.features[-1]
    assert values(learner.paraphrase(step)) == pytest.approx(
        {"paraphrase": (decoder(encoder(target)) - target).abs().mean().item()}, rel=1e-5
    )
    losses = learner.loss(step)
    expected = 500 * ft.factor_loss(translator(mine.features[-1]), encoder(target)).item()
    assert encoder(target).shape[1] == 3 and values(losses)["ft"] == pytest.approx(expected, rel=1e-5)
    losses["ft"].backward()
    assert all(value.grad is None for part in (encoder, decoder) for value in part.parameters())
    assert all(value.grad is not None for value in translator.parameters())
    outcome, _, memory = carried_out(spec_of("ft", *CNN, recipe={"epochs": 3}), digits)
    assert outcome.status == "done" and [each.stage for each in memory.epochs][0] == "paraphrase"


def test_semantic_calibration_weighs_each_pair_of_stages_for_each_image() -> None:
    shapes = [[(5, 2, 4, 4), (5, 3, 2, 2), (5, 4, 1, 1)], [(5, 2, 2, 2), (5, 3, 2, 2), (5, 4, 1, 1)]]
    students = [[draw(*shape, seed=10 * i + j) for j, shape in enumerate(row)] for i, row in enumerate(shapes)]
    teachers = [[draw(*shape, seed=99 + 10 * i + j) for j, shape in enumerate(row)] for i, row in enumerate(shapes)]
    attention = draw(5, 2, 3).softmax(dim=2)
    expected = sum(
        attention[image, i, j].item() * loop_square(students[i][j][image], teachers[i][j][image])
        for image in range(5)
        for i in range(2)
        for j in range(3)
    )
    loss = semckd.semckd_loss(students, teachers, attention)
    assert loss.item() == pytest.approx(expected / 10, rel=1e-9)
    leaves = tuple(each.requires_grad_() for row in students for each in row)
    rows = lambda flat: [list(flat[:3]), list(flat[3:])]  # noqa: E731
    assert torch.autograd.gradcheck(lambda *flat: semckd.semckd_loss(rows(flat), teachers, attention), leaves)
    with pytest.raises(ValueError):
        semckd.semckd_loss(students, teachers, attention[:, :, :2])


def test_semantic_calibration_takes_short_and_long_batches() -> None:
    mine, theirs = review_signals()
    for images in (3, 5, 8):
        learner, step = with_modules("semckd", mine, theirs, images=images)
        assert len(step.auxiliary) == 3 + 3 + 9 and values(learner.loss(step))["semckd"] > 0
    assert mine.features is not None
    rows = mine.features[0].flatten(1)
    query: Any = step.auxiliary["query_0"]
    alike = torch.cat([rows @ rows.T, torch.zeros(5, 3)], dim=1)
    torch.testing.assert_close(query(mine.features[0]), F.normalize(query.layers(alike), dim=1))
    learner, step = with_modules("semckd", *(one_stage(each) for each in (mine, theirs)), images=4)
    own, other = one_stage(mine).features, one_stage(theirs).features
    assert own and other
    apart = loop_square(step.auxiliary["projector_0_0"](own[0]).detach(), other[0])
    assert values(learner.loss(step))["semckd"] == pytest.approx(400 * apart, rel=1e-4), "one stage has all attention"


def one_stage(signals: Signals) -> Signals:
    return replace(signals, features=(signals.features or ())[:1])
