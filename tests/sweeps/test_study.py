from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from kdbench.bench.errors import InputError
from kdbench.bench.record import ACCURACY, Epoch, Metric, Outcome
from kdbench.results.store.plan import SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.stored_run import StoredRun
from kdbench.sweeps.scheduling.database import Database
from kdbench.sweeps.scheduling.selection import best_trial
from kdbench.sweeps.scheduling.study import Job, chain, teachers
from kdbench.sweeps.suites.files import load_suite
from kdbench.sweeps.suites.suite import ResolvedPair, Suite

ERROR = Metric(name="error", higher_is_better=False)


def score(job: Job) -> float:
    """A stand-in for training whose best learning rate is 0.1."""
    return 0.9 - abs(job.spec.recipe.lr - 0.1)


def finished(job: Job, status: str = "done") -> StoredRun:
    value = score(job)
    part = {"student": {"logits": {"accuracy": value}}}
    scores = {"last": {"epoch": 4, "validation": part}} if status == "done" else {}
    outcome = Outcome(status=status, scores=scores) if status != "stopped" else None
    return StoredRun(job.spec.key, job.spec, status, "", [], outcome, 0.0, 0.0, [], None)


def epoch(number: int, value: float) -> Epoch:
    return Epoch(
        number=number,
        of=4,
        stage="train",
        losses={},
        train=value,
        validation=value,
        learning_rate=0.1,
        samples=1,
        teacher_forwards=0,
        seconds=0.1,
    )


class Bed:
    """A suite's plan and Optuna database in a folder."""

    def __init__(self, folder: Path, suite: Suite) -> None:
        self.suite = suite
        self.plan = SweepPlan.create(folder, suite.name, "abcd", suite.model_dump(mode="json"))
        self.store = RunStore(folder)
        self.url = f"sqlite:///{folder / 'optuna.db'}"
        self.method, self.calibrated = "kd", dict[str, float]()

    def chain(self) -> Any:
        def resolve(seed: int) -> ResolvedPair:
            return self.suite.resolve(self.suite.pairs[0], seed=seed)

        def calibrate(pair: ResolvedPair, method: str) -> dict[str, float]:
            return self.calibrated

        return chain(self.suite, resolve, self.method, self.plan, self.store, Database(self.url), calibrate)

    def study(self) -> optuna.Study:
        storage = Database(self.url).storage
        (summary,) = optuna.get_all_study_summaries(storage)
        return optuna.load_study(study_name=summary.study_name, storage=storage)

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return self.study().get_trials()


@pytest.fixture
def make(tmp_path: Path, tiny: Path) -> Callable[[str], Bed]:
    suite = load_suite(str(tiny))

    def bed(name: str) -> Bed:
        (tmp_path / name).mkdir()
        return Bed(tmp_path / name, suite)

    return bed


def drive(steps: Any, runs: Callable[[Job], StoredRun] = finished) -> tuple[list[Job], list[Job]]:
    """Carries a chain to its end; returns trial jobs and seed jobs."""
    trials, jobs = [], next(steps)
    while jobs[0].planned.phase == "trial":
        trials += jobs
        jobs = steps.send([runs(job) for job in jobs])
    assert {job.planned.phase for job in jobs} == {"teacher"}
    return trials, steps.send([finished(job) for job in jobs])


def test_trial_zero_is_the_papers_setting_and_budget_is_kept(make: Callable[[str], Bed]) -> None:
    bed = make("a")
    trials, seeds = drive(bed.chain())
    assert [job.planned.number for job in trials] == [0, 1, 2]
    assert trials[0].planned.setting == bed.suite.starts("kd", "", {})[0]
    assert all(not job.spec.test and job.spec.seed == 0 for job in trials)
    assert [job.spec.seed for job in seeds] == [1, 2] and all(job.spec.test for job in seeds)


def test_seeds_use_the_best_trial_on_validation(make: Callable[[str], Bed]) -> None:
    trials, seeds = drive(make("a").chain())
    best = max(trials, key=score)
    assert {job.planned.key for job in seeds} == {job.spec.key for job in seeds}
    assert all(job.planned.setting == best.planned.setting for job in seeds)


def test_settings_are_equal_for_equal_studies(make: Callable[[str], Bed]) -> None:
    first, second = drive(make("a").chain()), drive(make("b").chain())
    assert [job.spec.key for job in first[0] + first[1]] == [job.spec.key for job in second[0] + second[1]]


@pytest.mark.parametrize("told", [0, 1, 2])
def test_driver_that_died_in_a_trial_takes_it_up_again(make: Callable[[str], Bed], told: int) -> None:
    whole, _ = drive(make("whole").chain())
    bed = make("broken")
    steps = bed.chain()
    (job,) = next(steps)
    for _ in range(told):
        (job,) = steps.send([finished(job)])
    steps.close()
    trials, _ = drive(bed.chain())
    assert [job.spec.key for job in trials] == [job.spec.key for job in whole]
    assert len(bed.trials()) == 3 and all(trial.state.is_finished() for trial in bed.trials())


def test_driver_that_died_while_asking_draws_the_same_setting(make: Callable[[str], Bed]) -> None:
    whole, _ = drive(make("whole").chain())
    bed = make("broken")
    steps = bed.chain()
    steps.send(None)
    steps.close()
    storage = Database(bed.url).storage
    (summary,) = optuna.get_all_study_summaries(storage)
    optuna.load_study(study_name=summary.study_name, storage=storage).ask()  # no setting, no key
    trials, _ = drive(bed.chain())
    assert [job.spec.key for job in trials] == [job.spec.key for job in whole]
    assert sum(trial.state == optuna.trial.TrialState.FAIL for trial in bed.trials()) == 1


def test_finished_study_is_walked_again_without_new_trials(make: Callable[[str], Bed]) -> None:
    bed = make("a")
    first = drive(bed.chain())
    second = drive(bed.chain())
    assert [job.spec.key for job in first[0] + first[1]] == [job.spec.key for job in second[0] + second[1]]
    assert len(bed.trials()) == 3


def test_hopeless_trial_is_pruned_and_never_chosen(make: Callable[[str], Bed]) -> None:
    bed = make("a")
    answers: list[bool] = []

    def runs(job: Job) -> StoredRun:
        hopeless = job.planned.number == 2
        for number in range(1, 4):
            going = job.watch(epoch(number, 0.1 if hopeless else 0.8))
            answers.append(going)
            if not going:
                return finished(job, "stopped")
        return finished(job)

    trials, seeds = drive(bed.chain(), runs)
    assert answers == [True] * 8 + [False] or answers[-1] is False
    assert bed.trials()[2].state == optuna.trial.TrialState.PRUNED
    assert all(job.planned.setting != trials[2].planned.setting for job in seeds)
    again, _ = drive(bed.chain(), lambda job: finished(job, "stopped" if job.settled else "done"))
    assert [job.settled for job in again] == [False, False, True]


def test_diverged_trial_is_worth_nothing(make: Callable[[str], Bed]) -> None:
    bed = make("a")
    trials, seeds = drive(bed.chain(), lambda job: finished(job, "diverged" if job.planned.number == 0 else "done"))
    assert bed.trials()[0].value == 0.0
    assert all(job.planned.setting != trials[0].planned.setting for job in seeds)


def test_best_trial_is_the_earliest_of_equals(make: Callable[[str], Bed]) -> None:
    trials, _ = drive(make("a").chain())
    run = finished(trials[0])
    for metric in (ACCURACY, ERROR):
        assert best_trial([(job.planned, run) for job in reversed(trials)], "last", metric) == trials[0].planned
        assert best_trial([], "last", metric) is None


def lower_is_better(job: Job, status: str = "done") -> StoredRun:
    """A run that is judged by its error, which is least at a learning rate of 0.1."""
    scores = {"last": {"epoch": 4, "validation": {"student": {"logits": {"error": 1 - score(job)}}}}}
    outcome = Outcome(status=status, metric=ERROR, scores=scores if status == "done" else {})
    return replace(finished(job, status), outcome=None if status == "stopped" else outcome)


def test_study_of_an_error_minimises_it(make: Callable[[str], Bed]) -> None:
    bed = make("a")
    bed.plan.suite = bed.plan.suite.model_copy(update={"metric": ERROR})
    trials, seeds = drive(bed.chain(), lower_is_better)
    assert all(job.planned.setting == max(trials, key=score).planned.setting for job in seeds)
    assert [trial.value for trial in bed.trials()] == [1 - score(job) for job in trials]
    assert bed.study().direction == optuna.study.StudyDirection.MINIMIZE


@pytest.mark.parametrize(("metric", "good", "bad"), [(ACCURACY, 0.8, 0.1), (ERROR, 0.1, 0.8)])
def test_pruning_stops_what_is_worse_by_the_metrics_direction(
    metric: Metric, good: float, bad: float, make: Callable[[str], Bed]
) -> None:
    bed = make("a")
    bed.plan.suite = bed.plan.suite.model_copy(update={"metric": metric})
    stopped: list[int] = []

    def runs(job: Job) -> StoredRun:
        value = bad if job.planned.number == 2 else good
        if all(job.watch(epoch(number, value)) for number in range(1, 4)):
            return finished(job) if metric == ACCURACY else lower_is_better(job)
        stopped.append(job.planned.number)
        return finished(job, "stopped")

    drive(bed.chain(), runs)
    assert stopped == [2]


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        (ACCURACY, 0.0),
        (ERROR, 1.0),
        (Metric(name="loss", unit="", higher_is_better=False), float("inf")),
        (Metric(name="correlation", unit=""), -float("inf")),
    ],
)
def test_trial_that_measured_nothing_is_worth_the_least_and_never_chosen(
    metric: Metric, told: float, make: Callable[[str], Bed]
) -> None:
    bed = make("a")
    bed.plan.suite = bed.plan.suite.model_copy(update={"metric": metric})

    def runs(job: Job) -> StoredRun:
        scores = {"last": {"epoch": 4, "validation": {"student": {"logits": {metric.name: 0.5}}}}}
        done = job.planned.number > 0
        outcome = Outcome(status="done" if done else "diverged", metric=metric, scores=scores if done else {})
        return replace(finished(job), outcome=outcome)

    trials, seeds = drive(bed.chain(), runs)
    assert bed.trials()[0].value == told
    assert all(job.planned.setting == trials[1].planned.setting for job in seeds)


def keep(bed: Bed, job: Job) -> StoredRun:
    """Carries out a job as a worker does: in the store, its epochs watched, and pruned if the study says so."""
    bed.plan.add(job.planned)
    if (there := bed.store.get(job.spec.key)) and (there.finished or (there.pruned and job.settled)):
        return there
    with bed.store.attempt(job.spec.key, job.spec.canonical(), lambda _: None) as attempt:
        value = score(job) if job.planned.number != 3 else 0.1
        for number in range(1, 5):
            attempt.epoch(epoch(number, value * number / 4), lambda: b"")
            if not job.watch(epoch(number, value * number / 4)):
                attempt.end("stopped", "hopeless")
                break
        else:
            outcome = finished(job).outcome
            assert outcome is not None
            attempt.finish(outcome, {})
    run = bed.store.get(job.spec.key)
    assert run is not None
    return run


def told(bed: Bed) -> list[tuple[Any, ...]]:
    """All that a study's next draw and a pruner's next decision rest on."""
    return [
        (each.state, each.params, each.distributions, each.values, each.intermediate_values, each.user_attrs)
        for each in bed.trials()
    ]


def test_study_whose_database_is_lost_is_made_again_and_draws_the_same(make: Callable[[str], Bed]) -> None:
    whole, broken = make("whole"), make("broken")
    for bed in (whole, broken):
        tuning = bed.suite.tuning.model_copy(update={"trials": 9})
        bed.suite = bed.suite.model_copy(update={"tuning": tuning})
    drive(whole.chain(), lambda job: keep(whole, job))
    steps = broken.chain()
    (job,) = next(steps)
    for _ in range(5):
        (job,) = steps.send([keep(broken, job)])
    steps.close()
    before = told(broken)[:5]
    Path(broken.url.removeprefix("sqlite:///")).unlink()
    steps = broken.chain()
    next(steps)
    steps.close()
    assert told(broken) == before and {each[0].name for each in before} == {"COMPLETE", "PRUNED"}
    repeated: list[Job] = []

    def carry_out(job: Job) -> StoredRun:
        if broken.store.get(job.spec.key) is None:
            repeated.append(job)
        return keep(broken, job)

    trials, _ = drive(broken.chain(), carry_out)
    assert [job.planned.number for job in repeated if job.planned.phase == "trial"] == [5, 6, 7, 8]
    assert told(broken) == told(whole) and [job.settled for job in trials[:5]] == [
        each[0].name == "PRUNED" for each in before
    ]


def test_run_that_another_place_had_watched_is_recalled_without_its_epochs(make: Callable[[str], Bed]) -> None:
    bed = make("a")
    (first,) = next(bed.chain())
    for pair in ("earlier -> pair", first.planned.pair):
        bed.plan.add(replace(first.planned, pair=pair))
    with bed.store.attempt(first.spec.key, first.spec.canonical(), lambda _: None) as attempt:
        attempt.epoch(epoch(1, 0.5), lambda: b"")
        outcome = finished(first).outcome
        assert outcome is not None
        attempt.finish(outcome, {})
    Path(bed.url.removeprefix("sqlite:///")).unlink()
    next(bed.chain())
    trial = bed.trials()[0]
    assert trial.intermediate_values == {} and trial.value == score(first)


def test_trial_whose_run_another_suite_made_is_told_as_it_would_be_recalled(make: Callable[[str], Bed]) -> None:
    """Its epochs were watched for the other suite: they are reported all the same, as a study made again has them."""
    bed = make("a")
    steps = bed.chain()
    (job,) = next(steps)
    with bed.store.attempt(job.spec.key, job.spec.canonical(), lambda _: None) as attempt:
        for number in range(1, 5):
            attempt.epoch(epoch(number, 0.5), lambda: b"")
        outcome = finished(job).outcome
        assert outcome is not None
        attempt.finish(outcome, {})
    bed.plan.add(job.planned)
    run = bed.store.get(job.spec.key)
    assert run is not None
    steps.send([run])
    steps.close()
    before = told(bed)[0]
    assert before[4] == {1: 0.5, 2: 0.5, 3: 0.5, 4: 0.5}
    Path(bed.url.removeprefix("sqlite:///")).unlink()
    next(bed.chain())
    assert told(bed)[0] == before


def test_trials_after_one_that_failed_are_drawn_again(make: Callable[[str], Bed]) -> None:
    bed = make("a")
    steps = bed.chain()
    (job,) = next(steps)
    for number in range(3):
        run = keep(bed, job)
        if number == 1:
            (bed.store.root / "runs" / run.key / "DONE.json").unlink()
        sent = steps.send([run])
        job = sent[0]
    Path(bed.url.removeprefix("sqlite:///")).unlink()
    (again,) = next(bed.chain())
    assert again.planned.number == 0 and len(bed.trials()) == 1


def test_second_trial_is_the_calibrated_and_later_ones_lie_in_its_units(make: Callable[[str], Bed]) -> None:
    bed = make("a")
    bed.method, bed.calibrated = "sp", {"weight": 50.0}
    bed.suite = bed.suite.model_copy(update={"tuning": bed.suite.tuning.model_copy(update={"trials": 6})})
    trials, _ = drive(bed.chain())
    paper, calibrated, *drawn = [job.planned.setting["weight"] for job in trials]
    assert (paper, calibrated) == (3000.0, 50.0) and all(50 / 30 <= weight <= 50 * 30 for weight in drawn)
    assert all(job.spec.params["weight"] == job.planned.setting["weight"] for job in trials)
    again, _ = drive(bed.chain())
    assert [job.spec.key for job in again] == [job.spec.key for job in trials]


def test_seeds_learn_from_teachers_of_their_own_that_are_trained_before_them(make: Callable[[str], Bed]) -> None:
    bed = make("a")
    _, seeds = drive(bed.chain())
    teachers = [bed.suite.resolve(bed.suite.pairs[0], seed=seed).teachers[0].key for seed in (1, 2)]
    assert [job.spec.teachers[0].weights for job in seeds] == [f"run:{key}" for key in teachers]


def test_a_teacher_that_cannot_be_trained_ends_the_sweep(make: Callable[[str], Bed]) -> None:
    (resolved,) = (make("a").suite.resolve(pair) for pair in make("b").suite.pairs)
    steps = teachers([resolved])
    (job,) = next(steps)
    with pytest.raises(InputError, match="the teacher of cifar_resnet8 .* could not be trained: diverged"):
        steps.send([finished(job, "diverged")])


@pytest.mark.parametrize(("method", "pruned"), [("kd", True), ("fitnets", False)])
def test_methods_of_several_stages_are_never_pruned(make: Callable[[str], Bed], method: str, pruned: bool) -> None:
    """Their epochs cannot be compared: the last stage may have just begun where another setting's is far."""
    bed, stopped, asked = make("a"), list[bool](), list[int | None]()
    bed.method = method
    bed.suite = bed.suite.model_copy(update={"tuning": bed.suite.tuning.model_copy(update={"trials": 4})})

    def watched(job: Job) -> StoredRun:
        value = 0.9 if job.planned.number < 3 else 0.1
        asked.append(job.asked_from)
        stopped.append(not all([job.watch(epoch(number, value)) for number in range(1, 5)]))
        return finished(job, "stopped" if stopped[-1] else "done")

    drive(bed.chain(), watched)
    assert stopped == [False, False, False, pruned]
    half = bed.suite.recipe.epochs // 2 if pruned else None
    assert asked == [None, None, half, half], "a worker waits for leave only where a trial may be pruned"
