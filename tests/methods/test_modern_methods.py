"""Modern methods beyond their pure losses: warm-ups, trained temperatures, generations, labels, and compositions."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.bench.configure import configure
from kdbench.bench.data.splits import Splits
from kdbench.bench.training.calibration import calibrated
from kdbench.methods import REGISTRY, ctkd, dkd, logit_std, tfkd
from kdbench.methods.base import STUDENT, TEACHER, Net, Signals, Step, Unsupported
from kdbench.methods.functional import kd_loss
from tests.harness import CPU
from tests.methods.losses import draw
from tests.methods.modern import LABELS
from tests.methods.options import CNN, carried_out, memory_of, spec_of, started, step_of, values

MODERN = (
    *("ab", "abkd", "ban", "cat_kd", "cc", "crd", "ctkd", "deit"),
    *("dgkd", "dist", "dkd", "ft", "ickd", "logit_std", "mlkd", "nkd"),
    *("nst", "ofa", "ofd", "pkt", "reviewkd", "rkd", "rld", "semckd"),
    *("simkd", "srrl", "takd", "tfkd", "ttm", "uskd", "vkd", "wkd"),
    *("wsld",),
)
STUDENT_LOGITS, TEACHER_LOGITS = draw(5, 4), draw(5, 4, seed=1)
CE = F.cross_entropy(STUDENT_LOGITS, LABELS).item()


def step(progress: float = 0.0, labels: Tensor = LABELS, auxiliary: nn.ModuleDict | None = None) -> Step:
    made = step_of(Signals(STUDENT_LOGITS), Signals(TEACHER_LOGITS), labels=labels, progress=progress)
    return replace(made, auxiliary=auxiliary or made.auxiliary)


def losses_of(name: str, progress: float = 0.0, **params: Any) -> dict[str, float]:
    return values(configure(name, params).loss(step(progress)))


@pytest.mark.parametrize("name", MODERN)
def test_equation_is_told_and_is_no_hyperparameter(name: str) -> None:
    equation = REGISTRY[name].equation  # type: ignore[attr-defined]
    assert (
        equation.startswith("L")
        and ("L_{task}" in equation or name == "simkd")
        and equation.count("{") == equation.count("}")
    )
    assert len(re.findall(r"\\left(?!arrow)", equation)) == equation.count(r"\right")
    assert "equation" not in configure(name, {}).hyperparameters()


def test_decoupled_terms_rise_over_the_warm_up_and_are_weighed_apart() -> None:
    given = STUDENT_LOGITS, TEACHER_LOGITS, LABELS, 4.0
    target, others = dkd.target_loss(*given).item(), dkd.others_loss(*given).item()
    for progress, factor in ((0.0, 0.0), (0.05, 0.6), (1 / 12, 1.0), (1.0, 1.0)):
        expected = {"ce": CE, "target": factor * target, "others": 8 * factor * others}
        assert losses_of("dkd", progress) == pytest.approx(expected, rel=1e-6)
    assert losses_of("dkd", warmup=0.0, alpha=2.0)["target"] == pytest.approx(2 * target)
    assert losses_of("rld")["below"] == 0 < losses_of("rld", 0.5)["below"]


@pytest.mark.parametrize("name", ["dkd", "nkd", "wsld", "rld", "tfkd"])
def test_methods_of_the_labels_class_refuse_mixed_and_missing_ones(name: str, digits: Splits) -> None:
    learner = configure(name, {})
    assert learner.needed() == {"class_targets"}
    rows = F.one_hot(LABELS, 4).double()
    whole = values(learner.loss(step(0.5, rows)))
    assert whole == pytest.approx(values(learner.loss(step(0.5))), rel=1e-6)
    for bad in (0.9 * rows + 0.025, rows * torch.tensor([[1.0], [0], [1], [1], [1]])):
        with pytest.raises(Unsupported, match="mixed or missing"):
            learner.loss(step(0.5, bad))


def test_weights_behind_a_warm_up_are_calibrated_where_it_has_ended(digits: Splits) -> None:
    found = [
        calibrated(spec, digits, memory_of(spec, digits), CPU)
        for spec in (spec_of("dkd", *CNN), spec_of("dkd", *CNN, warmup=0.0))
    ]
    assert found[0] == found[1] and found[0].keys() == {"beta"}
    assert configure("dkd+kd", {}).calibrated_at() == pytest.approx(1 / 12) and configure("kd", {}).calibrated_at() == 0


def test_logit_standardisation_is_an_option_of_both_bases() -> None:
    soft = logit_std.standardised_kd_loss(STUDENT_LOGITS, TEACHER_LOGITS, 2.0).item()
    assert losses_of("logit_std") == pytest.approx({"ce": 0.1 * CE, "kd": 9 * soft}, rel=1e-6)
    pair = logit_std.standardised(STUDENT_LOGITS), logit_std.standardised(TEACHER_LOGITS)
    soft = dkd.dkd_loss(*pair, LABELS, 2.0, 1.0, 8.0).item()
    decoupled = losses_of("logit_std", 0.5, base="dkd", hard_weight=1.0)
    assert decoupled == pytest.approx({"ce": CE, "kd": 9 * soft}, rel=1e-6)
    assert losses_of("logit_std", base="dkd")["kd"] == 0
    assert configure("logit_std", {"base": "dkd"}).needed() == {"class_targets"} > configure("logit_std", {}).needed()


def test_weighted_transformed_matching_is_an_option() -> None:
    plain, weighted = losses_of("ttm")["ttm"], losses_of("ttm", weighted=True)["ttm"]
    assert plain < weighted < 4 * plain  # with power 0.1 the sums of four powers are between 1 and 4


def test_parts_of_relations_of_weight_zero_are_left_out() -> None:
    signals = Signals(STUDENT_LOGITS, pooled=draw(5, 3)), Signals(TEACHER_LOGITS, pooled=draw(5, 6))
    made = step_of(*signals, labels=LABELS)
    for zero, left in (("distance_weight", "angle"), ("angle_weight", "distance")):
        learner = configure("rkd", {zero: 0.0})
        assert values(learner.loss(made)).keys() == {"ce", left} and learner.loss_weights().keys() == {f"{left}_weight"}


def test_curriculum_temperature_starts_at_15_6_and_climbs_its_loss() -> None:
    module = ctkd.CurriculumTemperature(1.0, 20.0)
    assert module(1.0).item() == pytest.approx(1 + 20 / (1 + math.exp(-1)), rel=1e-6)
    assert [ctkd.reversal(p, 0.1) for p in (0, 0.05, 0.1, 1)] == pytest.approx([0, 0.5, 1, 1])

    def soft(theta: Tensor) -> Tensor:
        return kd_loss(STUDENT_LOGITS, TEACHER_LOGITS, 1 + 20 * theta.sigmoid())

    theta = torch.ones((), dtype=torch.float64, requires_grad=True)
    (plain,) = torch.autograd.grad(soft(theta), theta)
    for progress, factor in ((0.0, 0.0), (5 / 240, 0.5), (0.5, 1.0)):
        losses = configure("ctkd", {}).loss(step(progress, auxiliary=nn.ModuleDict({"temperature": module})))
        assert values(losses) == pytest.approx({"ce": 0.1 * CE, "kd": 0.9 * soft(theta).item()}, rel=1e-5)
        (found,) = torch.autograd.grad(losses["kd"], module.theta)
        assert found.item() == pytest.approx(-factor * 0.9 * plain.item(), rel=1e-4)
    decoupled = configure("ctkd", {"base": "dkd"}).loss(step(auxiliary=nn.ModuleDict({"temperature": module})))
    expected = dkd.dkd_loss(STUDENT_LOGITS, TEACHER_LOGITS, LABELS, module(0.0), 1.0, 8.0)
    assert values(decoupled)["kd"] == pytest.approx(0.9 * expected.item(), rel=1e-6)


def test_temperature_rises_in_training_where_that_makes_the_loss_larger(digits: Splits) -> None:
    run = started(spec_of("ctkd", *CNN, ramp=0.0, recipe={"weight_decay": 0.0, "lr": 0.1}), digits)
    before = run.auxiliary["temperature"].theta.item()
    seen = run.watch()
    run.train()
    after = run.auxiliary["temperature"].theta
    signals = seen[0].step.student.logits.detach(), seen[0].step.teacher.logits
    losses = [kd_loss(*signals, 1 + 20 * torch.as_tensor(theta).sigmoid()).item() for theta in (before, after.item())]
    assert after.item() != before and losses[1] > losses[0]


def test_born_again_generations_each_learn_from_the_one_before(digits: Splits) -> None:
    learner = configure("ban", {"generations": 2, "label_weight": 0.25})
    stages = list(learner.stages((TEACHER,)))
    names = [Net("student", "gen_0"), Net("student", "gen_1"), STUDENT]
    assert [stage.students for stage in stages] == [(name,) for name in names]
    assert [stage.teachers for stage in stages] == [(), (names[0],), (names[1],)]
    assert [stage.epochs for stage in stages] == [1.0, 1.0, 1.0] and not learner.needs_teacher
    assert values(stages[0].loss(step())) == pytest.approx({"ce": CE})
    soft = kd_loss(STUDENT_LOGITS, TEACHER_LOGITS, 1.0).item()
    assert values(stages[2].loss(step())) == pytest.approx({"ce": CE / 4, "kd": soft}, rel=1e-6)


def test_teacher_free_forms(digits: Splits) -> None:
    program = tfkd.virtual_teacher_loss(STUDENT_LOGITS, LABELS, 0.1, 20.0, 100.0, 0.99).item()
    assert sum(losses_of("tfkd").values()) == pytest.approx(program, rel=1e-6)
    paper = losses_of("tfkd", divergence="paper", alpha=0.5, temperature=3.0)
    soft = tfkd.softened_divergence(STUDENT_LOGITS, LABELS, 3.0, 0.99).item()
    assert paper == pytest.approx({"ce": CE / 2, "virtual": soft / 2}, rel=1e-6)
    first, second = configure("tfkd", {"form": "self", "alpha": 0.95, "temperature": 6.0}).stages((TEACHER,))
    assert (first.students, first.teachers) == (second.teachers, ()) and second.students == (STUDENT,)
    soft = kd_loss(STUDENT_LOGITS, TEACHER_LOGITS, 6.0).item()
    assert values(second.loss(step())) == pytest.approx({"ce": 0.05 * CE, "kd": 0.95 * soft}, rel=1e-6)
    outcome, _, memory = carried_out(spec_of("tfkd", *CNN, form="self"), digits)
    assert outcome.status == "done" and [epoch.stage for epoch in memory.epochs] == ["first", "distill"]


def test_modern_losses_can_be_added_and_nst_stays_what_it_was_in_compositions(digits: Splits) -> None:
    outcome, _, memory = carried_out(spec_of("kd+dkd+rkd+cc", *CNN), digits)
    assert outcome.status == "done"
    assert {"student/ce", "student/kd", "student/dkd", "student/rkd", "student/cc"} <= memory.epochs[0].losses.keys()
    assert configure("kd+nst", {}).needed() == {"tokens"} and configure("nst", {}).needed() == {"features"}
    for alone in ("ban", "tfkd"):
        with pytest.raises(ValueError, match="no loss on one teacher"):
            REGISTRY["textbrewer"](losses=f"kd+{alone}")  # type: ignore[call-arg]


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("dkd", {"warmup": 2.0}, "warmup must lie between 0 and 1"),
    ("logit_std", {"base": "mlkd"}, "base must be one of kd, dkd"),
    ("rkd", {"angle_weight": -1.0}, "angle_weight must not be negative"),
    ("abkd", {"beta": 0.0}, "beta must be positive"),
    ("cc", {"form": "gauss"}, "form must be one of neighbours, kernel"),
    ("tfkd", {"correct": 1.0}, "correct must lie between 0 and 1"),
    ("ban", {"generations": 0}, "generations must be positive"),
    ("ctkd", {"span": 0.0}, "span must be positive"),
    ("nst", {"depths": (1.5,)}, "depth must lie between 0 and 1"),
]


@pytest.mark.parametrize(("name", "params", "words"), BAD)
def test_hyperparameters_out_of_range_are_named(name: str, params: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        REGISTRY[name](**params)
