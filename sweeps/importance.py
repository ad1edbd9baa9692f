"""How much of what trials differ in is due to each hyperparameter."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from kdbench.results.analysis.tried import Trial
from kdbench.sweeps.suites.tuning import Space, containing

FEWEST = 10
"""Complete trials from which importance is computed: of fewer, a forest of trees says what its seed is."""


def importance_of(trials: Sequence[Trial], space: Space) -> dict[str, float]:
    """The share of the variance of validation scores that each hyperparameter explains, the largest first: fANOVA.

    Hutter, Hoos, Leyton-Brown (2014), An efficient approach for assessing hyperparameter importance. The trees' seed is
    fixed.

    Args:
        trials: of one study; those that are complete count.
        space: what was searched.

    Returns:
        Shares by name, that add up to one; none where fewer than FEWEST trials are complete or all scored alike.
    """
    complete = [trial for trial in trials if trial.status == "complete" and trial.setting.keys() >= space.keys()]
    if not space or len(complete) < FEWEST or len({trial.score for trial in complete}) < 2:
        return {}
    for trial in complete:
        space = containing(space, trial.setting)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study()
        for trial in complete:
            params = {name: trial.setting[name] for name in space}
            study.add_trial(create_trial(params=params, distributions=space, value=trial.score))
        found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return dict(found)
