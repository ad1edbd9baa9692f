"""Compositions of methods: their sum, weights, layers, temperatures, schedules, teachers, auxiliary and refusals."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kdbench.bench.training.engine
from kdbench.bench.configure import configure, method_of
from kdbench.bench.data.splits import Splits
from kdbench.bench.errors import InputError
from kdbench.bench.record import Stopped
from kdbench.bench.spec import Spec
from kdbench.methods import REGISTRY
from kdbench.methods.base import Step
from tests.methods.options import (
    CNN,
    CPU,
    LARGE,
    SMALL,
    carried_out,
    memory_of,
    signals,
    spec_of,
    started,
    step_of,
    values,
    vit,
)

SEVERAL = {"epochs": 4, "lr": 0.01}


def brewed(step: Step, losses: str, **params: Any) -> dict[str, Tensor]:
    return configure("textbrewer", {"losses": losses, "hard_weight": 1.0, **params}).loss(step)


def own(step: Step, method: str, **params: Any) -> Tensor:
    """A method's own losses without the hard one."""
    losses = configure(method, params).loss(step)
    return torch.stack([value for name, value in losses.items() if name != "ce"]).sum()


@pytest.fixture
def step() -> Step:
    """A student and a teacher with four stages, a quarter into training."""
    return step_of(signals(0, 2, 3, 4, 5), signals(1, 6, 7, 8, 9), progress=0.25)


def test_composition_on_the_command_line_is_the_composing_method() -> None:
    composed = configure("kd+0.5*at", {})
    assert composed.id == "textbrewer" and composed.hyperparameters()["losses"] == "kd+0.5*at"
    assert composed == configure("textbrewer", {"losses": "kd+0.5*at", "hard_weight": 1.0})
    assert configure("kd+0.5*at", {"hard_weight": "0"}) == configure("textbrewer", {"losses": "kd+0.5*at"})
    assert configure("kd+at", {"weight": "2"}).hyperparameters()["weight"] == 2
    assert configure("at(beta=3)", {}).id == "textbrewer" and configure("at", {}).id == "at"


def test_composed_loss_is_the_sum_of_the_methods_own_losses(step: Step) -> None:
    losses = brewed(step, "kd+at")
    assert list(losses) == ["ce", "kd", "at"]
    torch.testing.assert_close(losses["kd"], own(step, "kd"))
    torch.testing.assert_close(losses["at"], own(step, "at"))
    torch.testing.assert_close(losses["ce"], F.cross_entropy(step.student.logits, step.targets))
    both = brewed(step, "at(alpha=0.5)")  # a method with two losses beside the hard one
    torch.testing.assert_close(both["at"], own(step, "at", alpha=0.5))
    assert both["at"] > losses["at"]


def test_composed_loss_in_a_run_is_that_of_the_methods_on_its_signals(digits: Splits) -> None:
    _, step, losses = started(spec_of("textbrewer", *CNN, losses="kd + 2*sp"), digits).one_update()
    assert values(losses)["kd"] == pytest.approx(own(step, "kd").item())
    assert values(losses)["sp"] == pytest.approx(2 * own(step, "sp").item())


def test_weights_scale_their_terms(step: Step) -> None:
    plain = brewed(step, "kd+at")
    losses = brewed(step, "2*kd+0.5*at", weight=3.0, hard_weight=0.25)
    for name, factor in {"kd": 6.0, "at": 1.5, "ce": 0.25}.items():
        torch.testing.assert_close(losses[name], factor * plain[name])
    torch.testing.assert_close(brewed(step, "1e-3*kd")["kd"], 1e-3 * plain["kd"])
    assert not brewed(step, "0*kd+at")["kd"]


def test_terms_of_one_method_are_kept_apart(step: Step) -> None:
    losses = brewed(step, "at(depths=[0.0])+kd+at(depths=[1.0])")
    assert list(losses) == ["ce", "at", "kd", "at_3"]
    torch.testing.assert_close(losses["at"], own(step, "at", depths=[0.0]))
    torch.testing.assert_close(losses["at_3"], own(step, "at", depths=[1.0]))


def test_depths_and_other_hyperparameters_reach_their_term(step: Step) -> None:
    losses = brewed(step, "at(depths=[0.0,1.0],teacher_depths=[0.3,0.7],beta=50,form=max)+kd(alpha=0.3)")
    given: dict[str, Any] = {"depths": [0.0, 1.0], "teacher_depths": [0.3, 0.7], "beta": 50.0, "form": "max"}
    torch.testing.assert_close(losses["at"], own(step, "at", **given))
    torch.testing.assert_close(losses["kd"], own(step, "kd", alpha=0.3))
    for name in ("teacher_depths", "beta", "form"):
        fewer = {key: value for key, value in given.items() if key != name}
        assert abs(own(step, "at", **fewer) - losses["at"]) > 1e-4 * losses["at"], name


def test_temperature_holds_for_terms_that_do_not_set_it(step: Step) -> None:
    losses = brewed(step, "kd+kd(temperature=2)+at(alpha=0.5)+sp", temperature=7.0)
    torch.testing.assert_close(losses["kd"], own(step, "kd", temperature=7.0))
    torch.testing.assert_close(losses["kd_2"], own(step, "kd", temperature=2.0))
    torch.testing.assert_close(losses["at"], own(step, "at", alpha=0.5, temperature=7.0))
    torch.testing.assert_close(losses["sp"], own(step, "sp"))
    assert abs(losses["kd"] - losses["kd_2"]) > 1e-3


@pytest.mark.parametrize(("progress", "temperature"), [(0.0, 8.0), (0.25, 6.5), (1.0, 2.0)])
def test_temperature_goes_linearly_to_its_end(progress: float, temperature: float) -> None:
    step = step_of(signals(0), signals(1), progress=progress)
    losses = brewed(step, "kd+kd(temperature=3)", temperature=8.0, temperature_end=2.0)
    torch.testing.assert_close(losses["kd"], own(step, "kd", temperature=temperature))
    torch.testing.assert_close(losses["kd_2"], own(step, "kd", temperature=3.0))


@pytest.mark.parametrize(
    ("soft", "hard", "factors"),
    [
        ("constant", "constant", (1, 1)),
        ("linear_decay", "linear_growth", (0.75, 0.25)),
        ("linear_growth", "constant", (0.25, 1)),
        ("constant", "linear_decay", (1, 0.75)),
    ],
)
def test_schedules_scale_distillation_and_hard_loss_apart(
    soft: str, hard: str, factors: tuple[float, float], step: Step
) -> None:
    plain, losses = brewed(step, "kd+at"), brewed(step, "kd+at", schedule=soft, hard_schedule=hard)
    for name, factor in {"kd": factors[0], "at": factors[0], "ce": factors[1]}.items():
        torch.testing.assert_close(losses[name], factor * plain[name])


def test_two_teachers_are_averaged_unless_the_method_takes_several() -> None:
    student, first, second = signals(0, 2, 3), signals(1, 4, 5), signals(2, 6, 7)
    both = step_of(student, first, second)
    alone = [step_of(student, teacher) for teacher in (first, second)]
    losses = brewed(both, "kd+at+multi_teacher")
    for name in ("kd", "at"):
        torch.testing.assert_close(losses[name], (own(alone[0], name) + own(alone[1], name)) / 2)
    torch.testing.assert_close(losses["multi_teacher"], own(both, "multi_teacher"))


def test_each_teacher_has_modules_of_its_own(digits: Splits) -> None:
    run = started(spec_of("textbrewer", SMALL, LARGE, vit(), losses="kd+vid(logit_weight=1)+2*vid"), digits)
    auxiliary = copy.deepcopy(run.auxiliary)
    assert set(auxiliary) == {f"term_{term}_teacher_{teacher}" for term in (2, 3) for teacher in (1, 2)}
    assert ["logits" in auxiliary[f"term_{term}_teacher_1"] for term in (2, 3)] == [True, False]
    assert auxiliary["term_2_teacher_1"]["logits"].mean.weight.shape == (10, 16)
    channels = [auxiliary[f"term_2_teacher_{teacher}"]["head_2"].raw.shape[0] for teacher in (1, 2)]
    assert channels == [64, 24]
    _, step, losses = run.one_update()
    parts = [own_with(step, "vid", auxiliary[f"term_2_teacher_{i + 1}"], i, logit_weight=1.0) for i in (0, 1)]
    assert values(losses)["vid"] == pytest.approx(sum(parts) / 2, rel=1e-5)
    touched = [p.grad is not None and bool(p.grad.any()) for p in run.auxiliary.parameters()]
    assert touched and all(touched)


def own_with(step: Step, method: str, auxiliary: nn.ModuleDict, teacher: int, **params: Any) -> float:
    seen = dataclasses.replace(step, auxiliary=auxiliary, teachers=(step.teachers[teacher],))
    return own(seen, method, **params).item()


@pytest.mark.parametrize("stop", [1, 3])
def test_interrupted_composition_with_modules_goes_on_to_the_same_weights(stop: int, digits: Splits) -> None:
    spec = spec_of("textbrewer", *CNN, losses="kd+0.1*vid", recipe=SEVERAL)
    outcome, files, _ = carried_out(spec, digits)
    first = memory_of(spec, digits, stop_after=stop)
    with pytest.raises(Stopped):
        kdbench.bench.training.engine.run(spec, digits, first, CPU)
    resumed, same, rest = carried_out(spec, digits, resume=first.state)
    assert outcome.status == "done" and len(rest.epochs) == 4 - stop
    assert same == files and resumed.scores == outcome.scores


def test_composition_asks_for_all_that_its_terms_need(digits: Splits) -> None:
    composed = configure("kd+at+at_grad(symmetry=1)", {})
    assert composed.needed() == {"features", "input_grad", "mirrored_grad"}
    outcome, _, memory = carried_out(spec_of("kd+at+at_grad(symmetry=1)", *CNN), digits)
    assert outcome.status == "done", outcome.reason
    assert set(memory.epochs[0].losses) == {f"student/{name}" for name in ("ce", "kd", "at", "at_grad")}


BAD = [
    ("kdd+at", ("'kdd'", "near: kd, ")),
    ("kd+fsp", ("fsp is more than a loss",)),
    ("fitnets", ("fitnets is more than a loss",)),
    ("eskd(teacher_epochs=0.5)", ("eskd is more than a loss",)),
    ("kd(omit=[3])", ("kd is more than a loss",)),
    ("vild", ("vild is more than a loss",)),
    ("distilbert", ("distilbert is more than a loss",)),
    ("dml", ("dml has no loss on one teacher",)),
    ("student", ("student has no loss on one teacher",)),
    ("textbrewer", ("textbrewer has no loss on one teacher",)),
    ("at(betta=3)", ("at takes NAME=VALUE of beta", "'betta=3'")),
    ("at(beta)", ("at takes NAME=VALUE of beta", "'beta'")),
    ("at(beta=-1)", ("beta must not be negative", "-1")),
    ("at(depths=[2.0])", ("depth must lie between 0 and 1", "2.0")),
    ("-1*kd", ("weight must not be negative", "'-1*kd'")),
    ("1e999*kd", ("weight must not be negative", "'1e999*kd'")),
    ("x*kd", ("a term of losses reads", "'x*kd'")),
    ("kd*2", ("a term of losses reads", "'kd*2'")),
    ("kd(temperature=2", ("a term of losses reads", "'kd(temperature=2'")),
    ("kd)", ("a term of losses reads", "'kd)'")),
    ("at(depths=[0.5)+kd", ("a term of losses reads", "'at(depths=[0.5)+kd'")),
    ("kd+", ("a term of losses reads", "''")),
    ("", ("a term of losses reads", "''")),
]


@pytest.mark.parametrize(("losses", "words"), BAD)
def test_composition_that_cannot_be_read_is_an_error_that_names_the_term(losses: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        REGISTRY["textbrewer"](losses=losses)  # type: ignore[call-arg]
    assert all(word in str(caught.value) for word in words), caught.value
    with pytest.raises(InputError, match="method textbrewer: "):
        configure("textbrewer", {"losses": losses})


@pytest.mark.parametrize("losses", ["at(beta=abc)", "at(depths=0.5)", "kd(alpha=null)", "1e*kd", "1.2.3*kd"])
def test_composition_with_a_value_of_the_wrong_type_is_an_error_that_names_the_term(losses: str) -> None:
    with pytest.raises(InputError) as caught:
        configure("textbrewer", {"losses": losses})
    assert losses in str(caught.value) or losses.split("(")[0] + ":" in str(caught.value)


def test_composition_that_cannot_be_read_is_found_before_anything_is_trained() -> None:
    spec = spec_of("kd", *CNN)
    with pytest.raises(InputError, match="kdd"):
        method_of(Spec(**{**spec.model_dump(), "method": "kdd+at", "params": {}}))
