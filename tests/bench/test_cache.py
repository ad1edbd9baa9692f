"""Answers of teachers that are shared or kept must be, to the bit, those that the teacher would give."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import kdbench.bench.teachers.cache
import kdbench.bench.training.engine
from kdbench.bench.data.batches import Batches
from kdbench.bench.data.image_batches import ImageBatches
from kdbench.bench.data.splits import EVALUATION_BATCH, Splits
from kdbench.bench.networks.run_networks import RunNetworks
from kdbench.bench.record import Outcome, Stopped
from kdbench.bench.spec import Compute, ModelSpec, Spec
from kdbench.bench.tasks import task_of
from kdbench.bench.teachers.backends import CacheBackend, Disk, layout
from kdbench.bench.teachers.backends import Memory as InMemory
from kdbench.bench.teachers.cache import WINDOW, EpochOutputs, TeacherCache
from kdbench.bench.teachers.flatten import flat, lossless, signals_of, unflat
from kdbench.bench.teachers.frozen import FrozenTeacher
from kdbench.bench.training.engine import rehearse, updates
from kdbench.bench.training.interleave import interleave
from kdbench.methods.base import TEACHER, Data, Net, Signals
from kdbench.methods.rows import Rows, take
from tests.bench.plugged.tagging import TokenBatches, sequences
from tests.conftest import Memory
from tests.harness import CPU
from tests.methods.options import CNN, LARGE, SMALL, memory_of, spec_of, started, vit

FAST = Compute(precision="bf16", layout="channels_last")
LOGITS, FEATURES = frozenset({"logits"}), frozenset({"logits", "features"})
ALL = FEATURES | {"qkv"}
BATCH = 4
PREPARED = task_of("image").prepared


def batches(count: int = 10, steps: int = 3, augment: str = "crop", batch: int = BATCH) -> ImageBatches:
    """Of noise."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=draws, dtype=torch.uint8)
    data = Data(images, torch.zeros(count, dtype=torch.long), images[:0], 5)
    return ImageBatches(dataclasses.replace(data, augment=augment), batch, steps, CPU)


class Speaker:
    """A teacher that notes the sizes of the batches that it is asked about; two windows an image."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, inputs: Tensor) -> Signals:
        self.asked.append(len(inputs))
        pixels = inputs.flatten(1)
        windows = torch.stack([pixels[:, :12], pixels[:, 12:24]], dim=1).reshape(-1, 1, 3, 4)
        features = (inputs[:, :, :3, :3] / 3, pixels[:, :8].view(-1, 2, 2, 2))
        qkv = ((windows, windows.transpose(1, 2).transpose(1, 2) + 1, 2 * windows),)
        return Signals(pixels[:, :5] / 7, features, qkv=qkv)


def outputs_of(
    name: str, backend: CacheBackend | None, given: ImageBatches, kept: frozenset[str] = frozenset()
) -> EpochOutputs:
    outputs = EpochOutputs(name, backend, given, PREPARED, fixed=False)
    outputs.kept = kept
    return outputs


def same(mine: Signals, theirs: Signals, needs: frozenset[str]) -> None:
    """Equal in what is needed, and silent in all else."""
    wanted, got = flat(theirs, needs), flat(mine, ALL | {"pooled", "tokens"})
    assert wanted.keys() == got.keys()
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)


@pytest.fixture(params=["memory", "disk"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> CacheBackend:
    return InMemory(2**24) if request.param == "memory" else Disk(tmp_path / "cache", 2**24)


def test_kept_answers_are_given_again_and_the_teacher_is_not_asked(backend: CacheBackend) -> None:
    given, speaker = batches(), Speaker()
    outputs = outputs_of("a", backend, given, ALL)
    live = [outputs.answer(step, batch, ALL, speaker) for step, batch in enumerate(given.epoch(1, 1))]
    outputs.close(3)
    assert speaker.asked == [4, 4, 2]
    for needs in (ALL, LOGITS, FEATURES, frozenset({"logits", "qkv"})):
        again = outputs_of("a", backend, given)
        for step, batch in enumerate(given.epoch(1, 1)):
            answer = again.answer(step, batch, needs, speaker)
            same(answer, Speaker()(batch.inputs), needs)
            same(answer, dataclasses.replace(live[step], **{n: None for n in ALL - needs}), needs)
    assert speaker.asked == [4, 4, 2]


def test_without_a_backend_only_a_window_is_held_and_two_ask_once() -> None:
    given, speaker = batches(30, 8), Speaker()
    outputs = outputs_of("a", None, given)
    for step, (mine, theirs) in enumerate(zip(given.epoch(1, 1), given.epoch(1, 1), strict=True)):
        for batch in (mine, theirs):
            same(outputs.answer(step, batch, FEATURES, speaker), Speaker()(batch.inputs), FEATURES)
        assert len(outputs.heard) <= WINDOW
    outputs.close(8)
    assert len(speaker.asked) == 8 and outputs.stored == {}


def test_students_of_different_needs_get_each_what_they_need(backend: CacheBackend) -> None:
    given, speaker = batches(), Speaker()
    outputs = outputs_of("a", backend, given, FEATURES)
    for step, batch in enumerate(given.epoch(1, 1)):
        for needs in (LOGITS, FEATURES, LOGITS):
            same(outputs.answer(step, batch, needs, speaker), Speaker()(batch.inputs), needs)
    outputs.close(3)
    outputs.close(3)
    assert len(speaker.asked) == 6 and signals_of(backend.get("a") or {}) == FEATURES


def test_needs_beyond_what_is_kept_are_asked_for_and_added(backend: CacheBackend) -> None:
    given, speaker = batches(), Speaker()
    for needs in (LOGITS, FEATURES):
        outputs = outputs_of("a", backend, given, needs)
        for step, batch in enumerate(given.epoch(1, 1)):
            same(outputs.answer(step, batch, needs, speaker), Speaker()(batch.inputs), needs)
        outputs.close(3)
        assert signals_of(backend.get("a") or {}) == needs
    assert len(speaker.asked) == 6


def test_one_who_leaves_early_takes_away_only_what_no_other_needs(backend: CacheBackend) -> None:
    given, speaker = batches(), Speaker()
    outputs = outputs_of("a", backend, given, FEATURES)
    for step, batch in enumerate(given.epoch(1, 1)):
        outputs.answer(step, batch, FEATURES if step == 0 else LOGITS, speaker)
    outputs.close(3)
    assert signals_of(backend.get("a") or {}) == LOGITS


def test_an_epoch_that_was_not_ended_is_not_kept(backend: CacheBackend) -> None:
    given = batches()
    outputs = outputs_of("a", backend, given, LOGITS)
    for step, batch in zip(range(2), given.epoch(1, 1), strict=False):
        outputs.answer(step, batch, LOGITS, Speaker())
    outputs.close(3)
    assert backend.get("a") is None


def shared(cache: TeacherCache, given: Batches, needs: frozenset[str], **changes: Any) -> EpochOutputs:
    arguments: dict[str, Any] = {"teacher": "t", "epoch": (1, 1), "epochs": 5, "prepare": PREPARED}
    arguments |= {"probe": Speaker()(torch.zeros(2, 1, 8, 8))} | changes
    return cache.outputs(batches=given, needs=needs, **arguments)


def test_only_signals_of_which_all_epochs_fit_are_kept() -> None:
    """An image's logits take 20 bytes, its two features 36 and 32, its windows 6 times 48."""
    given = batches()
    for limit, kept in ((999, set()), (1000, LOGITS), (4399, LOGITS), (4400, FEATURES), (10**5, ALL)):
        cache = TeacherCache(InMemory(limit))
        epochs = [shared(cache, given, needs) for needs in (LOGITS, FEATURES - {"logits"}, ALL)]
        assert epochs[0] is epochs[1] is epochs[2] and epochs[0].kept == kept
    assert shared(TeacherCache(), given, LOGITS).kept == frozenset()


def test_outputs_are_shared_by_name_and_forgotten_after_use() -> None:
    cache, given = TeacherCache(InMemory(2**20)), batches()
    first = shared(cache, given, LOGITS)
    others = [
        shared(cache, given, LOGITS, teacher="other"),
        shared(cache, given, LOGITS, epoch=(1, 2)),
        shared(cache, given, LOGITS, epoch=(2, 1)),
        shared(cache, batches(augment="flip"), LOGITS),
        shared(cache, batches(batch=5), LOGITS),
        shared(cache, batches(count=9), LOGITS),
        shared(cache, batches(steps=2), LOGITS),
    ]
    assert len({outputs.name for outputs in (first, *others)}) == 8
    assert shared(cache, batches(), LOGITS) is first
    assert shared(cache, given, LOGITS, epochs=7) is first
    del first, others
    assert len(cache.epochs) == 0


def test_other_code_asks_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, given = TeacherCache(), batches()
    name = shared(cache, given, LOGITS).name
    assert (
        torch.__version__ in kdbench.bench.teachers.cache.ORIGIN
        and kdbench.bench.spec.NUMBERS in kdbench.bench.teachers.cache.ORIGIN
    )
    monkeypatch.setattr(kdbench.bench.teachers.cache, "ORIGIN", (*kdbench.bench.teachers.cache.ORIGIN, "newer"))
    assert shared(cache, given, LOGITS).name != name


@pytest.mark.parametrize("kept", [True, False])
def test_fixed_batches_are_answered_once_for_all_images(kept: bool) -> None:
    given, speaker = batches(150, 15, "none", 10), Speaker()
    cache = TeacherCache(InMemory(2**24) if kept else None)
    for epoch in (1, 2):
        outputs = shared(cache, given, ALL, epoch=(1, epoch))
        outputs.open(ALL, speaker)
        for step, batch in enumerate(given.epoch(1, epoch)):
            same(outputs.answer(step, batch, FEATURES, speaker), Speaker()(batch.inputs), FEATURES)
            same(outputs.answer(step, batch, ALL, speaker), Speaker()(batch.inputs), ALL)
        outputs.close(15)
        del outputs
    assert speaker.asked == [EVALUATION_BATCH, 150 - EVALUATION_BATCH] * (1 if kept else 2)


@pytest.mark.parametrize("augment", ["mask", "none"])
def test_answers_of_several_decisions_a_sample_about_named_tensors_are_given_again(
    augment: str, backend: CacheBackend
) -> None:
    """Six rows of logits for each sequence of six tokens."""
    sizes: list[int] = []

    def ask(inputs: Rows) -> Signals:
        assert isinstance(inputs, dict)
        sizes.append(len(inputs["ids"]))
        words = torch.where(inputs["mask"], inputs["ids"], -inputs["ids"]).unsqueeze(2) / torch.arange(1, 6)
        return Signals(words.flatten(0, 1), tokens=(words, 2 * words))

    def on_cpu(inputs: Rows, device: torch.device) -> Rows:
        return inputs

    part, needs = sequences(11), frozenset({"logits", "tokens"})
    given = TokenBatches(Data(part.inputs, part.targets, {}, 4, augment), 4, 3, CPU)
    for again in (False, True):
        outputs = shared(TeacherCache(backend), given, needs, prepare=on_cpu, probe=ask(take(part.inputs, slice(2))))
        assert outputs.fixed == (augment == "none")
        outputs.open(needs, ask)
        sizes.clear()
        for step, batch in enumerate(given.epoch(1, 1)):
            answer, wanted = outputs.answer(step, batch, needs, ask), ask(batch.inputs)
            sizes.pop()
            assert (
                answer.tokens is not None and wanted.tokens is not None and len(answer.logits) == 6 * len(batch.indices)
            )
            assert all(map(torch.equal, (answer.logits, *answer.tokens), (wanted.logits, *wanted.tokens)))
        outputs.close(3)
        assert sizes == ([] if again or outputs.fixed else [4, 4, 3])


@pytest.mark.parametrize("augment", ["crop", "none"])
def test_answers_lie_in_memory_alike_whether_live_or_kept(augment: str, backend: CacheBackend) -> None:
    """Losses add up in the order of memory: another layout gives other bits."""

    def ask(inputs: Tensor) -> Signals:
        signals = Speaker()(inputs)
        features = tuple(each.repeat(1, 2, 1, 1) for each in signals.features or ())
        first = features[0].contiguous(memory_format=torch.channels_last)
        qkv = tuple(tuple(each.view(-1, 3, 2, 2).transpose(1, 2) for each in parts) for parts in signals.qkv or ())
        return dataclasses.replace(signals, features=(first, *features[1:]), qkv=qkv)

    given, found = batches(augment=augment), []
    for cache in (TeacherCache(), TeacherCache(backend), TeacherCache(backend)):
        outputs = shared(cache, given, ALL)
        outputs.open(ALL, ask)
        answers = [layouts(outputs.answer(step, batch, ALL, ask)) for step, batch in enumerate(given.epoch(1, 1))]
        outputs.close(3)
        found.append(answers)
    assert found[0] == found[1] == found[2]
    assert found[0][0][1:3] == [(torch.channels_last, True), (torch.contiguous_format, True)]


def layouts(signals: Signals) -> list[tuple[torch.memory_format, bool]]:
    """Of logits, features, and queries, keys and values; and whether they have no gaps."""
    found = []
    qkv = [each for parts in signals.qkv or () for each in parts]
    for each in (signals.logits, *(signals.features or ()), *qkv):
        found.append((layout(each), each.is_contiguous(memory_format=layout(each))))
    return found


@pytest.mark.parametrize("limit", [0, 100, 2**24])
def test_whether_batches_are_fixed_does_not_depend_on_the_backend(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of other sizes give other bits."""
    cache = TeacherCache(InMemory(limit) if limit else None)
    assert shared(cache, batches(augment="none"), LOGITS).fixed
    assert shared(cache, batches(13, 3, "none"), LOGITS).fixed  # one is left out of each epoch
    assert not shared(cache, batches(14, 3, "none"), LOGITS).fixed
    assert not shared(cache, batches(), LOGITS).fixed
    monkeypatch.setattr(kdbench.bench.teachers.cache, "FIXED", 199)
    assert not shared(cache, batches(augment="none"), LOGITS).fixed


@pytest.mark.parametrize("exact", [torch.tensor([1.0, -0.0, 0.5]), torch.tensor([1 / 3, 1.0])])
def test_lossless_halves_only_what_has_the_same_values(exact: Tensor) -> None:
    small = lossless(exact)
    assert torch.equal(small.float(), exact) and torch.equal(small.float().signbit(), exact.signbit())
    assert (small.dtype == torch.bfloat16) == (exact[0] == 1.0)


def test_flat_has_an_inverse_in_order() -> None:
    features = tuple(torch.full((2, 1, 1, 1), float(index)) for index in range(12))
    qkv = tuple((torch.full((2, 1, 1, 1), float(index)),) * 3 for index in range(11))
    signals = Signals(torch.zeros(2, 3), features, pooled=torch.ones(2, 4), qkv=qkv)
    again = unflat(dict(reversed(flat(signals, ALL | {"pooled"}).items())))
    assert again.features is not None and [float(each[0]) for each in again.features] == list(range(12))
    assert again.qkv is not None and [float(each[2][0]) for each in again.qkv] == list(range(11))
    assert again.pooled is not None and again.tokens is None and again.logits.shape == (2, 3)


def test_predictions_are_recalled_but_not_of_networks_without_identity(backend: CacheBackend) -> None:
    images, asked = torch.zeros(3, 1, 8, 8, dtype=torch.uint8), []

    def predict() -> Tensor:
        asked.append(1)
        return torch.full((3, 2), 1 / 3)

    cache = TeacherCache(backend)
    for teacher, known in (("t", False), ("t", True), ("u", False), ("", False), ("", False)):
        logits, found = cache.predictions(teacher, images, predict)
        assert torch.equal(logits, torch.full((3, 2), 1 / 3)) and found is known
    assert cache.predictions("t", images + 1, predict)[1] is False
    assert TeacherCache().predictions("t", images, predict)[1] is False and len(asked) == 6


def test_teacher_gives_the_classifier_only_to_those_who_need_it() -> None:
    given, rows, speaker = batches(), torch.ones(5, 3), Speaker()
    (batch, *_) = given.epoch(1, 1)
    for needs, wanted in ((frozenset({"qkv"}), None), (frozenset({"qkv", "classifier"}), rows)):
        outputs = outputs_of("a", None, given)
        teacher = FrozenTeacher(
            lambda inputs, targets: speaker(inputs), needs, outputs, Signals(rows, classifier=rows, stem=1)
        )
        answer = teacher.answer(0, batch)
        assert answer.classifier is wanted and answer.stem == 1 and answer.qkv is not None and teacher.samples == BATCH


# Whole runs


def computed(spec: Spec, compute: Compute) -> Spec:
    teachers = tuple(teacher.model_copy(update={"compute": compute}) for teacher in spec.teachers)
    student = spec.student.model_copy(update={"compute": compute})
    return spec.model_copy(update={"student": student, "teachers": teachers})


def ran(
    spec: Spec, digits: Splits, cache: TeacherCache | None = None, **recorder: Any
) -> tuple[Outcome, dict[str, bytes], list[dict[str, float]]]:
    memory = memory_of(spec, digits, **recorder)
    outcome, files = kdbench.bench.training.engine.run(spec, digits, memory, CPU, cache)
    assert outcome.status == "done", outcome.reason
    return outcome, files, [epoch.losses for epoch in memory.epochs]


WRN = ModelSpec(name="wrn_16_2")
CROP = {"epochs": 2, "augment": "crop"}


@pytest.mark.parametrize(
    ("spec", "compute"),
    [
        (spec_of("at", SMALL, LARGE, recipe=CROP), FAST),
        (spec_of("kd", SMALL, WRN, recipe={"epochs": 2, "augment": "none"}), Compute()),
        (spec_of("minilm", vit(), vit(3), recipe=CROP), Compute()),
        (spec_of("multi_teacher", SMALL, LARGE, SMALL, recipe=CROP), FAST),
    ],
    ids=lambda value: value.method if isinstance(value, Spec) else value.precision,
)
def test_runs_are_the_same_to_the_bit_with_any_backend(
    spec: Spec, compute: Compute, digits: Splits, tmp_path: Path
) -> None:
    spec = computed(spec, compute)
    _, files, losses = ran(spec, digits)
    for backend in (Disk(tmp_path, 2**28), InMemory(2**28), InMemory(40_000)):
        cache = TeacherCache(backend)
        for _ in range(2):
            outcome, again, others = ran(spec, digits, cache)
            assert again == files and others == losses
        if backend.limit == 2**28:
            assert outcome.cost["teacher_cached"] > 0
        assert backend.size() <= backend.limit


def test_a_run_goes_on_among_kept_answers_to_the_same_bits(digits: Splits, tmp_path: Path) -> None:
    spec = computed(spec_of("at", *CNN, recipe={"epochs": 3, "augment": "crop"}), FAST)
    _, files, _ = ran(spec, digits)
    for before, after in ((None, Disk(tmp_path, 2**28)), (Disk(tmp_path, 2**28), None), (InMemory(2**28),) * 2):
        recorder = memory_of(spec, digits, stop_after=1)
        with pytest.raises(Stopped):
            kdbench.bench.training.engine.run(spec, digits, recorder, CPU, TeacherCache(before))
        assert ran(spec, digits, TeacherCache(after), resume=recorder.state)[1] == files


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("kept", [True, False])
def test_methods_of_different_needs_learn_side_by_side_as_alone(kept: bool, order: int, digits: Splits) -> None:
    """One needs the classifier's rows, one features, one logits; one is stopped and one cannot work."""
    specs = [spec_of(name, *CNN, recipe=CROP) for name in ("kd", "vild", "tinybert", "at")][::order]
    stopped = spec_of("kd", *CNN, recipe=CROP | {"lr": 0.01})
    cache = TeacherCache(InMemory(2**28) if kept else None)
    recorders = [memory_of(spec, digits) for spec in specs] + [memory_of(stopped, digits, stop_after=1)]
    states = torch.get_rng_state()
    results = interleave(
        [
            updates(spec, digits, recorder, CPU, cache)
            for spec, recorder in zip([*specs, stopped], recorders, strict=True)
        ],
        CPU,
    )
    assert torch.equal(torch.get_rng_state(), states)
    assert isinstance(results.pop(), Stopped)
    for spec, result in zip(specs, results, strict=True):
        assert not isinstance(result, Exception), result
        alone = kdbench.bench.training.engine.run(spec, digits, memory_of(spec, digits), CPU)
        assert result[0].status == alone[0].status == ("unsupported" if spec.method == "tinybert" else "done")
        assert result[1] == alone[1] and result[0].scores == alone[0].scores


def test_a_run_that_breaks_in_mid_epoch_leaves_the_others_as_alone(digits: Splits) -> None:
    class Broken(Memory):
        """Its first epoch cannot be written."""

        def epoch(self, record: Any, state: Any) -> None:
            raise OSError("disk full")

    specs = [spec_of(name, *CNN, recipe=CROP) for name in ("at", "kd")]
    broken = Broken(memory_of(specs[0], digits).stored)
    cache = TeacherCache(InMemory(2**28))
    first, second = interleave(
        [
            updates(specs[0], digits, broken, CPU, cache),
            updates(specs[1], digits, memory_of(specs[1], digits), CPU, cache),
        ],
        CPU,
    )
    assert isinstance(first, OSError) and not isinstance(second, Exception)
    assert second[1] == ran(specs[1], digits)[1]


def test_dropout_draws_are_ones_own_side_by_side(digits: Splits) -> None:
    student = vit()
    student = student.model_copy(update={"args": {**student.args, "proj_drop_rate": 0.3}})
    specs = [spec_of("kd", student, LARGE, recipe=CROP | {"lr": lr}) for lr in (0.02, 0.01)]
    recorders = [memory_of(spec, digits) for spec in specs]
    cache = TeacherCache()
    results = interleave([updates(spec, digits, recorder, CPU, cache) for spec, recorder in zip(specs, recorders)], CPU)  # noqa: B905
    for spec, result in zip(specs, results, strict=True):
        assert not isinstance(result, Exception) and result[1] == ran(spec, digits)[1]


def test_seconds_of_a_run_are_its_own(digits: Splits) -> None:
    spec = spec_of("kd", *CNN, recipe={"augment": "crop"})
    recorder = memory_of(spec, digits)
    pauses = 0
    for _ in updates(spec, digits, recorder, CPU, TeacherCache()):
        time.sleep(0.3)
        pauses += 1
    assert pauses == 4 and 0 < recorder.epochs[0].seconds < 1.0


def test_costs_tell_what_was_asked_and_what_was_at_hand(digits: Splits) -> None:
    spec, cache = spec_of("kd", *CNN, recipe=CROP), TeacherCache(InMemory(2**28))
    first, second = (ran(spec, digits, cache)[0].cost for _ in range(2))
    assert first["teacher_forwards"] == second["teacher_forwards"] == 2 * 107
    assert (first["teacher_cached"], second["teacher_cached"]) == (0, 2 * 107)
    assert first["teacher_seconds"] > 0 == second["teacher_seconds"]
    other = ran(spec_of("kd", *CNN, recipe=CROP | {"lr": 0.01}), digits, cache)[0].cost
    assert other["teacher_cached"] == 2 * 107
    elsewhere = ran(spec_of("kd", *CNN, recipe=CROP, seed=2), digits, cache)[0].cost
    assert elsewhere["teacher_cached"] == 0


def test_teachers_of_a_runs_own_making_are_never_kept(digits: Splits) -> None:
    backend = InMemory(2**28)
    spec = spec_of("tolerant_teacher", SMALL, recipe=CROP)
    networks = started(spec, digits, TeacherCache(backend)).networks
    networks.student(Net("student", "gen_0"))
    assert networks.identity(Net("student", "gen_0")) == ""
    outcome, _ = kdbench.bench.training.engine.run(spec, digits, memory_of(spec, digits), CPU, TeacherCache(backend))
    assert outcome.status == "done" and outcome.cost["teacher_cached"] == 0 and backend.size() == 0


def identity(digits: Splits, model: ModelSpec, file: bytes, device: torch.device = CPU) -> str:
    models = {"teacher": model.model_copy(update={"weights": "run:t0"})}
    recall = TeacherCache().predictions
    return RunNetworks(task_of("image"), models, digits, 0, device, lambda _: file, recall).identity(TEACHER)


def test_identity_names_weights_arguments_compute_and_normalisation(
    digits: Splits, untrained: Callable[[ModelSpec], bytes]
) -> None:
    file = untrained(LARGE)
    state = safetensors.torch.load(file)

    def changed(key: str) -> bytes:
        other = copy.deepcopy(state)
        other[key].view(-1)[0].add_(1e-6)
        return safetensors.torch.save(other)

    weight = next(key for key in state if key.endswith("weight"))
    found = [
        identity(digits, LARGE, file),
        identity(digits, LARGE, changed(weight)),
        identity(digits, LARGE, changed("mean")),
        identity(digits, LARGE, changed("std")),
        identity(digits, LARGE.model_copy(update={"compute": FAST}), file),
        identity(digits, LARGE.model_copy(update={"args": {"input_size": 16}}), file),
    ]
    assert len(set(found)) == len(found) and found[0] == identity(digits, LARGE, file)


def test_rehearsal_leaves_random_numbers_alone_and_asks_about_one_batch(digits: Splits) -> None:
    spec = spec_of("kd", *CNN, recipe=CROP)
    before = torch.get_rng_state()
    rehearse(spec, digits, memory_of(spec, digits), CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stage_of_fewer_images_than_its_steps_take_is_kept_whole(digits: Splits) -> None:
    """Two batches of an epoch that has steps for four."""
    few = dataclasses.replace(digits.train, inputs=digits.train.inputs[:40], targets=digits.train.targets[:40])
    few = dataclasses.replace(few, augment="crop")
    spec, costs = spec_of("kd", *CNN, recipe={"augment": "crop"}), []
    cache = TeacherCache(InMemory(2**28))
    for _ in range(2):
        run = started(spec, digits, cache)
        run.change(lambda stage: dataclasses.replace(stage, data=lambda *_: few))
        run.train()
        costs.append(run.state.cost)
    assert [cost["teacher_forwards"] for cost in costs] == [40, 40]
    assert [cost["teacher_cached"] for cost in costs] == [0, 40]
