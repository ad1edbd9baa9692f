"""Methods of several stages and of targets that change: what each stage learns, for how long, from whom."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kdbench.bench.configure import configure
from kdbench.bench.data.splits import Splits
from kdbench.bench.errors import InputError
from kdbench.methods.base import Net, Signals
from kdbench.methods.multi_teacher import averaged_kd_loss
from tests.methods.options import CNN, LARGE, SMALL, carried_out, signals, spec_of, started, step_of, values, vit


def test_annealing_follows_growing_logits_and_then_the_labels(digits: Splits) -> None:
    spec = spec_of("scheduled_kd", *CNN, max_temperature=4, recipe={"epochs": 6, "schedule": "cosine"})
    run = started(spec, digits)
    seen = run.watch()
    run.finish()
    assert [stage for stage, _, _ in seen] == ["annealing"] * 4 * run.steps + ["labels"] * 2 * run.steps
    for index, (stage, step, losses) in enumerate(seen):
        assert list(losses) == (["annealed"] if stage == "annealing" else ["ce"])
        if stage == "annealing":
            share = (1 + index // run.steps) / 4
            by_hand = F.mse_loss(step.student.logits, share * step.teacher.logits).item()
            assert values(losses)["annealed"] == pytest.approx(by_hand, rel=1e-5)
        else:
            assert not step.teachers


def test_annealing_may_have_no_labels_and_its_ranges_are_its_own() -> None:
    method = configure("scheduled_kd", {"annealed": 1.0})
    assert [(stage.name, stage.epochs) for stage in method.stages((Net("teacher"),))] == [("annealing", 1.0)]
    assert set(method.space()) == {"max_temperature", "annealed"}
    practice = configure("scheduled_kd", {"form": "practice"})
    assert set(practice.space()) == {"temperature", "decay", "ramp", "normalise", "clip", "peak"}
    (stage,) = practice.stages((Net("teacher"),))
    assert stage.epochs == 1.0 and stage.options.clip_norm == 1.0
    with pytest.raises(InputError, match="form must be one of annealing, practice"):
        configure("scheduled_kd", {"form": "paper"})


def test_practice_alone_is_a_term_of_a_composition() -> None:
    step = step_of(signals(0), signals(1), progress=0.5)
    own = configure("scheduled_kd", {"form": "practice", "temperature": 4.0}).loss(step)["kd"]
    composed = configure("textbrewer", {"losses": "scheduled_kd(form=practice,temperature=4)"}).loss(step)
    torch.testing.assert_close(composed["scheduled_kd"], own)
    with pytest.raises(InputError, match="scheduled_kd is more than a loss"):
        configure("textbrewer", {"losses": "scheduled_kd"})


@pytest.mark.parametrize("params", [{}, {"form": "practice"}])
def test_scheduled_kd_learns_for_the_whole_schedule_in_either_form(params: Any, digits: Splits) -> None:
    outcome, _, memory = carried_out(spec_of("scheduled_kd", *CNN, recipe={"epochs": 3}, **params), digits)
    assert outcome.status == "done" and len(memory.epochs) == 3


def test_tolerant_teachers_generations_have_the_whole_schedule_each(digits: Splits) -> None:
    spec = spec_of("tolerant_teacher", *CNN, generations=2, recipe={"epochs": 2, "schedule": "cosine"})
    _, _, memory = carried_out(spec, digits)
    assert [epoch.stage for epoch in memory.epochs] == ["gen_0", "gen_0", "gen_1", "gen_1", "gen_2", "gen_2"]
    rates = [epoch.learning_rate for epoch in memory.epochs]
    assert rates[:2] == rates[2:4] == rates[4:]
    default = configure("tolerant_teacher", {})
    assert [stage.epochs for stage in default.stages(())] == [1.0, 1.0]
    assert set(default.space()) == {"gap_weight", "label_weight"}
    with pytest.raises(InputError, match="generation_epochs must be positive"):
        configure("tolerant_teacher", {"generation_epochs": 0})


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_student_with_smoothed_labels_learns_torchs_smoothed_cross_entropy(smoothing: float) -> None:
    step = step_of(signals(0), labels=torch.arange(6) % 5)
    losses = configure("student", {"label_smoothing": smoothing}).loss(step)
    expected = F.cross_entropy(step.student.logits, torch.arange(6) % 5, label_smoothing=smoothing)
    assert set(losses) == {"ce", "smoothing"}
    torch.testing.assert_close(losses["ce"] + losses["smoothing"], expected)
    assert set(configure("student", {}).loss(step)) == {"ce"} and not configure("student", {}).space()


def test_multi_teacher_without_triplets_reads_no_features(digits: Splits) -> None:
    method = configure("multi_teacher", {"beta": 0.0})
    assert method.needed() == frozenset() and configure("multi_teacher", {}).needed() == {"features"}
    step = step_of(Signals(signals(0).logits), Signals(signals(1).logits), Signals(signals(2).logits))
    losses = method.loss(step)
    soft = averaged_kd_loss(step.student.logits, [each.logits for each in step.teachers], 4.0)
    assert set(losses) == {"ce", "kd"}
    torch.testing.assert_close(losses["kd"], 0.9 * soft)
    outcome, _, _ = carried_out(spec_of("multi_teacher", SMALL, LARGE, vit(), beta=0.0), digits)
    assert outcome.status == "done"


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("at_grad", {"beta": ("at_grad",)}),
        ("vild", {"weight": ("embedding",)}),
        ("multi_teacher", {"beta": ("triplets",)}),
        *((name, {}) for name in ("kd", "eskd", "dml", "tolerant_teacher", "multi_exit", "student", "scheduled_kd")),
    ],
)
def test_weights_of_terms_that_an_untrained_student_has_are_searched_in_their_own_unit(
    name: str, weights: dict[str, tuple[str, ...]]
) -> None:
    method = configure(name, {})
    assert method.loss_weights() == weights and not set(weights) & set(method.space())


@pytest.mark.parametrize("name", ["at_grad", "vild", "multi_teacher"])
def test_terms_are_proportional_to_their_weights(name: str, digits: Splits) -> None:
    ((weight, (term,)),) = configure(name, {}).loss_weights().items()
    own = configure(name, {}).hyperparameters()[weight]
    losses = [
        values(started(spec_of(name, *CNN, **{weight: factor * own}), digits).one_update().losses) for factor in (1, 8)
    ]
    assert losses[1].pop(term) == pytest.approx(8 * losses[0].pop(term)) and losses[0] == losses[1]
