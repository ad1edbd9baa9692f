"""Tunes a method on a pair, then trains its best setting on every seed.

Drivers own the study and ask and tell; workers never touch Optuna. The sampler is seeded by the trial's number, so that
a study that was interrupted goes on as if it had not been, and several drivers ask for the same runs, of which each is
carried out by the one that begins it first. A study whose database is gone, as after an import, is made again from the
plan and the store.
"""

from __future__ import annotations

import functools
import logging
import math
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from kdbench.bench.errors import InputError
from kdbench.bench.record import Epoch, Metric
from kdbench.bench.seeds import seed_of
from kdbench.bench.spec import Spec
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.stored_run import StoredRun
from kdbench.sweeps.scheduling.database import Database
from kdbench.sweeps.scheduling.pruning import asked_from, pruner_of, watch
from kdbench.sweeps.scheduling.selection import best_trial, objective
from kdbench.sweeps.suites.suite import ResolvedPair, Suite
from kdbench.sweeps.suites.tuning import Space, containing

logging.getLogger("optuna").setLevel(logging.WARNING)

KEY = "key"
"""Attribute of a trial whose setting is complete: the key of its run."""


@dataclass(frozen=True)
class Job:
    """A run to carry out for a suite."""

    planned: Planned
    spec: Spec
    watch: Callable[[Epoch], bool] = lambda epoch: True
    """Sees every epoch; answers whether the run should go on."""
    asked_from: int | None = None
    """The epoch from which on its run waits for that answer; None if the answer is always yes."""
    settled: bool = False
    """Whether it is known to have been pruned: what the store has of it is all there will be."""

    @functools.cached_property
    def views(self) -> str:
        """Runs of equal views may be trained side by side; empty without teachers."""
        return self.spec.views()


Chain = Generator[list[Job], list[StoredRun], None]
"""Yields jobs that may run side by side, and receives their runs in the same order; without jobs, it rests a moment."""


def teachers(resolved: Sequence[ResolvedPair]) -> Chain:
    """The teachers of pairs under their seeds, each trained once; without them nothing can be compared.

    Raises:
        InputError: if one could not be trained.
    """
    jobs = [
        Job(Planned(each.pair.name, "teacher", "teacher", each.seed * len(each.teachers) + number, spec.key), spec)
        for each in resolved
        for number, spec in enumerate(each.teachers)
    ]
    for job, run in zip(jobs, (yield jobs) if jobs else (), strict=True):
        if run.status != "done":
            raise InputError(f"the teacher of {job.planned.pair} could not be trained: {run.status}: {run.reason}")


Resolve = Callable[[int], ResolvedPair]
"""Gives a pair as it is carried out under a seed."""
Calibrate = Callable[[ResolvedPair, str], dict[str, float]]
"""Gives the calibrated loss weights of a method on a pair."""


def chain(
    suite: Suite,
    resolve: Resolve,
    method: str,
    plan: SweepPlan,
    store: RunStore,
    database: Database,
    calibrate: Calibrate,
) -> Chain:
    """The runs of a method on a pair: its trials one after another, then the best setting on all seeds at once.

    Trials are run with seed 0, on its split and with its teachers; the teachers of the others are trained before them.
    """
    tuned = resolve(0)
    name, metric = tuned.pair.name, plan.suite.metric
    calibrated = calibrate(tuned, method)
    space, starts = suite.space(method, calibrated), suite.starts(method, name, calibrated)
    title = f"{plan.name}/{name}/{method}"
    recalled = _trials_of(name, method, plan, store)
    opened = functools.partial(_opened, database, title, suite, method, metric, space, recalled)

    def asked(study: optuna.Study, number: int) -> tuple[Any, FrozenTrial | None, Job]:
        trial, told = _ask(study, number, space, starts)
        setting = {parameter: trial.params[parameter] for parameter in space}
        spec = suite.spec(tuned, method, setting, test=False)
        if told is None:
            trial.set_user_attr(KEY, spec.key)
        settled = told is not None and told.state == TrialState.PRUNED
        asks = asked_from(study.pruner, suite, number, told)
        planned = Planned(name, method, "trial", number, spec.key, setting)
        return trial, told, Job(planned, spec, watch(database, study, trial, told, asks), asks, settled)

    study = yield from database.settled(title, opened)
    trials: list[tuple[Planned, StoredRun]] = []
    for number in range(suite.tuning.trials):
        trial, told, job = yield from database.settled(title, functools.partial(asked, study, number))
        (run,) = yield [job]
        trials.append((job.planned, run))
        if told is None:
            ended = functools.partial(_end, study, trial, job.planned, run, plan, suite.show, metric)
            yield from database.settled(title, ended)
    best = best_trial(trials, suite.show, metric)
    setting = best.setting if best else starts[0]
    if not (seeds := [resolve(seed) for seed in range(1, suite.seeds + 1)]):
        return
    yield from teachers(seeds)
    specs = [suite.spec(each, method, setting, test=True) for each in seeds]
    yield [Job(Planned(name, method, "seed", spec.seed, spec.key, setting), spec) for spec in specs]


def _opened(
    database: Database,
    title: str,
    suite: Suite,
    method: str,
    metric: Metric,
    space: Space,
    recalled: list[Recalled],
) -> optuna.Study:
    """A study with all trials that are known."""
    study = optuna.create_study(
        storage=database.storage,
        study_name=title,
        direction="maximize" if metric.higher_is_better else "minimize",
        pruner=pruner_of(suite, method),
        load_if_exists=True,
    )
    _recall(study, database.storage, space, suite.show, metric, recalled)
    return study


Recalled = tuple[Planned, StoredRun, bool]
"""A trial, its run, and whether its epochs were reported to the study."""


def _trials_of(pair: str, method: str, plan: SweepPlan, store: RunStore) -> list[Recalled]:
    """The trials of a method on a pair that the plan and the store know, up to the first that has not ended.

    A run that stands in several places was watched for the first of them alone.
    """
    first = _first_places(plan)
    trials: dict[int, Planned] = {}
    for planned in plan.started():
        if (planned.pair, planned.method, planned.phase) == (pair, method, "trial"):
            trials[planned.number] = planned
    found: list[Recalled] = []
    while (trial := trials.get(len(found))) and (run := store.get(trial.key)) and (run.finished or run.pruned):
        found.append((trial, run, first[trial.key] == trial))
    return found


def _recall(
    study: optuna.Study,
    storage: optuna.storages.BaseStorage,
    space: Space,
    shows: str,
    metric: Metric,
    trials: list[Recalled],
) -> None:
    """Adds the trials that a study lacks, as it would have them had it never been away."""
    there = sum(KEY in trial.user_attrs for trial in study.get_trials(deepcopy=False))
    for planned, run, watched in trials[there:]:
        reported = {epoch.number: epoch.validation for epoch in run.epochs} if watched else {}
        value = objective(run, shows, metric) if run.finished else reported.get(max(reported, default=0), math.nan)
        frozen = FrozenTrial(
            number=planned.number,
            state=TrialState.COMPLETE if run.finished else TrialState.PRUNED,
            value=None if math.isnan(value) else value,
            datetime_start=datetime.fromtimestamp(run.started),
            datetime_complete=datetime.fromtimestamp(run.ended),
            params=planned.setting,
            distributions=containing(space, planned.setting),
            user_attrs={KEY: planned.key},
            system_attrs={},
            intermediate_values=reported,
            trial_id=-1,
        )
        storage.create_new_trial(storage.get_study_id_from_name(study.study_name), frozen)


def _ask(
    study: optuna.Study, number: int, space: Space, starts: list[dict[str, Any]]
) -> tuple[Any, FrozenTrial | None]:
    """Trial `number` of those whose setting is complete, and its end if it has one.

    A trial that an earlier driver left running is taken up again. One whose driver died while its setting was being
    drawn is given up and drawn again; the seed of the draw is the number, so the setting is the same.
    """
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if KEY not in frozen.user_attrs:
            study.tell(frozen.number, state=TrialState.FAIL)
    complete = [trial for trial in study.get_trials(deepcopy=False) if KEY in trial.user_attrs]
    if number < len(complete):
        frozen = complete[number]
        if frozen.state.is_finished():
            return frozen, frozen
        return Trial(study, frozen._trial_id), None
    if number < len(starts):
        space = containing(space, starts[number])
        if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            study.enqueue_trial(starts[number])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.sampler = optuna.samplers.TPESampler(
            seed=seed_of(study.study_name, number) % 2**32, n_startup_trials=min(10, 1 + number // 2)
        )
        return study.ask(fixed_distributions=space), None


def _end(
    study: optuna.Study, trial: Any, planned: Planned, run: StoredRun, plan: SweepPlan, shows: str, metric: Metric
) -> None:
    """Ends a trial as its run has ended, unless another driver has."""
    if not study.get_trials(deepcopy=False)[trial.number].state.is_finished():
        _report_rest(study, trial, planned, run, plan)
        _tell(study, trial, run, shows, metric)


def _report_rest(study: optuna.Study, trial: Any, planned: Planned, run: StoredRun, plan: SweepPlan) -> None:
    """Reports the epochs of a run that were not watched for its trial: another suite, or a driver that died, had it.

    So a study is as it would be were it made again from the plan and the store. Of a run that stands in several places
    of the plan, only the first of them has the epochs.
    """
    reported = study.get_trials(deepcopy=False)[trial.number].intermediate_values
    rest = [epoch for epoch in run.epochs if epoch.number not in reported]
    if rest and (run.finished or run.pruned) and _first_places(plan)[planned.key] == planned:
        for epoch in rest:
            trial.report(epoch.validation, epoch.number)


def _first_places(plan: SweepPlan) -> dict[str, Planned]:
    """The first place of each run of a plan, by key."""
    first: dict[str, Planned] = {}
    for planned in plan.started():
        first.setdefault(planned.key, planned)
    return first


def _tell(study: optuna.Study, trial: Any, run: StoredRun, shows: str, metric: Metric) -> None:
    """Ends a trial as its run has ended."""
    if run.status == "stopped":
        study.tell(trial.number, state=TrialState.PRUNED, skip_if_finished=True)
    elif run.finished:
        study.tell(trial.number, objective(run, shows, metric), skip_if_finished=True)
    else:
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
