from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from kdbench.bench.data.splits import Splits
from kdbench.bench.spec import ModelSpec, Recipe, Spec
from kdbench.bench.training.calibration import BATCHES, calibrated
from kdbench.methods.base import Unsupported
from tests.conftest import DATA, Memory
from tests.harness import CPU, OpenRun

Untrained = Callable[[ModelSpec], bytes]
TEACHER, STUDENT = ModelSpec(name="cifar_resnet8"), ModelSpec(name="cifar_resnet8_quarter")
RECIPE = Recipe(epochs=2, batch_size=32, augment="crop")


def spec_of(method: str, **params: object) -> Spec:
    teachers = (TEACHER.model_copy(update={"weights": "run:t"}),)
    return Spec(method=method, params=params, student=STUDENT, teachers=teachers, data=DATA, recipe=RECIPE, seed=3)


@pytest.fixture
def recorder(untrained: Untrained) -> Memory:
    return Memory({"run:t": untrained(TEACHER)})


def test_calibrated_term_pulls_as_hard_as_the_labels(digits: Splits, recorder: Memory) -> None:
    """Against norms taken by hand from the engine's own batches, each the mean over the first of them."""
    (value,) = calibrated(spec_of("at", beta=5.0), digits, recorder, CPU).values()
    run = OpenRun(spec_of("at", beta=1.0), digits, recorder)
    (student,), pulls = run.students, []
    student.train()
    parameters = list(student.network.parameters())
    (teacher,) = [run.networks.teacher(net) for net in run.entered.stage.teachers]
    for place, batch in enumerate(run.trainer.batches().epoch(3, 1)):
        if place == BATCHES:
            break
        needs = run.method.needs
        task, targets = run.setup.task, batch.targets
        mine = task.observe(student.network, batch.inputs, targets, needs, training=True)
        theirs = task.observe(teacher, batch.inputs, targets, needs)
        losses = run.method.loss(run.trainer.step(batch, mine, (theirs,)))
        pull = []
        for name in ("ce", "at"):
            gradients = torch.autograd.grad(losses[name], parameters, retain_graph=True, allow_unused=True)
            pull.append(torch.cat([each.flatten() for each in gradients if each is not None]).norm())
        pulls.append(torch.stack(pull))
    labels, term = torch.stack(pulls).mean(dim=0).tolist()
    assert value == pytest.approx(labels / term, rel=0.06) and value == float(f"{value:.2g}")


def test_calibration_draws_nothing_that_a_run_draws_and_gives_the_same_again(digits: Splits, recorder: Memory) -> None:
    spec = spec_of("sp", weight=3000.0)
    torch.manual_seed(5)
    first = calibrated(spec, digits, recorder, CPU)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    assert first == calibrated(spec.model_copy(update={"params": {"weight": 0.5}}), digits, recorder, CPU)
    assert recorder.epochs == [] and first["weight"] > 0


@pytest.mark.parametrize(
    ("method", "params", "names"),
    [
        ("student", {}, set()),
        ("fitnets", {}, {"weight"}),
        ("fitnets", {"one_stage": True}, {"hint_weight"}),
        ("fsp", {}, {"weight"}),
        ("textbrewer", {"losses": "at+sp"}, {"weights.at", "weights.sp"}),
    ],
)
def test_weights_in_play_are_calibrated_one_by_one(
    digits: Splits, recorder: Memory, method: str, params: dict[str, object], names: set[str]
) -> None:
    values = calibrated(spec_of(method, **params), digits, recorder, CPU)
    assert values.keys() == names and all(math.isfinite(value) and value > 0 for value in values.values())


def test_term_without_a_gradient_is_left_out(digits: Splits, recorder: Memory) -> None:
    """A weight that grows from nothing does not pull before training."""
    assert calibrated(spec_of("textbrewer", losses="at", schedule="linear_growth"), digits, recorder, CPU) == {}


def test_pair_on_which_a_method_cannot_work_is_unsupported(digits: Splits, recorder: Memory) -> None:
    with pytest.raises(Unsupported):
        calibrated(spec_of("tinybert"), digits, recorder, CPU)
