"""The way in which a network is computed must follow from what was measured once, and change no meaning."""

from __future__ import annotations

import functools
import itertools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import kdbench.bench.training.engine
import kdbench.bench.training.precision
from kdbench.bench.data.splits import Splits
from kdbench.bench.errors import InputError
from kdbench.bench.networks.build import build
from kdbench.bench.networks.signals import observe
from kdbench.bench.spec import Compute, DataSpec, ModelSpec, Recipe, Spec
from kdbench.bench.tasks import load, task_of
from kdbench.bench.teachers.backends import Memory as CacheBackend
from kdbench.bench.teachers.cache import TeacherCache
from kdbench.bench.training.precision import CANDIDATES, FAST, GAIN, PLAIN, chosen, timed
from kdbench.bench.training.stage_entry import frozen_teachers
from tests.conftest import Memory
from tests.harness import CPU, OpenRun
from tests.methods.options import CNN, LARGE, SMALL, spec_of, started

RECIPE = Recipe(epochs=2, batch_size=32)
LONG = Recipe(epochs=10_000, batch_size=32)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache that remembers nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_another_store_of_the_machine_chooses_alike_without_measuring(
    digits: Splits, tmp_path: Path, clock: Callable[..., list[str]]
) -> None:
    made = clock([1.0, 1.0, 1.0, 0.5])
    assert choice(digits, tmp_path / "a") == CANDIDATES[3]
    made = clock([1.0, 1.0, 1.0, 1.0])
    assert choice(digits, tmp_path / "b") == CANDIDATES[3] and made == []
    assert (tmp_path / "b" / "compute.json").exists()


def test_a_home_that_cannot_be_written_to_is_no_obstacle(
    digits: Splits, tmp_path: Path, home: Path, clock: Callable[..., list[str]]
) -> None:
    home.write_text("a file where a folder should be")
    made = clock([1.0, 0.5, 1.0, 1.0])
    assert choice(digits, tmp_path) == CANDIDATES[1] and made == ["eager"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Measurements that are made up; the list names those that were made."""

    def give(seconds: list[float], compiled: tuple[float, float] = (1e9, 1e9)) -> list[str]:
        made: list[str] = []
        monkeypatch.setattr(
            kdbench.bench.training.precision, "_eager", lambda *_: made.append("eager") or {"seconds": seconds}
        )
        monkeypatch.setattr(
            kdbench.bench.training.precision, "_compiled", lambda *_: made.append("compiled") or compiled
        )
        return made

    return give


def choice(digits: Splits, memory: Path, recipe: Recipe = RECIPE, precision: str = "measured", **args: Any) -> Compute:
    model = SMALL.model_copy(update={"args": args, "compute": Compute(compiled=True)})
    return chosen(task_of("image"), model, digits, recipe, precision, CPU, memory / "compute.json").compute


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ([1.0, 1.0, 1.0, 1.0], 0),
        ([1.0, GAIN, GAIN, GAIN], 0),
        ([1.0, GAIN - 0.01, 1.0, 1.0], 1),
        ([1.0, 1.0, 0.5, GAIN * 0.5], 2),
        ([1.0, 1.0, 0.5, GAIN * 0.5 - 0.01], 3),
        ([1.0, 0.5, 0.45, 0.44], 1),
        ([1.0, 2.0, 2.0, 0.8], 3),
    ],
)
def test_another_way_is_taken_only_if_it_is_clearly_faster(
    seconds: list[float], best: int, digits: Splits, tmp_path: Path, clock: Callable[..., Any]
) -> None:
    clock(seconds)
    assert choice(digits, tmp_path) == CANDIDATES[best]


@pytest.mark.parametrize(
    ("precision", "device", "compute"),
    [
        ("fp32", "cpu", PLAIN),
        ("fp32", "cuda", PLAIN),
        ("bf16", "cpu", FAST),
        ("bf16", "cuda", FAST),
        ("auto", "cpu", PLAIN),
        ("auto", "cuda", FAST),
        ("auto", "cuda:1", FAST),
    ],
)
def test_all_but_measured_follow_from_the_kind_of_device_and_write_nothing(
    precision: str, device: str, compute: Compute, digits: Splits, tmp_path: Path, clock: Callable[..., Any]
) -> None:
    made = clock([1.0, 0.1, 0.1, 0.1])
    asked = SMALL.model_copy(update={"compute": Compute(compiled=True)})
    for recipe in (RECIPE, LONG):
        model = chosen(
            task_of("image"), asked, digits, recipe, precision, torch.device(device), tmp_path / "compute.json"
        )
        assert model == SMALL.model_copy(update={"compute": compute})
    assert (PLAIN.precision, PLAIN.layout, PLAIN.compiled) == ("fp32", "contiguous", False)
    assert (FAST.precision, FAST.layout, FAST.compiled) == ("bf16", "channels_last", False)
    assert made == [] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["", "fp16", "BF16", "float32"])
def test_unknown_precision_is_refused(precision: str, digits: Splits, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="auto, measured, fp32 or bf16"):
        choice(digits, tmp_path, precision=precision)


def test_measured_once_for_a_model_its_arguments_and_batch(
    digits: Splits, tmp_path: Path, clock: Callable[..., Any]
) -> None:
    made = clock([1.0, 0.5, 1.0, 1.0])
    first = choice(digits, tmp_path)
    clock([1.0, 1.0, 0.1, 1.0])
    assert choice(digits, tmp_path) == first == CANDIDATES[1] and made == ["eager"]
    assert choice(digits, tmp_path, drop_rate=0.1) == CANDIDATES[2]
    assert choice(digits, tmp_path, RECIPE.model_copy(update={"batch_size": 16})) == CANDIDATES[2]
    assert choice(digits, tmp_path) == first
    assert len(json.loads((tmp_path / "compute.json").read_text())) == 3


def test_hand_written_file_decides(digits: Splits, tmp_path: Path, clock: Callable[..., Any]) -> None:
    clock([1.0] * 4)
    choice(digits, tmp_path)
    file = tmp_path / "compute.json"
    (name,) = json.loads(file.read_text())
    made = clock([1.0] * 4)
    file.write_text(json.dumps({name: {"seconds": [1.0, 1.0, 0.3, 1.0], "compiled": [10.0, 0.1]}}))
    assert choice(digits, tmp_path) == CANDIDATES[2]
    assert choice(digits, tmp_path, LONG) == CANDIDATES[2].model_copy(update={"compiled": True})
    assert made == []


@pytest.mark.parametrize(
    ("compiled", "taken"),
    [((10.0, 0.05), True), ((10.0, 0.099), False), ((1e9, 1e9), False), ((900.0, 0.05), False), ((800.0, 0.05), True)],
)
def test_compiling_must_repay_itself_twice(
    compiled: tuple[float, float], taken: bool, digits: Splits, tmp_path: Path, clock: Callable[..., Any]
) -> None:
    """10,000 epochs of 107 images are 33,437 steps: at 0.1 s, halved, they save 1672 s."""
    clock([0.1] * 4, compiled)
    assert choice(digits, tmp_path, LONG).compiled is taken


def test_short_run_does_not_try_to_compile(digits: Splits, tmp_path: Path, clock: Callable[..., Any]) -> None:
    made = clock([0.1] * 4, (0.0, 0.0))
    assert not choice(digits, tmp_path).compiled and made == ["eager"]


def test_what_compiling_takes_is_remembered_beside_what_was_known(
    digits: Splits, tmp_path: Path, clock: Callable[..., Any]
) -> None:
    made = clock([0.1] * 4, (10.0, 0.05))
    choice(digits, tmp_path)
    first = choice(digits, tmp_path, LONG)
    assert first.compiled and made == ["eager", "compiled"]
    made = clock([0.1] * 4, (1e9, 1e9))
    assert choice(digits, tmp_path, LONG) == first and made == []


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"x": 1}', '{"x": {}}', '{"x": {"seconds": [1]}}', "\x00"])
def test_damaged_file_is_named_with_a_remedy(
    text: str, digits: Splits, tmp_path: Path, clock: Callable[..., Any]
) -> None:
    clock([1.0] * 4)
    (tmp_path / "compute.json").write_text(text)
    with pytest.raises(InputError, match="compute.json is damaged.*remove it"):
        choice(digits, tmp_path)


def test_what_another_process_measured_meanwhile_stays_and_decides(
    digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Callable[..., Any]
) -> None:
    clock([1.0, 0.5, 1.0, 1.0])
    choice(digits, tmp_path, drop_rate=0.5)
    file = tmp_path / "compute.json"
    (other,) = json.loads(file.read_text())
    mine = other.replace('{"drop_rate": 0.5}', "{}")

    def late(*_: object) -> dict[str, Any]:
        known = json.loads(file.read_text())
        file.write_text(json.dumps(known | {mine: {"seconds": [1.0, 1.0, 1.0, 0.2]}}))
        return {"seconds": [1.0, 0.1, 1.0, 1.0]}

    monkeypatch.setattr(kdbench.bench.training.precision, "_eager", late)
    assert choice(digits, tmp_path) == CANDIDATES[3] == choice(digits, tmp_path)
    assert set(json.loads(file.read_text())) == {mine, other}


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    import multiprocessing

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write, args=(tmp_path / "compute.json", place)) for place in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert len(json.loads((tmp_path / "compute.json").read_text())) == 4 * 25
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))


def _write(file: Path, place: int) -> None:
    for number in range(25):
        kdbench.bench.training.precision._remembered(file, f"{place} {number}", {"seconds": [1.0] * 4})


def test_measuring_a_tiny_network_leaves_random_numbers_alone(
    digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kdbench.bench.training.precision, "SECONDS", 0.0)
    vit = ModelSpec(
        name="vit_tiny_patch16_224",
        args={"patch_size": 4, "embed_dim": 24, "num_heads": 2, "depth": 1, "proj_drop_rate": 0.5},
    )
    before = torch.get_rng_state()
    model = chosen(task_of("image"), vit, digits, RECIPE, "measured", CPU, tmp_path / "new" / "compute.json")
    assert torch.equal(torch.get_rng_state(), before)
    assert model.compute in CANDIDATES and model.model_copy(update={"compute": Compute()}) == vit
    (measured,) = json.loads((tmp_path / "new" / "compute.json").read_text()).values()
    assert len(measured["seconds"]) == 4 and all(0 < seconds < 60 for seconds in measured["seconds"])


def test_compute_enters_the_key() -> None:
    spec = spec_of("kd", *CNN)
    student = spec.student.model_copy(update={"compute": FAST})
    assert spec.model_copy(update={"student": student}).key != spec.key
    same = spec.student.model_copy(update={"compute": Compute()})
    assert spec.model_copy(update={"student": same}).key == spec.key


def test_timed_is_the_time_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(kdbench.bench.training.precision.time, "perf_counter", lambda: float(next(ticks)))
    called: list[int] = []
    assert timed(lambda: called.append(1), CPU) == 1.0 and called == [1]


def computed(spec: Spec, compute: Compute) -> Spec:
    """The same run with all its networks computed in this way."""
    changed = {"student": spec.student.model_copy(update={"compute": compute})}
    teachers = tuple(teacher.model_copy(update={"compute": compute}) for teacher in spec.teachers)
    return spec.model_copy(update=changed | {"teachers": teachers})


def first_losses(spec: Spec, digits: Splits, weights: Memory, count: int = 5) -> list[float]:
    """The sum of the losses of the first updates."""
    run = OpenRun(spec, digits, weights)
    seen = run.watch()
    for _ in itertools.islice(run.updates(), count):
        pass
    return [float(sum(value.detach() for value in losses.values())) for _, _, losses in seen[:count]]


@pytest.mark.parametrize("compute", CANDIDATES[1:], ids=lambda way: f"{way.precision} {way.layout}")
@pytest.mark.parametrize("method", ["kd", "at"])
def test_fast_and_plain_paths_agree_in_the_first_losses(
    method: str, compute: Compute, digits: Splits, untrained: Callable[[ModelSpec], bytes]
) -> None:
    pair = (LARGE, LARGE)  # 1x1 convolutions of SMALL's 4 channels, channels_last, end some CPUs' process (torch 2.14)
    spec = spec_of(method, *pair, recipe={"epochs": 2, "augment": "crop", "lr": 0.0002})
    params = {"beta": 10.0} if method == "at" else {}  # near the labels' pull: the paper's 1000 amplifies last digits
    spec = spec.model_copy(update={"params": spec.params | params})
    weights = {"run:t0": untrained(LARGE)}
    plain = first_losses(spec, digits, Memory(weights))
    fast = first_losses(computed(spec, compute), digits, Memory(weights))
    tolerance = {"kd": 0.02, "at": 0.05}[method] if compute.precision == "bf16" else 1e-4  # bf16 has 8 bits
    assert len(plain) == len(fast) == 5 and fast == pytest.approx(plain, rel=tolerance)
    assert max(plain) - min(plain) > 0
    if compute.precision == "bf16":
        assert fast != pytest.approx(plain, rel=1e-7)  # it was taken


@pytest.mark.slow
def test_fast_and_plain_paths_end_within_the_spread_of_seeds(untrained: Callable[[ModelSpec], bytes]) -> None:
    digits = load(DataSpec(name="digits"), Path("/nonexistent"))
    recipe = {"epochs": 8, "batch_size": 64, "lr": 0.05, "augment": "crop", "schedule": "cosine"}
    found: dict[str, list[float]] = {}
    for seed in range(3):
        spec = spec_of("student", CNN[0], recipe=recipe, seed=seed)
        for compute in (Compute(), FAST):
            outcome, _ = kdbench.bench.training.engine.run(computed(spec, compute), digits, Memory({}), CPU)
            found.setdefault(compute.precision, []).append(outcome.headline("last", "test", "accuracy"))
    spread = max(statistics.stdev(values) for values in found.values())
    assert min(found["fp32"]) > 0.7
    assert abs(statistics.mean(found["fp32"]) - statistics.mean(found["bf16"])) < max(0.01, 3 * spread)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """torch.compile without a compiler behind it; the list has the shape of the images of every graph that it made."""
    import torch._dynamo

    graphs: list[tuple[int, ...]] = []

    def backend(module: Any, inputs: Any, **options: Any) -> Any:
        shapes = [tuple(each.shape) for each in inputs if isinstance(each, torch.Tensor) and each.dim() == 4]
        graphs.append(next((shape for shape in shapes if shape[1:] == (1, 8, 8)), ()))
        return module.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    yield graphs  # type: ignore[misc]
    torch._dynamo.reset()


def test_compiled_network_keeps_its_names_and_gives_what_it_gave(
    digits: Splits, traced: list[tuple[int, ...]], untrained: Callable[[ModelSpec], bytes]
) -> None:
    eager = build(SMALL, digits).eval()
    made = build(SMALL.model_copy(update={"compute": Compute(compiled=True)}), digits).eval()
    names = list(made.state_dict())
    made.load_state_dict(eager.state_dict())
    images, labels = digits.train.inputs[:6] / 255, digits.train.targets[:6]
    for needs in (frozenset[str](), frozenset({"features"})):
        before = len(traced)
        wanted, got = (observe(network, images, labels, needs) for network in (eager, made))
        assert torch.allclose(got.logits, wanted.logits, atol=1e-6) and len(traced) == before + 1
        assert (got.features is None) == (wanted.features is None)
    assert list(made.state_dict()) == names == list(eager.state_dict())


@pytest.mark.parametrize("needs", [{"pooled"}, {"input_grad"}, {"features", "mirrored_grad"}])
def test_tapped_signals_and_gradients_are_not_compiled(
    needs: set[str], digits: Splits, traced: list[tuple[int, ...]]
) -> None:
    made = build(SMALL.model_copy(update={"compute": Compute(compiled=True)}), digits).eval()
    images, labels = digits.train.inputs[:6] / 255, digits.train.targets[:6]
    signals = observe(made, images, labels, frozenset(needs), training=True)
    assert traced == [] and all(getattr(signals, name) is not None for name in needs)


@pytest.mark.slow
def test_every_shape_of_a_network_is_compiled(
    digits: Splits, traced: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own limit is eight for one function and network; the rest is eager, to other bits."""
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)
    labels = torch.zeros(16, dtype=torch.long)
    made = build(SMALL.model_copy(update={"compute": Compute(compiled=True)}), digits).eval()
    for count in range(2, 12):
        observe(made, digits.train.inputs[:count] / 255, labels[:count], frozenset())
    assert len(traced) == 10


def test_outputs_of_a_compiled_teacher_are_of_one_pass(digits: Splits, traced: list[tuple[int, ...]]) -> None:
    """A pass for logits alone and one with features are compiled apart, to other bits."""
    cache, names = TeacherCache(CacheBackend(2**20)), []
    for compute in (Compute(), Compute(compiled=True)):
        epochs = []
        for method in ("kd", "at"):
            spec = spec_of(method, *CNN)
            teachers = tuple(teacher.model_copy(update={"compute": compute}) for teacher in spec.teachers)
            run = started(spec.model_copy(update={"teachers": teachers}), digits, cache)
            (teacher,) = frozen_teachers(run.setup, run.entered, run.trainer.batches(), 1)
            epochs.append(teacher.outputs)
        names.append([outputs.name for outputs in epochs])
    (plain_kd, plain_at), (compiled_kd, compiled_at) = names
    assert plain_kd == plain_at and len({plain_kd, compiled_kd, compiled_at}) == 3


@pytest.mark.slow
def test_compiled_run_trains_and_agrees_with_the_eager_one(
    digits: Splits, untrained: Callable[[ModelSpec], bytes]
) -> None:
    spec, weights = spec_of("kd", *CNN, recipe={"epochs": 2, "augment": "crop"}), {"run:t0": untrained(CNN[1])}
    plain = first_losses(spec, digits, Memory(weights))
    fast = first_losses(computed(spec, Compute(compiled=True)), digits, Memory(weights))
    assert fast == pytest.approx(plain, rel=1e-3)
    eager, compiled = Memory(weights), Memory(weights)
    outcome, files = kdbench.bench.training.engine.run(computed(spec, Compute(compiled=True)), digits, compiled, CPU)
    same, other = kdbench.bench.training.engine.run(spec, digits, eager, CPU)
    assert outcome.status == same.status == "done"
    assert safetensors.torch.load(files["last"]).keys() == safetensors.torch.load(other["last"]).keys()
    assert compiled.epochs[-1].losses == pytest.approx(eager.epochs[-1].losses, rel=0.05)
