"""Modern methods of the classifier, of class maps and of exits: slow loops in float64, values by hand, deployment."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.bench.configure import configure
from kdbench.bench.data.splits import Splits
from kdbench.bench.deploy.student import student_of
from kdbench.bench.errors import InputError
from kdbench.bench.evaluation.cost import Costs
from kdbench.bench.tasks import task_of
from kdbench.methods import cat_kd, ofa, simkd, srrl, uskd, wkd
from kdbench.methods.base import Signals, Step, Unsupported
from kdbench.methods.kd import KD
from tests.methods.losses import LN3, Case, draw, loop_pool, loop_softmax, refuses
from tests.methods.modern import LABELS, gradient, kl, mean, rows_of, without
from tests.methods.options import CNN, carried_out, spec_of, started, step_of, values

CLASS_MAPS = (5, 4, 3, 5)


def loop_attention(student: Tensor, teacher: Tensor, resolution: int, normalise: bool) -> float:
    both = []
    for each in (student, teacher):
        maps = loop_pool(each, resolution, resolution).flatten(2).tolist()
        norms = [[math.hypot(*row) if normalise else 1.0 for row in image] for image in maps]
        both.append(
            [
                [value / norm for value in row]
                for image, lengths in zip(maps, norms, strict=True)
                for row, norm in zip(image, lengths, strict=True)
            ]
        )
    return mean([(a - b) ** 2 for s, t in zip(*both, strict=True) for a, b in zip(s, t, strict=True)])


def loop_pooled(student: Tensor, teacher: Tensor) -> float:
    both = [[[mean(channel) for channel in image] for image in each.flatten(2).tolist()] for each in (student, teacher)]
    return mean([(a - b) ** 2 for s, t in zip(*both, strict=True) for a, b in zip(s, t, strict=True)])


def loop_ofa(student: Tensor, teacher: Tensor, epsilon: float) -> float:
    found = []
    for (s, t), y in zip(rows_of(student, teacher), LABELS.tolist(), strict=True):
        for k, (q, p) in enumerate(zip(loop_softmax(s), loop_softmax(t), strict=True)):
            found.append(-((p + (k == y)) ** epsilon - (k == y)) * math.log(q))
    return sum(found) / len(student)


def loop_sinkhorn(student: Tensor, teacher: Tensor, cost: Tensor, temperature: float = 2.0) -> float:
    """The program's: the label's class cut out of logits and costs."""
    values_ = []
    for (s, t), y in zip(rows_of(student, teacher), LABELS.tolist(), strict=True):
        p, q = (loop_softmax(without(row, y), temperature) for row in (s, t))
        c = [without(row, y) for row in without(cost.clamp_min(0).add(1e-8).tolist(), y)]  # type: ignore[arg-type]
        n = range(len(p))
        kernel = [[math.exp(-value / 0.05) for value in row] for row in c]
        u = [1 / len(p) for _ in n]
        for _ in range(10):
            v = [q[j] / (sum(kernel[i][j] * u[i] for i in n) + 1e-8) for j in n]
            u = [p[i] / (sum(kernel[i][j] * v[j] for j in n) + 1e-8) for i in n]
        values_.append(sum(u[i] * kernel[i][j] * v[j] * c[i][j] for i, j in itertools.product(n, n)))
    return mean(values_)


def loop_uskd(student: Tensor, weak: Tensor, program: bool = True) -> tuple[float, float, float]:
    own = [loop_softmax(row) for row in student.tolist()]
    squares = [row[y] ** 2 for row, y in zip(own, LABELS.tolist(), strict=True)]
    target, others, hidden = [], [], []
    for p, (s, w), y, square in zip(own, rows_of(student, weak), LABELS.tolist(), squares, strict=True):
        target.append(-(1 + square - mean(squares)) * math.log(p[y]))
        low = loop_softmax(w)
        share = [math.log(value) for value in p] if program else p
        order = [a / (1 - low[y] + 1e-6) + b / (1 - share[y] + 1e-6) for a, b in zip(low, share, strict=True)]
        ranked = sorted(range(len(order)), key=lambda k, order=order: -order[k])  # type: ignore[misc]
        zipf = [0 if k == y else 1 / (1 + ranked.index(k)) for k in range(len(order))]
        logs = iter(math.log(q) for q in loop_softmax(without(s, y)))
        others.append(-sum(z / sum(zipf) * next(logs) for z in zipf if z))
        hidden.append(-sum(((0.9 if k == y else 0) + 0.1 / len(low)) * math.log(q) for k, q in enumerate(low)))
    return mean(target), mean(others), mean(hidden)


COST = wkd.class_costs(draw(4, 6, seed=7), 1.0)
CASES: dict[str, Case] = {
    "attention": Case(
        lambda s, t: cat_kd.class_attention_loss(s, t, 2, False),
        lambda s, t: loop_attention(s, t, 2, False),
        CLASS_MAPS,
        (5, 4, 6, 4),
    ),
    "attention_normalised": Case(
        lambda s, t: cat_kd.class_attention_loss(s, t, 2, True),
        lambda s, t: loop_attention(s, t, 2, True),
        CLASS_MAPS,
        CLASS_MAPS,
    ),
    "feature": Case(srrl.feature_loss, loop_pooled, CLASS_MAPS, (5, 4, 2, 2)),
    "simkd": Case(
        simkd.feature_loss,
        lambda s, t: mean([(a - b) ** 2 for a, b in zip(s.flatten().tolist(), t.flatten().tolist(), strict=True)]),
        CLASS_MAPS,
        CLASS_MAPS,
    ),
    "ofa": Case(lambda s, t: ofa.ofa_loss(s, t, LABELS, 1.3), lambda s, t: loop_ofa(s, t, 1.3), zero=False),
    "wasserstein": Case(
        lambda s, t: wkd.wasserstein_loss(s, t, LABELS, 2.0, COST, 0.05, 10),
        lambda s, t: loop_sinkhorn(s, t, COST),
        zero=False,
    ),
    "uskd": Case(
        lambda s, t: uskd.uskd_loss(s, t, LABELS, 1.0, 0.5, 0.25),
        lambda s, t: sum(w * part for w, part in zip((1.0, 0.5, 0.25), loop_uskd(s, t), strict=True)),
        zero=False,
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_case
def test_loss_equals_the_loop_and_passes_gradcheck(case: Case) -> None:
    expected = case.loop(case.student, case.teacher)
    assert case.value.item() == pytest.approx(expected, rel=1e-7) and abs(expected) > 1e-4
    assert case.loss(case.student.float(), case.teacher.float()).item() == pytest.approx(expected, rel=1e-3)
    if case is not CASES["uskd"]:  # whose factor and ranks have no gradient by intention
        assert torch.autograd.gradcheck(lambda s: case.loss(s, case.teacher), (case.student.requires_grad_(),))
    if case.zero:
        assert case.loss(case.student, case.student).item() == 0
    refuses(lambda: case.loss(case.student, draw(1, *case.teacher_shape[1:])), case.student_shape)


def test_wasserstein_by_hand() -> None:
    # Of three classes the label's is left out: mass 3/4, 1/4 to 1/4, 3/4 at a cost of 1: half of it moves.
    student, teacher = torch.tensor([[0.0, LN3, 0.0]]).double(), torch.tensor([[9.0, 0.0, LN3]]).double()
    cost, label = 1 - torch.eye(3).double(), torch.tensor([0])
    assert wkd.wasserstein_loss(student, teacher, label, 1.0, cost, 0.05, 50).item() == pytest.approx(0.5, rel=1e-3)
    costs = wkd.class_costs(torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), 0.0)
    assert costs[0].tolist() == pytest.approx([0, 1, 1 - math.sqrt(0.5)], abs=1e-6)
    sharp = wkd.class_costs(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), 2.0)
    assert sharp[0].tolist() == pytest.approx([0, 1 - math.exp(-2)], abs=1e-6)


def test_ofa_by_hand() -> None:
    # Teacher (3/4, 1/4), label 0, epsilon 2: weights (7/4)^2 - 1 = 33/16 and 1/16; of a student at 1/2 both log 2.
    student, teacher = torch.zeros(1, 2).double(), torch.tensor([[LN3, 0.0]]).double()
    loss = ofa.ofa_loss(student, teacher, torch.tensor([0]), 2.0)
    assert loss.item() == pytest.approx(34 / 16 * math.log(2), rel=1e-6)
    found = gradient(lambda s: ofa.ofa_loss(s, teacher, torch.tensor([0]), 2.0), student)
    assert found.tolist()[0] == pytest.approx([-1.0, 1.0], rel=1e-6)
    divergence = gradient(lambda s: ofa.ofa_loss(s, teacher, torch.tensor([0]), 1.0), student)
    assert divergence.tolist()[0] == pytest.approx([-0.25, 0.25]), "at 1 that of the teacher's cross-entropy"
    assert kl(loop_softmax([LN3, 0.0]), [0.5, 0.5]) > 0


def test_class_attention_by_hand() -> None:
    # A class map (1, 3) pooled to 2, the teacher's (0, 0): 4; normalised (3, 4) against (0, 1): 0.36 + 0.04 over 2.
    one = cat_kd.class_attention_loss(torch.tensor([[[[1.0, 3.0]]]]), torch.zeros(1, 1, 1, 2), 1, False)
    assert one.item() == pytest.approx(4)
    mine, theirs = torch.tensor([[[[3.0, 4.0], [3.0, 4.0]]]]), torch.tensor([[[[0.0, 2.0], [0.0, 2.0]]]])
    apart = cat_kd.class_attention_loss(mine, theirs, 2, True).item()
    assert apart == pytest.approx((0.36 + (0.8 - 1) ** 2) / 4, rel=1e-5)


def test_self_distillation_has_both_ranks_and_no_gradient_through_its_own_labels() -> None:
    student, weak = draw(5, 4), draw(5, 4, seed=1)
    for ranks in ("program", "paper"):
        expected = loop_uskd(student, weak, ranks == "program")[1]
        assert uskd.others_loss(student, weak, LABELS, ranks).item() == pytest.approx(expected, rel=1e-9)
    p = student.softmax(dim=1)
    square = p[range(5), LABELS].square()
    factor = 1 + square - square.mean()
    expected_gradient = factor[:, None] * (p - F.one_hot(LABELS, 4)) / 5
    torch.testing.assert_close(gradient(lambda s: uskd.target_loss(s, LABELS), student), expected_gradient)
    seen = Signals(draw(5, 4).float(), (draw(5, 3, 4, 4).float(),))
    with pytest.raises(Unsupported, match="one stage alone"):
        configure("uskd", {}).auxiliary_modules(seen, ())


def head_signals() -> tuple[Signals, Signals]:
    pair = []
    for seed, width, side in ((0, 3, 6), (10, 5, 4)):
        head_map = draw(5, width, side, side, seed=seed).float().relu()
        rows, bias = draw(4, width, seed=seed + 1).float(), draw(4, seed=seed + 2).float()
        logits = head_map.mean(dim=(2, 3)) @ rows.T + bias
        pooled = head_map.mean(dim=(2, 3))
        pair.append(Signals(logits, None, pooled, rows, head_map=head_map, classifier_bias=bias))
    return pair[0], pair[1]


def with_modules(name: str, mine: Signals, theirs: Signals, **params: Any) -> tuple[Any, Step]:
    torch.manual_seed(0)
    learner: Any = configure(name, params)
    modules = learner.auxiliary_modules(mine, (theirs,))
    return learner, replace(step_of(mine, theirs, labels=LABELS, progress=0.5), auxiliary=modules)


def test_class_maps_are_the_classifiers_rows_at_every_position() -> None:
    mine, theirs = head_signals()
    maps = cat_kd.class_maps(mine)
    assert maps.shape == (5, 4, 6, 6) and mine.classifier_bias is not None
    torch.testing.assert_close(maps.mean(dim=(2, 3)) + mine.classifier_bias, mine.logits)
    learner, step = with_modules("cat_kd", mine, theirs)
    expected = 1.5 * cat_kd.class_attention_loss(maps, cat_kd.class_maps(theirs), 2, False).item()
    assert values(learner.loss(step))["attention"] == pytest.approx(expected, rel=1e-6)


def test_softmax_regression_goes_through_the_teachers_classifier_with_its_bias() -> None:
    mine, theirs = head_signals()
    assert mine.head_map is not None and theirs.head_map is not None and theirs.classifier is not None
    learner, step = with_modules("srrl", mine, theirs, weight=2.0)
    mapped = step.auxiliary["connector"](mine.head_map)
    logits = mapped.mean(dim=(2, 3)) @ theirs.classifier.T + theirs.classifier_bias
    found = values(learner.loss(step))
    assert found["feature"] == pytest.approx(srrl.feature_loss(mapped, theirs.head_map).item(), rel=1e-5)
    assert found["regression"] == pytest.approx(2 * F.mse_loss(logits, theirs.logits).item(), rel=1e-5)
    assert mapped.min() == 0 and configure("srrl", {"feature_weight": 0.0}).loss_weights() == {
        "weight": ("regression",)
    }


def test_the_reused_classifier_predicts_from_the_projected_map() -> None:
    mine, theirs = head_signals()
    assert mine.head_map is not None and theirs.head_map is not None and theirs.classifier is not None
    learner, step = with_modules("simkd", mine, theirs)
    projected = step.auxiliary["projector"](mine.head_map)
    assert projected.shape == theirs.head_map.shape == (5, 5, 4, 4) and projected.min() == 0
    losses = learner.loss(step)
    assert values(losses) == pytest.approx({"feature": F.mse_loss(projected, theirs.head_map).item()}, rel=1e-5)
    predicted = learner.predictions(mine, step.auxiliary)["logits"]
    torch.testing.assert_close(predicted, projected.mean(dim=(2, 3)) @ theirs.classifier.T + theirs.classifier_bias)
    frozen = {name for name, value in step.auxiliary.named_parameters() if not value.requires_grad}
    assert frozen == {"head.weight", "head.bias"}
    larger = replace(theirs, head_map=draw(5, 5, 12, 12, seed=3).float())
    learner, step = with_modules("simkd", mine, larger)
    wanted = F.avg_pool2d(larger.head_map, 2)  # type: ignore[arg-type]
    expected = F.mse_loss(step.auxiliary["projector"](mine.head_map), wanted).item()
    assert values(learner.loss(step))["feature"] == pytest.approx(expected, rel=1e-5)


def test_what_is_deployed_is_counted_and_the_teachers_head_is_kept_in_the_runs_files(digits: Splits) -> None:
    spec = spec_of("simkd", *CNN)
    outcome, files, _ = carried_out(spec, digits)
    assert outcome.status == "done" and "last_auxiliary" in files
    run = started(spec, digits)
    student, auxiliary = run.students[0].network, run.auxiliary
    head = sum(value.numel() for value in auxiliary["head"].parameters())
    projector = sum(value.numel() for value in auxiliary["projector"].parameters())
    own = student.parameter_count() - sum(value.numel() for value in student.model.fc.parameters())  # type: ignore[union-attr, operator]
    assert outcome.cost["parameters"] == own + projector + head and head == 64 * 10 + 10
    costs = Costs(task_of("image"), run.method, student, auxiliary, digits.validation.inputs)
    waist = 32
    layers = (16 * waist + 9 * waist * waist + waist * 64) * 4 + 64 * 10
    assert costs.deployed() == layers == outcome.cost["multiply_adds"] - costs.multiply_adds()
    plain = replace(costs, method=KD())
    assert plain.deployed() == 0 and not [p for p in auxiliary["head"].parameters() if p.requires_grad]
    saved = safetensors.torch.load(files["last_auxiliary"])
    teacher: Any = run.networks.built["teacher"].model
    assert torch.equal(saved["head.weight"], teacher.fc.weight) and torch.equal(saved["head.bias"], teacher.fc.bias)
    with pytest.raises(InputError, match="modules of the method, which no format holds"):
        student_of(spec, digits, files["last"])
    with pytest.raises(InputError, match="cannot be added"):
        configure("kd+simkd", {}).needed()


def test_exits_stand_on_four_stages_and_halve_as_often_as_stages_follow() -> None:
    maps = tuple(draw(5, 2 + i, 16, 16, seed=i).float() for i in range(9))
    mine = Signals(draw(5, 4).float(), maps, draw(5, 7).float(), stem=1)
    theirs = Signals(draw(5, 4, seed=1).float(), maps, draw(5, 6, seed=1).float())
    learner, step = with_modules("ofa", mine, theirs, weight=0.5, epsilon=1.5)
    exits: Any = step.auxiliary
    assert [exits[f"exit_{i}"][0] for i in range(4)] and len(exits) == 4
    chosen = (2, 4, 6, 8)
    widths = [[layer[4].out_channels for layer in exits[f"exit_{i}"][: 3 - i]] for i in range(3)]
    inputs = [maps[place].shape[1] for place in chosen]
    assert len(widths[0]) == 3 and all(each[-1] != 0 for each in widths)
    assert isinstance(exits["exit_3"][0], nn.Conv2d) and exits["exit_3"][0].in_channels == inputs[3]
    assert {exits[f"exit_{i}"][-1].in_features for i in range(4)} == {7}
    expected = sum(
        ofa.ofa_loss(exits[f"exit_{i}"](maps[place]), theirs.logits, LABELS, 1.5).item()
        for i, place in enumerate(chosen)
    )
    found = values(learner.loss(step))
    assert found["exits"] == pytest.approx(expected / 2, rel=1e-5)
    assert found["ofa"] == pytest.approx(ofa.ofa_loss(mine.logits, theirs.logits, LABELS, 1.5).item(), rel=1e-5)


def test_wasserstein_term_falls_at_the_end_of_training() -> None:
    mine, theirs = head_signals()
    learner, step = with_modules("wkd", mine, theirs)
    full = values(learner.loss(step))["wasserstein"]
    assert values(learner.loss(replace(step, progress=0.625 + 0.1875)))["wasserstein"] == pytest.approx(
        full / 2, rel=1e-5
    )
    assert values(learner.loss(replace(step, progress=1.0)))["wasserstein"] == pytest.approx(0, abs=1e-5)
    assert theirs.classifier is not None
    cost = wkd.class_costs(theirs.classifier, 1.0)
    apart = wkd.wasserstein_loss(mine.logits, theirs.logits, LABELS, 4.0, cost, 0.05, 10)
    assert full == pytest.approx(100 * apart.item(), rel=1e-5)
