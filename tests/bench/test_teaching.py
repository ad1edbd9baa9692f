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

import bench.engine
import bench.teaching
from bench.data import EVALUATION_BATCH, Splits
from bench.engine import rehearse, updates
from bench.interleave import interleave
from bench.networks import Networks, build
from bench.record import Outcome, Stopped
from bench.shelf import Disk, Shelf, layout
from bench.shelf import Memory as InMemory
from bench.spec import Compute, ModelSpec, Spec
from bench.teaching import WINDOW, Lesson, Teaching, Tutor, flat, lossless, signals_of, unflat
from bench.views import Views
from methods.base import TEACHER, Data, Net, Signals
from tests.conftest import Memory
from tests.methods.options import CNN, CPU, LARGE, SMALL, spec_of, started, vit

FAST = Compute(precision="bf16", layout="channels_last")
LOGITS, FEATURES = frozenset({"logits"}), frozenset({"logits", "features"})
ALL = FEATURES | {"qkv"}
BATCH = 4


def views(count: int = 10, steps: int = 3, augment: str = "crop", batch: int = BATCH) -> Views:
    """Of noise."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=draws, dtype=torch.uint8)
    data = Data(images, torch.zeros(count, dtype=torch.long), images[:0], 5)
    return Views(dataclasses.replace(data, augment=augment), batch, steps, CPU)


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


def lesson_of(name: str, shelf: Shelf | None, given: Views, kept: frozenset[str] = frozenset()) -> Lesson:
    lesson = Lesson(name, shelf, given, fixed=False)
    lesson.kept = kept
    return lesson


def same(mine: Signals, theirs: Signals, needs: frozenset[str]) -> None:
    """Equal in what is needed, and silent in all else."""
    wanted, got = flat(theirs, needs), flat(mine, ALL | {"pooled", "tokens"})
    assert wanted.keys() == got.keys()
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)


@pytest.fixture(params=["memory", "disk"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    return InMemory(2**24) if request.param == "memory" else Disk(tmp_path / "cache", 2**24)


def test_kept_answers_are_given_again_and_the_teacher_is_not_asked(shelf: Shelf) -> None:
    given, speaker = views(), Speaker()
    lesson = lesson_of("a", shelf, given, ALL)
    live = [lesson.answer(step, batch, ALL, speaker) for step, batch in enumerate(given.epoch(1, 1))]
    lesson.close(3)
    assert speaker.asked == [4, 4, 2]
    for needs in (ALL, LOGITS, FEATURES, frozenset({"logits", "qkv"})):
        again = lesson_of("a", shelf, given)
        for step, batch in enumerate(given.epoch(1, 1)):
            answer = again.answer(step, batch, needs, speaker)
            same(answer, Speaker()(batch.inputs), needs)
            same(answer, dataclasses.replace(live[step], **{n: None for n in ALL - needs}), needs)
    assert speaker.asked == [4, 4, 2]


def test_without_a_shelf_only_a_window_is_held_and_two_ask_once() -> None:
    given, speaker = views(30, 8), Speaker()
    lesson = lesson_of("a", None, given)
    for step, (mine, theirs) in enumerate(zip(given.epoch(1, 1), given.epoch(1, 1), strict=True)):
        for batch in (mine, theirs):
            same(lesson.answer(step, batch, FEATURES, speaker), Speaker()(batch.inputs), FEATURES)
        assert len(lesson.heard) <= WINDOW
    lesson.close(8)
    assert len(speaker.asked) == 8 and lesson.stored == {}


def test_students_of_different_needs_get_each_what_they_need(shelf: Shelf) -> None:
    given, speaker = views(), Speaker()
    lesson = lesson_of("a", shelf, given, FEATURES)
    for step, batch in enumerate(given.epoch(1, 1)):
        for needs in (LOGITS, FEATURES, LOGITS):
            same(lesson.answer(step, batch, needs, speaker), Speaker()(batch.inputs), needs)
    lesson.close(3)
    lesson.close(3)
    assert len(speaker.asked) == 6 and signals_of(shelf.get("a") or {}) == FEATURES


def test_needs_beyond_what_is_kept_are_asked_for_and_added(shelf: Shelf) -> None:
    given, speaker = views(), Speaker()
    for needs in (LOGITS, FEATURES):
        lesson = lesson_of("a", shelf, given, needs)
        for step, batch in enumerate(given.epoch(1, 1)):
            same(lesson.answer(step, batch, needs, speaker), Speaker()(batch.inputs), needs)
        lesson.close(3)
        assert signals_of(shelf.get("a") or {}) == needs
    assert len(speaker.asked) == 6


def test_one_who_leaves_early_takes_away_only_what_no_other_needs(shelf: Shelf) -> None:
    given, speaker = views(), Speaker()
    lesson = lesson_of("a", shelf, given, FEATURES)
    for step, batch in enumerate(given.epoch(1, 1)):
        lesson.answer(step, batch, FEATURES if step == 0 else LOGITS, speaker)
    lesson.close(3)
    assert signals_of(shelf.get("a") or {}) == LOGITS


def test_an_epoch_that_was_not_ended_is_not_kept(shelf: Shelf) -> None:
    given = views()
    lesson = lesson_of("a", shelf, given, LOGITS)
    for step, batch in zip(range(2), given.epoch(1, 1), strict=False):
        lesson.answer(step, batch, LOGITS, Speaker())
    lesson.close(3)
    assert shelf.get("a") is None


def given_lesson(teaching: Teaching, given: Views, needs: frozenset[str], **changes: Any) -> Lesson:
    probe = Speaker()(torch.zeros(2, 1, 8, 8))
    arguments: dict[str, Any] = {"teacher": "t", "epoch": (1, 1), "epochs": 5} | changes
    return teaching.lesson(views=given, needs=needs, probe=probe, **arguments)


def test_only_signals_of_which_all_epochs_fit_are_kept() -> None:
    """An image's logits take 20 bytes, its two features 36 and 32, its windows 6 times 48."""
    given = views()
    for limit, kept in ((999, set()), (1000, LOGITS), (4399, LOGITS), (4400, FEATURES), (10**5, ALL)):
        teaching = Teaching(InMemory(limit))
        lessons = [given_lesson(teaching, given, needs) for needs in (LOGITS, FEATURES - {"logits"}, ALL)]
        assert lessons[0] is lessons[1] is lessons[2] and lessons[0].kept == kept
    assert given_lesson(Teaching(), given, LOGITS).kept == frozenset()


def test_lessons_are_shared_by_name_and_forgotten_after_use() -> None:
    teaching, given = Teaching(InMemory(2**20)), views()
    first = given_lesson(teaching, given, LOGITS)
    others = [
        given_lesson(teaching, given, LOGITS, teacher="other"),
        given_lesson(teaching, given, LOGITS, epoch=(1, 2)),
        given_lesson(teaching, given, LOGITS, epoch=(2, 1)),
        given_lesson(teaching, views(augment="flip"), LOGITS),
        given_lesson(teaching, views(batch=5), LOGITS),
        given_lesson(teaching, views(count=9), LOGITS),
        given_lesson(teaching, views(steps=2), LOGITS),
    ]
    assert len({lesson.name for lesson in (first, *others)}) == 8
    assert given_lesson(teaching, views(), LOGITS) is first
    assert given_lesson(teaching, given, LOGITS, epochs=7) is first
    del first, others
    assert len(teaching.lessons) == 0


def test_other_code_asks_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    teaching, given = Teaching(), views()
    name = given_lesson(teaching, given, LOGITS).name
    assert torch.__version__ in bench.teaching.ORIGIN and bench.spec.NUMBERS in bench.teaching.ORIGIN
    monkeypatch.setattr(bench.teaching, "ORIGIN", (*bench.teaching.ORIGIN, "newer"))
    assert given_lesson(teaching, given, LOGITS).name != name


@pytest.mark.parametrize("kept", [True, False])
def test_fixed_views_are_answered_once_for_all_images(kept: bool) -> None:
    given, speaker = views(150, 15, "none", 10), Speaker()
    teaching = Teaching(InMemory(2**24) if kept else None)
    for epoch in (1, 2):
        lesson = given_lesson(teaching, given, ALL, epoch=(1, epoch))
        lesson.open(ALL, speaker)
        for step, batch in enumerate(given.epoch(1, epoch)):
            same(lesson.answer(step, batch, FEATURES, speaker), Speaker()(batch.inputs), FEATURES)
            same(lesson.answer(step, batch, ALL, speaker), Speaker()(batch.inputs), ALL)
        lesson.close(15)
        del lesson
    assert speaker.asked == [EVALUATION_BATCH, 150 - EVALUATION_BATCH] * (1 if kept else 2)


@pytest.mark.parametrize("augment", ["crop", "none"])
def test_answers_lie_in_memory_alike_whether_live_or_kept(augment: str, shelf: Shelf) -> None:
    """Losses add up in the order of memory: another layout gives other bits."""

    def ask(inputs: Tensor) -> Signals:
        signals = Speaker()(inputs)
        features = tuple(each.repeat(1, 2, 1, 1) for each in signals.features or ())
        first = features[0].contiguous(memory_format=torch.channels_last)
        qkv = tuple(tuple(each.view(-1, 3, 2, 2).transpose(1, 2) for each in parts) for parts in signals.qkv or ())
        return dataclasses.replace(signals, features=(first, *features[1:]), qkv=qkv)

    given, found = views(augment=augment), []
    for teaching in (Teaching(), Teaching(shelf), Teaching(shelf)):
        lesson = given_lesson(teaching, given, ALL)
        lesson.open(ALL, ask)
        answers = [layouts(lesson.answer(step, batch, ALL, ask)) for step, batch in enumerate(given.epoch(1, 1))]
        lesson.close(3)
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
def test_batches_of_fixed_views_do_not_depend_on_the_shelf(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of other sizes give other bits."""
    teaching = Teaching(InMemory(limit) if limit else None)
    assert given_lesson(teaching, views(augment="none"), LOGITS).fixed
    assert given_lesson(teaching, views(13, 3, "none"), LOGITS).fixed  # one is left out of each epoch
    assert not given_lesson(teaching, views(14, 3, "none"), LOGITS).fixed
    assert not given_lesson(teaching, views(), LOGITS).fixed
    monkeypatch.setattr(bench.teaching, "FIXED", 199)
    assert not given_lesson(teaching, views(augment="none"), LOGITS).fixed


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


def test_predictions_are_recalled_but_not_of_networks_without_identity(shelf: Shelf) -> None:
    images, asked = torch.zeros(3, 1, 8, 8, dtype=torch.uint8), []

    def predict() -> Tensor:
        asked.append(1)
        return torch.full((3, 2), 1 / 3)

    teaching = Teaching(shelf)
    for teacher, known in (("t", False), ("t", True), ("u", False), ("", False), ("", False)):
        logits, found = teaching.predictions(teacher, images, predict)
        assert torch.equal(logits, torch.full((3, 2), 1 / 3)) and found is known
    assert teaching.predictions("t", images + 1, predict)[1] is False
    assert Teaching().predictions("t", images, predict)[1] is False and len(asked) == 6


def test_tutor_gives_the_classifier_only_to_those_who_need_it() -> None:
    given, rows = views(), torch.ones(5, 3)
    (batch, *_) = given.epoch(1, 1)
    for needs, wanted in ((frozenset({"pooled"}), None), (frozenset({"pooled", "classifier"}), rows)):
        tutor = Tutor(None, needs, lesson_of("a", None, given), rows)  # type: ignore[arg-type]
        tutor._ask = Speaker()  # type: ignore[assignment, method-assign]
        assert tutor.answer(0, batch).classifier is wanted


# Whole runs


def computed(spec: Spec, compute: Compute) -> Spec:
    teachers = tuple(teacher.model_copy(update={"compute": compute}) for teacher in spec.teachers)
    student = spec.student.model_copy(update={"compute": compute})
    return spec.model_copy(update={"student": student, "teachers": teachers})


def sink_of(spec: Spec, digits: Splits, **sink: Any) -> Memory:
    """With random weights of the teachers."""
    stored = {}
    for index, model in enumerate(spec.teachers):
        with torch.random.fork_rng():
            torch.manual_seed(index)
            network = build(model.model_copy(update={"weights": "scratch", "compute": Compute()}), digits)
        stored[f"run:t{index}"] = safetensors.torch.save(network.state_dict())
    return Memory(stored, **sink)


def ran(
    spec: Spec, digits: Splits, teaching: Teaching | None = None, **sink: Any
) -> tuple[Outcome, dict[str, bytes], list[dict[str, float]]]:
    memory = sink_of(spec, digits, **sink)
    outcome, files = bench.engine.run(spec, digits, memory, CPU, teaching)
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
def test_runs_are_the_same_to_the_bit_with_any_shelf(
    spec: Spec, compute: Compute, digits: Splits, tmp_path: Path
) -> None:
    spec = computed(spec, compute)
    _, files, losses = ran(spec, digits)
    for shelf in (Disk(tmp_path, 2**28), InMemory(2**28), InMemory(40_000)):
        teaching = Teaching(shelf)
        for _ in range(2):
            outcome, again, others = ran(spec, digits, teaching)
            assert again == files and others == losses
        if shelf.limit == 2**28:
            assert outcome.cost["teacher_cached"] > 0
        assert shelf.size() <= shelf.limit


def test_a_run_goes_on_among_kept_answers_to_the_same_bits(digits: Splits, tmp_path: Path) -> None:
    spec = computed(spec_of("at", *CNN, recipe={"epochs": 3, "augment": "crop"}), FAST)
    _, files, _ = ran(spec, digits)
    for before, after in ((None, Disk(tmp_path, 2**28)), (Disk(tmp_path, 2**28), None), (InMemory(2**28),) * 2):
        sink = sink_of(spec, digits, stop_after=1)
        with pytest.raises(Stopped):
            bench.engine.run(spec, digits, sink, CPU, Teaching(before))
        assert ran(spec, digits, Teaching(after), resume=sink.state)[1] == files


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("kept", [True, False])
def test_methods_of_different_needs_learn_side_by_side_as_alone(kept: bool, order: int, digits: Splits) -> None:
    """One needs the classifier's rows, one features, one logits; one is stopped and one cannot work."""
    specs = [spec_of(name, *CNN, recipe=CROP) for name in ("kd", "vild", "tinybert", "at")][::order]
    stopped = spec_of("kd", *CNN, recipe=CROP | {"lr": 0.01})
    teaching = Teaching(InMemory(2**28) if kept else None)
    sinks = [sink_of(spec, digits) for spec in specs] + [sink_of(stopped, digits, stop_after=1)]
    states = torch.get_rng_state()
    results = interleave(
        [updates(spec, digits, sink, CPU, teaching) for spec, sink in zip([*specs, stopped], sinks, strict=True)], CPU
    )
    assert torch.equal(torch.get_rng_state(), states)
    assert isinstance(results.pop(), Stopped)
    for spec, result in zip(specs, results, strict=True):
        assert not isinstance(result, Exception), result
        alone = bench.engine.run(spec, digits, sink_of(spec, digits), CPU)
        assert result[0].status == alone[0].status == ("unsupported" if spec.method == "tinybert" else "done")
        assert result[1] == alone[1] and result[0].scores == alone[0].scores


def test_a_run_that_breaks_in_mid_epoch_leaves_the_others_as_alone(digits: Splits) -> None:
    class Broken(Memory):
        """Its first epoch cannot be written."""

        def epoch(self, record: Any, state: Any) -> None:
            raise OSError("disk full")

    specs = [spec_of(name, *CNN, recipe=CROP) for name in ("at", "kd")]
    broken = Broken(sink_of(specs[0], digits).stored)
    teaching = Teaching(InMemory(2**28))
    first, second = interleave(
        [
            updates(specs[0], digits, broken, CPU, teaching),
            updates(specs[1], digits, sink_of(specs[1], digits), CPU, teaching),
        ],
        CPU,
    )
    assert isinstance(first, OSError) and not isinstance(second, Exception)
    assert second[1] == ran(specs[1], digits)[1]


def test_dropout_draws_are_ones_own_side_by_side(digits: Splits) -> None:
    student = vit()
    student = student.model_copy(update={"args": {**student.args, "proj_drop_rate": 0.3}})
    specs = [spec_of("kd", student, LARGE, recipe=CROP | {"lr": lr}) for lr in (0.02, 0.01)]
    sinks = [sink_of(spec, digits) for spec in specs]
    teaching = Teaching()
    results = interleave([updates(spec, digits, sink, CPU, teaching) for spec, sink in zip(specs, sinks)], CPU)  # noqa: B905
    for spec, result in zip(specs, results, strict=True):
        assert not isinstance(result, Exception) and result[1] == ran(spec, digits)[1]


def test_seconds_of_a_run_are_its_own(digits: Splits) -> None:
    spec = spec_of("kd", *CNN, recipe={"augment": "crop"})
    sink = sink_of(spec, digits)
    pauses = 0
    for _ in updates(spec, digits, sink, CPU, Teaching()):
        time.sleep(0.3)
        pauses += 1
    assert pauses == 4 and 0 < sink.epochs[0].seconds < 1.0


def test_costs_tell_what_was_asked_and_what_was_at_hand(digits: Splits) -> None:
    spec, teaching = spec_of("kd", *CNN, recipe=CROP), Teaching(InMemory(2**28))
    first, second = (ran(spec, digits, teaching)[0].cost for _ in range(2))
    assert first["teacher_forwards"] == second["teacher_forwards"] == 2 * 107
    assert (first["teacher_cached"], second["teacher_cached"]) == (0, 2 * 107)
    assert first["teacher_seconds"] > 0 == second["teacher_seconds"]
    other = ran(spec_of("kd", *CNN, recipe=CROP | {"lr": 0.01}), digits, teaching)[0].cost
    assert other["teacher_cached"] == 2 * 107
    elsewhere = ran(spec_of("kd", *CNN, recipe=CROP, seed=2), digits, teaching)[0].cost
    assert elsewhere["teacher_cached"] == 0


def test_teachers_of_a_runs_own_making_are_never_kept(digits: Splits) -> None:
    shelf = InMemory(2**28)
    spec = spec_of("tolerant_teacher", SMALL, recipe=CROP)
    networks = bench.engine._Run(spec, digits, sink_of(spec, digits), CPU, Teaching(shelf)).networks
    networks.student(Net("student", "gen_0"))
    assert networks.identity(Net("student", "gen_0")) == ""
    outcome, _ = bench.engine.run(spec, digits, sink_of(spec, digits), CPU, Teaching(shelf))
    assert outcome.status == "done" and outcome.cost["teacher_cached"] == 0 and shelf.size() == 0


def identity(digits: Splits, model: ModelSpec, file: bytes, device: torch.device = CPU) -> str:
    models = {"teacher": model.model_copy(update={"weights": "run:t0"})}
    return Networks(models, digits, 0, device, lambda _: file, Teaching().predictions).identity(TEACHER)


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
    rehearse(spec, digits, sink_of(spec, digits), CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stage_of_fewer_images_than_its_steps_take_is_kept_whole(digits: Splits) -> None:
    """Two batches of an epoch that has steps for four."""
    few = dataclasses.replace(digits.train, images=digits.train.images[:40], labels=digits.train.labels[:40])
    spec, costs = spec_of("kd", *CNN, recipe={"augment": "crop"}), []
    teaching = Teaching(InMemory(2**28))
    for _ in range(2):
        run = started(spec, digits)
        run.teaching = teaching
        run.stages = [dataclasses.replace(run.stages[0], data=lambda *_: dataclasses.replace(few, augment="crop"))]
        for _ in run._train():
            pass
        costs.append(run.cost)
    assert [cost["teacher_forwards"] for cost in costs] == [40, 40]
    assert [cost["teacher_cached"] for cost in costs] == [0, 40]
