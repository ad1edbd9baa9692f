"""What every registered method must keep to; a new file is tested by being there."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import bench.training.engine
from bench.configure import configure
from bench.data.splits import Splits
from bench.networks.signals import GRADIENTS, observe
from bench.record import Outcome, Stopped
from bench.spec import Compute, ModelSpec, Recipe, Spec
from bench.teachers.backends import Memory as CacheBackend
from bench.teachers.cache import TeacherCache
from bench.training.engine import updates
from bench.training.interleave import interleave
from methods import REGISTRY
from methods.base import KNOWLEDGE, SAMPLES, SIGNALS, Data, Method, Net, as_given
from methods.hooks import nothing
from tests.conftest import DATA, Memory
from tests.harness import OpenRun

METHODS = sorted(REGISTRY)
every_method = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(f"contract of {name}")) for name in METHODS]
)
"""In one process for each, so that the undisturbed run is carried out once."""
CPU = torch.device("cpu")
RECIPE = Recipe(epochs=4, batch_size=32, lr=0.02, augment="crop", schedule="cosine")
CNN = (ModelSpec(name="cifar_resnet8"), ModelSpec(name="cifar_resnet8_quarter"))
VIT = tuple(
    ModelSpec(name="vit_tiny_patch16_224", args={"patch_size": 4, "embed_dim": 24, "num_heads": 2, "depth": depth})
    for depth in (4, 2)
)
PAIRS = {"cnn to cnn": CNN, "vit to vit": VIT, "vit to cnn": (VIT[0], CNN[1]), "cnn to vit": (CNN[0], VIT[1])}
HOME = {name: "vit to vit" if REGISTRY[name].needs & {"tokens", "qkv"} else "cnn to cnn" for name in METHODS}
"""The pair on which a method must work."""
Untrained = Callable[[ModelSpec], bytes]


def make_spec(method: str, pair: str | None = None, **changes: Any) -> Spec:
    teacher, student = PAIRS[pair or HOME[method]]
    teachers = (teacher.model_copy(update={"weights": "run:t"}),)
    params = configure(method, {}).hyperparameters()
    spec = Spec(method=method, params=params, student=student, teachers=teachers, data=DATA, recipe=RECIPE, seed=1)
    return spec.model_copy(update=changes)


def run(spec: Spec, digits: Splits, untrained: Untrained, **recorder: Any) -> tuple[Outcome, dict[str, bytes], Memory]:
    teacher = spec.teachers[0].model_copy(update={"weights": "scratch"})
    memory = Memory({"run:t": untrained(teacher)}, **recorder)
    outcome, files = bench.training.engine.run(spec, digits, memory, CPU)
    return outcome, files, memory


@pytest.fixture(scope="module")
def whole(digits: Splits, untrained: Untrained) -> Callable[[str], tuple[Outcome, dict[str, bytes], Memory]]:
    """An undisturbed run of each method, once."""
    done: dict[str, tuple[Outcome, dict[str, bytes], Memory]] = {}

    def get(method: str) -> tuple[Outcome, dict[str, bytes], Memory]:
        if method not in done:
            done[method] = run(make_spec(method), digits, untrained, keep_all=True)
        return done[method]

    return get


@every_method
def test_method_says_where_it_comes_from_and_what_it_needs(name: str) -> None:
    cls = REGISTRY[name]
    assert cls.paper.title and cls.paper.authors and 1980 < cls.paper.year < 2100
    assert cls.__doc__ and len(cls.__doc__) > 80
    assert cls.needs <= SIGNALS | SAMPLES and cls.knowledge in KNOWLEDGE
    assert cls.id == name == cls.__module__.rpartition(".")[2]


@every_method
def test_defaults_lie_in_the_search_space(name: str) -> None:
    method = configure(name, {})
    parameters = method.hyperparameters()
    for field, space in method.space().items():
        assert space._contains(space.to_internal_repr(parameters[field])), field


@every_method
def test_method_that_is_given_unlabelled_samples_says_so(name: str) -> None:
    data = Data(inputs=dark(6), targets=torch.arange(6) % 3, unlabelled=dark(9) + 200, classes=3)
    options = [{"unlabelled": value} for value in (True, False)]
    for params in options if "unlabelled" in configure(name, {}).hyperparameters() else [{}]:
        method = configure(name, params)
        stages = method.stages((Net("teacher"),))
        given = [stage.data(data, Oracle()).inputs for stage in stages]
        assert any(bool((images > 200).any()) for images in given) == method.uses_unlabelled(), params


def dark(count: int) -> Tensor:
    """Images of at most 50, all of them different."""
    return torch.randint(0, 50, (count, 1, 8, 8), generator=torch.Generator().manual_seed(count), dtype=torch.uint8)


class Oracle:
    """The networks of a run as a stage's data may use them: each is sure of class 0."""

    def predict(self, net: Net, inputs: Any) -> Tensor:
        return torch.tensor([9.0, 0.0, 0.0]).expand(len(inputs), 3)

    def generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(0)


@every_method
def test_run_has_finite_losses_and_scores(name: str, whole: Callable[..., Any]) -> None:
    outcome, files, memory = whole(name)
    assert outcome.status == "done", outcome.reason
    assert len(memory.epochs) == outcome.cost["epochs"] == memory.epochs[0].of >= RECIPE.epochs
    assert all(math.isfinite(value) for epoch in memory.epochs for value in epoch.losses.values())
    modules = torch.load(io.BytesIO(memory.state), weights_only=True)["auxiliary"]["student"]
    predicts = REGISTRY[name].predictions is not Method.predictions
    auxiliary = {"last_auxiliary", "best_auxiliary"} if predicts and modules else set()
    assert set(files) == {"last", "best"} | auxiliary and 0 < outcome.headline("last", "test", "accuracy") <= 1
    assert 0 <= outcome.headline("best", "test", "agreement") <= 1


@every_method
def test_answers_kept_or_shared_side_by_side_change_no_bit(
    name: str, whole: Callable[..., Any], digits: Splits, untrained: Untrained
) -> None:
    outcome, files, memory = whole(name)
    spec, cache = make_spec(name), TeacherCache(CacheBackend(2**30))
    recorders = [Memory({"run:t": untrained(PAIRS[HOME[name]][0])}) for _ in range(3)]
    first, second = interleave([updates(spec, digits, recorder, CPU, cache) for recorder in recorders[:2]], CPU)
    third = bench.training.engine.run(spec, digits, recorders[2], CPU, cache)
    for result, recorder in zip((first, second, third), recorders, strict=True):
        again, same = result
        assert same == files and again.scores == outcome.scores
        assert [epoch.losses for epoch in recorder.epochs] == [epoch.losses for epoch in memory.epochs]
        assert again.cost["teacher_forwards"] == outcome.cost["teacher_forwards"]
    asked, cached = outcome.cost["teacher_forwards"], third[0].cost["teacher_cached"]
    if REGISTRY[name].needs & GRADIENTS:
        assert cached == 0
    elif len(list(configure(name, {}).stages((Net("teacher"),)))) == 1:
        assert cached == asked and outcome.cost["teacher_cached"] == 0


@pytest.mark.parametrize(("name", "pair"), [(name, pair) for name in METHODS for pair in PAIRS if pair != HOME[name]])
def test_other_pairs_work_or_are_refused_with_a_reason(
    name: str, pair: str, digits: Splits, untrained: Untrained
) -> None:
    recipe = RECIPE.model_copy(update={"epochs": 2})
    outcome, _, memory = run(make_spec(name, pair, recipe=recipe), digits, untrained)
    assert outcome.status == "done" or (outcome.status == "unsupported" and len(outcome.reason) > 20)
    assert all(math.isfinite(value) for epoch in memory.epochs for value in epoch.losses.values())


@every_method
def test_bf16_in_channels_last_gives_finite_losses(name: str, digits: Splits, untrained: Untrained) -> None:
    spec = make_spec(name, recipe=RECIPE.model_copy(update={"epochs": 2}))
    fast = {"compute": Compute(precision="bf16", layout="channels_last")}
    teachers = tuple(teacher.model_copy(update=fast) for teacher in spec.teachers)
    spec = spec.model_copy(update={"student": spec.student.model_copy(update=fast), "teachers": teachers})
    outcome, _, memory = run(spec, digits, untrained)
    assert outcome.status == "done", outcome.reason
    assert all(math.isfinite(value) for epoch in memory.epochs for value in epoch.losses.values())


@every_method
def test_equal_seeds_give_equal_weights_and_other_seeds_others(
    name: str, whole: Callable[..., Any], digits: Splits, untrained: Untrained
) -> None:
    outcome, files, _ = whole(name)
    again, same, _ = run(make_spec(name), digits, untrained)
    assert same == files and again.scores == outcome.scores
    _, other, _ = run(make_spec(name, seed=2), digits, untrained)
    assert other["last"] != files["last"]


@every_method
def test_run_that_is_stopped_leaves_the_checkpoint_of_that_epoch(
    name: str, whole: Callable[..., Any], digits: Splits, untrained: Untrained
) -> None:
    _, _, memory = whole(name)
    stopped = Memory({"run:t": untrained(PAIRS[HOME[name]][0])}, stop_after=1)
    with pytest.raises(Stopped):
        bench.training.engine.run(make_spec(name), digits, stopped, CPU)
    assert [epoch.number for epoch in stopped.epochs] == [1] and list(stopped.states) == [1]
    assert stopped.epochs[0].losses == memory.epochs[0].losses
    states = (torch.load(io.BytesIO(each), weights_only=True) for each in (stopped.state, memory.states[1]))
    mine, theirs = ({**state, "cost": without_times(state["cost"])} for state in states)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def without_times(cost: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in cost.items() if not name.endswith("seconds")}


@pytest.mark.parametrize("stop", [1, 2, 3])
@every_method
def test_interrupted_run_goes_on_to_the_same_weights(
    name: str, stop: int, whole: Callable[..., Any], digits: Splits, untrained: Untrained
) -> None:
    outcome, files, memory = whole(name)
    resumed, same, rest = run(make_spec(name), digits, untrained, resume=memory.states[stop])
    assert same == files and resumed.scores == outcome.scores
    assert [epoch.number for epoch in rest.epochs] == [epoch.number for epoch in memory.epochs[stop:]]
    assert [epoch.losses for epoch in rest.epochs] == [epoch.losses for epoch in memory.epochs[stop:]]
    counts = ("samples", "teacher_forwards", "epochs")
    assert [resumed.cost[name] for name in counts] == [outcome.cost[name] for name in counts]


@every_method
def test_teacher_stands_still_and_gradients_reach_every_trainable_part(
    name: str, digits: Splits, untrained: Untrained
) -> None:
    teacher = untrained(PAIRS[HOME[name]][0])
    opened = OpenRun(make_spec(name), digits, Memory({"run:t": teacher}))
    touched: set[str] = set()
    for _ in opened.all_updates():
        touched.update(name for name, value in parameters(opened) if has_gradient(value))
    wanted = {name for name, _ in parameters(opened) if "/auxiliary/" in name} | deployed(opened, digits)
    assert wanted and wanted <= touched
    state = opened.networks.teacher(Net("teacher")).state_dict()
    before = safetensors.torch.load(teacher)
    assert all(torch.equal(state[key], before[key]) for key in before)


def parameters(opened: OpenRun) -> list[tuple[str, torch.nn.Parameter]]:
    """Those of the students of the stage, and of their auxiliary modules, by student/part/name."""
    return [
        (f"{student.net.name}/{part}/{name}", value)
        for student in opened.students
        for part, module in (("network", student.network), ("auxiliary", student.auxiliary))
        for name, value in module.named_parameters()
    ]


def has_gradient(value: torch.nn.Parameter) -> bool:
    return value.grad is not None and bool(value.grad.abs().sum() > 0)


def deployed(opened: OpenRun, digits: Splits) -> set[str]:
    """The parameters on which any student's predictions depend."""
    found = set()
    images, labels = digits.validation.inputs[:32].float() / 255, digits.validation.targets[:32]
    for student in opened.students:
        student.optimizer.zero_grad(set_to_none=True)
        signals = observe(student.network, images, labels, opened.setup.plan.needs, training=True)
        outputs = opened.method.predictions(signals, student.auxiliary).values()
        torch.stack([logits.square().sum() for logits in outputs]).sum().backward()
        found |= {name for name, value in parameters(opened) if value.grad is not None}
    return found


def test_every_method_starts_from_equal_student_weights_and_sees_equal_batches(
    digits: Splits, untrained: Untrained
) -> None:
    starts, batches = [], []
    for name in METHODS:
        memory = Memory({"run:t": untrained(PAIRS["vit to vit"][0])})
        opened = OpenRun(make_spec(name, "vit to vit"), digits, memory)
        if opened.stages[0].options.prepare is not nothing:
            continue
        for stage in range(len(opened.stages)):
            opened.enter(stage)
        state = opened.students[0].network.state_dict()
        starts.append({key: value.clone() for key, value in state.items()})
        if opened.stages[0].data is as_given:
            opened.enter(0)
            seen = opened.watch()
            batches.append(torch.cat([seen[-1].step.inputs for _ in opened.all_updates()]))
    for start in starts[1:]:
        assert all(torch.equal(start[key], starts[0][key]) for key in starts[0])
    assert len(batches) >= 7 and all(torch.equal(seen[: len(batches[0])], batches[0]) for seen in batches[1:])
