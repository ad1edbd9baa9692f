"""Searches student, method and hyperparameters together, then trains the front's students on fresh seeds.

The study lives in memory: it asks by the trial's number and is told what the store knows, so that a search that was
interrupted goes through the same trials, of which none that is finished is run again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial, TrialState

from kdbench.bench.configure import flat
from kdbench.bench.errors import InputError
from kdbench.bench.record import Metric
from kdbench.bench.seeds import seed_of
from kdbench.results.analysis.front import Trial as Found
from kdbench.results.store.plan import Planned
from kdbench.results.store.search import Search
from kdbench.results.store.stored_run import StoredRun
from kdbench.sweeps.scheduling.selection import objective
from kdbench.sweeps.scheduling.study import Calibrate, Chain, Job, teachers
from kdbench.sweeps.suites.suite import ResolvedPair, Suite, of_recipe
from kdbench.sweeps.suites.tuning import containing

STUDENT, METHOD = "student", "method"
TOGETHER = 4
"""Trials that are asked for at once, whatever the number of workers, so that it changes none."""
STARTUP = 10
"""Trials before the sampler models them: those after the first of each student and method are drawn at random."""

Resolve = Callable[[str, int], ResolvedPair]
"""Gives the pair of a student as it is carried out under a seed."""


@dataclass(frozen=True)
class Space:
    """What is searched together, and what a draw of it means."""

    suite: Suite
    search: Search
    methods: tuple[str, ...]
    resolve: Resolve
    calibrate: Calibrate

    @property
    def students(self) -> list[str]:
        """Names of the candidates."""
        return [each.name for each in self.search.candidates]

    def first(self, number: int) -> dict[str, Any]:
        """Where one of the first trials starts: every student and every method once, as the paper has it."""
        method = self.methods[number % len(self.methods)]
        start = self.suite.starts(method, "", {})[0]
        names = {self._named(method, name): value for name, value in start.items()}
        names |= {self._named(method, name): 1.0 for name in self.suite.weights(method)}
        return {STUDENT: self.students[number % len(self.students)], METHOD: method, **names}

    def drawn(self, trial: Trial, first: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
        """The student, the method and the setting of a trial; weights of losses are drawn in calibrated units."""
        student = trial.suggest_categorical(STUDENT, self.students)
        method = trial.suggest_categorical(METHOD, self.methods)
        weights = self.suite.weights(method)
        space = self.suite.space(method, dict.fromkeys(weights, 1.0))
        given = {name: first[self._named(method, name)] for name in space if self._named(method, name) in first}
        space |= containing({name: space[name] for name in given}, given)
        values = {name: _suggested(trial, self._named(method, name), each) for name, each in space.items()}
        units = self._units(student, method)
        return student, method, values | {name: values[name] * unit for name, unit in units.items()}

    def _units(self, student: str, method: str) -> dict[str, float]:
        """The calibrated values of a method's weights on a student's pair; the paper's where they cannot be had."""
        names = self.suite.weights(method)
        known = self.calibrate(self.resolve(student, 0), method) if names else {}
        paper = flat(self.suite.configured(method, {}).hyperparameters())
        return {name: known.get(name) or paper.get(name, 1.0) for name in names}

    @staticmethod
    def _named(method: str, name: str) -> str:
        """A hyperparameter is its method's own, the recipe's fields are shared by all."""
        return name if of_recipe(name) else f"{method}.{name}"


def search_chain(space: Space, metric: Metric) -> Chain:
    """The trials of a search, some at a time."""
    suite, search = space.suite, space.search
    study = optuna.create_study(directions=["maximize" if metric.higher_is_better else "minimize", "minimize"])
    firsts = max(len(space.students), len(space.methods))
    for start in range(0, suite.tuning.trials, TOGETHER):
        asked: list[tuple[Trial, str, Job]] = []
        for number in range(start, min(start + TOGETHER, suite.tuning.trials)):
            first = space.first(number) if number < firsts else {}
            trial = _ask(study, suite.name, number, first)
            student, method, setting = space.drawn(trial, first)
            pair = space.resolve(student, 0)
            spec = suite.spec(pair, method, setting, test=False)
            planned = Planned(pair.pair.name, method, "trial", number, spec.key, setting)
            asked.append((trial, student, Job(planned, spec)))
        runs = yield [job for _, _, job in asked]
        for (trial, student, _), run in zip(asked, runs, strict=True):
            _tell(study, trial, run, suite.show, metric, search.cost(student))


def front_chain(suite: Suite, found: Found, resolve: Resolve) -> Chain:
    """A point of the front on all seeds, after the teachers of these."""
    mine, student = found.planned, found.candidate.name
    if not (seeds := [resolve(student, seed) for seed in range(1, suite.seeds + 1)]):
        return
    yield from teachers(seeds)
    specs = [suite.spec(each, mine.method, mine.setting, test=True) for each in seeds]
    yield [Job(Planned(mine.pair, mine.method, "seed", spec.seed, spec.key, mine.setting), spec) for spec in specs]


def _ask(study: optuna.Study, name: str, number: int, first: Mapping[str, Any]) -> Trial:
    if first:
        study.enqueue_trial(dict(first))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.sampler = optuna.samplers.TPESampler(
            seed=seed_of(name, "students", number) % 2**32, n_startup_trials=STARTUP, constant_liar=True
        )
        return study.ask()


def _suggested(trial: Trial, name: str, space: BaseDistribution) -> Any:
    if isinstance(space, FloatDistribution):
        return trial.suggest_float(name, space.low, space.high, log=space.log, step=space.step)
    if isinstance(space, IntDistribution):
        return trial.suggest_int(name, space.low, space.high, log=space.log, step=space.step)
    if isinstance(space, CategoricalDistribution):
        return trial.suggest_categorical(name, space.choices)
    raise InputError(f"{name} has a space that cannot be searched: {space}.")


def _tell(study: optuna.Study, trial: Trial, run: StoredRun, shows: str, metric: Metric, cost: float) -> None:
    if run.finished:
        study.tell(trial, [objective(run, shows, metric), cost])
    else:
        study.tell(trial, state=TrialState.FAIL)
