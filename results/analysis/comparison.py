"""Whether methods differ: against the controls by paired seeds, and among each other by mean ranks.

Over pairs, a pair is a block, as data sets are in Demšar (2006): seeds of one pair share its networks and its teacher,
so to count each as a block would claim evidence that is not there. Within one pair its seeds are independent blocks,
for what is said of that pair alone. Pairs of a suite share its data, so neither speaks of other data.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kdbench.bench.errors import InputError, unknown
from kdbench.bench.record import Metric
from kdbench.results.analysis.statistics import (
    FEWEST,
    LEVEL,
    Interval,
    Ranking,
    differences,
    holm,
    interval,
    probability_better,
    ranking,
    share_won,
    t_test,
    wilcoxon,
)
from kdbench.results.store.plan import SweepPlan
from kdbench.results.store.run_store import RunStore

Scores = Mapping[str, Mapping[str, Mapping[int, float]]]
"""Test scores by pair, method and seed, with the sign of the metric, so that higher is better.

Where pairs are compared, pair and method change places: the outer name is always what the comparison is done on.
"""


@dataclass(frozen=True)
class Comparison:
    """A method against a control on a pair. P values are two-sided; a field for which there are too few seeds is None.

    Where pairs are compared, `method` and `control` name pairs, and `pair` names the method that they are compared by.
    """

    pair: str
    control: str
    method: str
    difference: Interval
    """By how much the method is better, paired by seed: method minus control, or the reverse if lower is better."""
    p: float | None
    """P value of the paired t-test: the main one, as it agrees with the interval."""
    p_holm: float | None
    """`p` corrected for all methods that are compared with this control on this pair."""
    p_wilcoxon: float | None
    """P value of the signed-rank test, not corrected: a check that does not ask for normal differences."""
    won: float
    """Share of the seeds in which the method is better; a tie counts half."""
    probability: float | None
    """The probability that the method is better under one more seed."""

    @property
    def differs(self) -> bool:
        """Whether the corrected test finds a difference."""
        return self.p_holm is not None and self.p_holm < LEVEL


@dataclass(frozen=True)
class Ranked:
    """Mean ranks with pairs as blocks, or with the seeds of one pair as blocks; or why there are none."""

    over: str
    """pairs; or the one pair (where pairs are compared, the one method) whose seeds are the blocks."""
    blocks: list[str]
    left_out: list[str]
    """Pairs and methods that are not ranked, as they lack what the others share."""
    ranking: Ranking | None
    reason: str = ""


@dataclass(frozen=True)
class Compared:
    """All comparisons of a suite, as far as it is done."""

    suite: str
    metric: Metric
    """The suite's primary one, which is compared."""
    shows: str
    """last or best: the epoch whose test score is compared."""
    comparisons: list[Comparison]
    rankings: list[Ranked]
    """Methods are ranked over pairs first, then over the seeds of each pair; pairs over the seeds of each method."""
    missing: list[str]
    """What could not be compared in full, and why."""
    noun: str = "method"
    """What is compared: methods on each pair, or pairs by each method."""


def compare(plan: SweepPlan, store: RunStore, against: Sequence[str] = ()) -> Compared:
    """Compares the methods of a suite as it stands.

    Args:
        plan: the suite's.
        store: where its runs are.
        against: the methods to compare with; by default the suite's control and baseline, as far as it has them.

    Raises:
        InputError: for a method that the suite does not have, or a suite without its control and baseline.
    """
    known = {method for pair in plan.pairs() for method in plan.methods(pair)}
    usual = (plan.suite.control, plan.suite.baseline)
    controls = _known(plan, "method", against, known) or [name for name in usual if name in known]
    if not controls:
        raise InputError(
            f"{plan.name} has neither {usual[0]} nor {usual[1]}: give --against, of {', '.join(sorted(known))}."
        )
    scores = scores_of(plan, store)
    missing = _unfinished(plan, scores) + [
        f"{pair}: {control} is not among its methods."
        for pair in plan.pairs()
        for control in controls
        if control not in plan.methods(pair)
    ]
    found = comparisons(scores, controls) if against else within_groups(plan, scores)
    return Compared(plan.name, plan.suite.metric, plan.suite.show, found, rankings(scores), missing)


def compare_pairs(plan: SweepPlan, store: RunStore, against: Sequence[str] = ()) -> Compared:
    """Compares the pairs of a suite, by each method, as it stands: whether another teacher makes a better student.

    Args:
        plan: the suite's.
        store: where its runs are.
        against: the pairs to compare with; by default the suite's first.

    Raises:
        InputError: for a control that is no pair of the suite.
    """
    pairs = plan.pairs()
    controls = _known(plan, "pair", against, set(pairs)) or pairs[:1]
    scores = scores_of(plan, store)
    by_method: dict[str, dict[str, Mapping[int, float]]] = {}
    for pair, methods in scores.items():
        for method, seeds in methods.items():
            by_method.setdefault(method, {})[pair] = seeds
    ranks = [over_seeds(method, row) for method, row in by_method.items()]
    found = comparisons(by_method, controls)
    missing = _unfinished(plan, scores)
    return Compared(plan.name, plan.suite.metric, plan.suite.show, found, ranks, missing, "pair")


def _known(plan: SweepPlan, noun: str, against: Sequence[str], known: set[str]) -> list[str]:
    for name in against:
        if name not in known:
            raise unknown(f"{noun} of {plan.name}", name, known)
    return list(dict.fromkeys(against))


def _unfinished(plan: SweepPlan, scores: Scores) -> list[str]:
    wanted = plan.suite.seeds
    return [
        f"{pair}: {method} has {len(scores[pair].get(method, ()))} of {wanted} seeds."
        for pair in plan.pairs()
        for method in plan.methods(pair)
        if len(scores[pair].get(method, ())) < wanted
    ]


def scores_of(plan: SweepPlan, store: RunStore) -> dict[str, dict[str, dict[int, float]]]:
    """Test scores of a suite by pair, method and seed, in its order; those of a metric to minimise are negative."""
    metric = plan.suite.metric
    scores: dict[str, dict[str, dict[int, float]]] = {
        pair: {method: {} for method in plan.methods(pair)} for pair in plan.pairs()
    }
    for planned in plan.runs():
        run = store.get(planned.key) if planned.phase == "seed" else None
        value = run.outcome.headline(plan.suite.show, "test", metric.name) if run and run.outcome else None
        if value is not None:
            scores[planned.pair][planned.method][planned.number] = metric.sign * value
    return {pair: {method: seeds for method, seeds in row.items() if seeds} for pair, row in scores.items()}


def comparisons(scores: Scores, against: Iterable[str]) -> list[Comparison]:
    """Every method against every control on every pair that has both, the largest gain first."""
    found = []
    for control in against:
        for pair, methods in scores.items():
            gains = {
                method: gain
                for method, seeds in methods.items()
                if method != control and (gain := differences(seeds, methods.get(control, {})))
            }
            p_values = [t_test(gain) if len(gain) >= FEWEST else None for gain in gains.values()]
            family = [
                Comparison(
                    pair=pair,
                    control=control,
                    method=method,
                    difference=interval(gain),
                    p=p,
                    p_holm=p_holm,
                    p_wilcoxon=wilcoxon(gain),
                    won=share_won(gain),
                    probability=probability_better(gain),
                )
                for (method, gain), p, p_holm in zip(gains.items(), p_values, holm(p_values), strict=True)
            ]
            found += sorted(family, key=lambda each: -each.difference.mean)
    return found


def within_groups(plan: SweepPlan, scores: Scores) -> list[Comparison]:
    """Every method against the suite's control and the baseline of what it is given; a group is a family of tests."""
    suite, found = plan.suite, []
    for pair, methods in scores.items():
        given = {method: suite.given.get(method, "") for method in methods}
        for group in dict.fromkeys(suite.given.get(method, "") for method in (*suite.given, *given)):
            for control in (suite.control, suite.baselines.get(group, suite.baseline)):
                family = {
                    method: seeds for method, seeds in methods.items() if group == given[method] or method == control
                }
                found += comparisons({pair: family}, [control])
    return found


def rankings(scores: Scores) -> list[Ranked]:
    """Ranks over pairs, then over the seeds of each pair."""
    return [over_pairs(scores), *(over_seeds(pair, methods) for pair, methods in scores.items())]


def over_pairs(scores: Scores) -> Ranked:
    """Ranks by the mean on each pair: the methods that all pairs share, or else those that most pairs share."""
    choices = []
    for methods in [set.intersection(*map(set, scores.values())), *map(set, scores.values())]:
        pairs = [pair for pair in scores if methods <= scores[pair].keys()]
        choices.append((len(methods) >= 3 and len(pairs) >= 2, len(pairs), len(methods), pairs, methods))
    possible, _, _, pairs, methods = max(choices, key=lambda choice: choice[:3])
    if not possible:
        shared = ", ".join(sorted(choices[0][4])) or "none"
        there = "there is one pair" if len(scores) == 1 else f"the {len(scores)} pairs share {shared}"
        return Ranked("pairs", [], [], None, f"ranks over pairs take two pairs that share three methods, but {there}.")
    blocks = [{name: statistics.fmean(scores[pair][name].values()) for name in sorted(methods)} for pair in pairs]
    others = sorted({method for pair in pairs for method in scores[pair]} - methods)
    return Ranked("pairs", pairs, [pair for pair in scores if pair not in pairs] + others, ranking(blocks))


def over_seeds(pair: str, methods: Mapping[str, Mapping[int, float]]) -> Ranked:
    """Ranks on one pair, with a block for each seed: the methods that have every seed."""
    seeds = sorted({seed for scores in methods.values() for seed in scores})
    whole = [method for method, scores in methods.items() if scores.keys() == set(seeds)]
    left_out = [method for method in methods if method not in whole]
    if len(seeds) < 2 or len(whole) < 3:
        reason = f"ranks on {pair} take two seeds of three rows, but have {len(seeds)} of {len(whole)}."
        return Ranked(pair, [], left_out, None, reason)
    blocks = [{method: methods[method][seed] for method in whole} for seed in seeds]
    return Ranked(pair, [f"seed {seed}" for seed in seeds], left_out, ranking(blocks))
