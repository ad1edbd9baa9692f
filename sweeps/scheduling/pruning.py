"""Whether a trial goes on, by what the trials of its study before it had reached.

These have all ended before it begins, so their values are taken once: nothing is asked of the database after an epoch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from kdbench.bench.record import Epoch
from kdbench.methods.base import TEACHER, Net
from kdbench.sweeps.scheduling.database import Database
from kdbench.sweeps.suites.suite import Suite

STARTUP = 2
"""Trials that no median is there for."""


def warmup(suite: Suite) -> int:
    """Epochs before which no trial is pruned."""
    return max(1, suite.recipe.epochs // 2)


def asked_from(pruner: optuna.pruners.BasePruner, suite: Suite, number: int, told: FrozenTrial | None) -> int | None:
    """The first epoch after which a trial may be pruned, or was; None if it cannot be."""
    if told is not None:
        return max(told.intermediate_values, default=1) if told.state == TrialState.PRUNED else None
    never = isinstance(pruner, optuna.pruners.NopPruner) or number < STARTUP
    return None if never else warmup(suite)


def pruner_of(suite: Suite, method: str) -> optuna.pruners.BasePruner:
    """What prunes the trials of a method; none does if it has several stages, or fine-tunes."""
    stages = list(suite.configured(method, {}).stages((TEACHER, Net("teacher_2"))))
    if not suite.tuning.prune or len(stages) > 1 or suite.recipe.finetune:
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=warmup(suite))


def watch(
    database: Database, study: optuna.Study, trial: Any, told: FrozenTrial | None, asks: int | None
) -> Callable[[Epoch], bool]:
    """Reports epochs to a trial and says whether to go on; a trial that has ended gives its old answer.

    Args:
        database: of the study.
        study: of the trial.
        trial: that runs.
        told: its end if it has one.
        asks: the first epoch after which it may be pruned.
    """
    if told is not None:
        last = max(told.intermediate_values, default=0)
        return lambda epoch: told.state != TrialState.PRUNED or epoch.number < last
    trials = study.get_trials(deepcopy=False)
    reported = set(trials[trial.number].intermediate_values)
    seen: set[int] = set()
    twin = _twin(study, trials[: trial.number]) if asks is not None else None

    def goes_on(epoch: Epoch) -> bool:
        report = functools.partial(trial.report, epoch.validation, epoch.number)
        if epoch.number not in reported and database.told(report):
            reported.add(epoch.number)
        if twin is None or asks is None:
            return True
        if epoch.number not in seen:  # of a run that was taken up again all are shown anew
            seen.add(epoch.number)
            twin.report(epoch.validation, epoch.number)
        return epoch.number < asks or not twin.should_prune()

    return goes_on


def _twin(study: optuna.Study, before: list[FrozenTrial]) -> optuna.trial.Trial:
    """A trial in memory, in a study that has the trials before it."""
    copy = optuna.create_study(directions=study.directions, pruner=study.pruner)
    copy.add_trials([trial for trial in before if trial.state.is_finished()])
    return copy.ask()
