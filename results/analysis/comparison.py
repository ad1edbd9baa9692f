"""Whether methods differ: against the controls by paired seeds, and among each other by mean ranks.

Over pairs, a pair is a block, as data sets are in Demšar (2006): seeds of one pair share its networks and its teacher,
so to count each as a block would claim evidence that is not there. Within one pair its seeds are independent blocks,
for what is said of that pair alone. Pairs of a suite share its data, so neither speaks of other data.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.errors import InputError, unknown
from results.analysis.leaderboard import BASELINE, CONTROL
from results.analysis.statistics import (
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
from results.store.plan import SweepPlan
from results.store.run_store import RunStore

Scores = Mapping[str, Mapping[str, Mapping[int, float]]]
"""Test accuracy by pair, method and seed; of what is compared in the middle, and what that is done on outside."""


@dataclass(frozen=True)
class Comparison:
    """A method against a control on a pair. P values are two-sided; a field that takes more seeds is None.

    Where pairs are compared, the method is the pair, and so is the control; the pair is the method.
    """

    pair: str
    control: str
    method: str
    difference: Interval
    """Method minus control, paired by seed."""
    p: float | None
    """Paired t-test: the main one, as it agrees with the interval."""
    p_holm: float | None
    """The same, corrected for all methods that are compared with this control on this pair."""
    p_wilcoxon: float | None
    """Signed-rank test, not corrected: a check that does not ask for normal differences."""
    won: float
    """Share of the seeds in which the method is better; a tie counts half."""
    probability: float | None
    """That the method is better under one more seed."""

    @property
    def differs(self) -> bool:
        """Whether the corrected test finds a difference."""
        return self.p_holm is not None and self.p_holm < LEVEL


@dataclass(frozen=True)
class Ranked:
    """Ranks over pairs, or over the seeds of one; or why there are none."""

    over: str
    """pairs, or the name of the one pair (of methods) or method (of pairs) whose seeds are the blocks."""
    blocks: list[str]
    left_out: list[str]
    """Pairs and methods that lack what the others share."""
    ranking: Ranking | None
    reason: str = ""


@dataclass(frozen=True)
class Compared:
    """All comparisons of a suite, as far as it is done."""

    suite: str
    shows: str
    """last or best: the epoch whose test accuracy is compared."""
    comparisons: list[Comparison]
    rankings: list[Ranked]
    """Of methods, over pairs first, then over the seeds of each; of pairs, over the seeds of each method."""
    missing: list[str]
    """What could not be compared in full, and why."""
    noun: str = "method"
    """What is compared: methods on each pair, or pairs by each method."""


def compare(plan: SweepPlan, store: RunStore, against: Sequence[str] = ()) -> Compared:
    """Compares the methods of a suite as it stands.

    Args:
        plan: of the suite.
        store: where its runs are.
        against: controls; none are the student and kd, those of them that the suite has.

    Raises:
        InputError: for a control that is no method of the suite, or a suite without the default ones.
    """
    known = {method for pair in plan.pairs() for method in plan.methods(pair)}
    controls = _known(plan, "method", against, known) or [name for name in (CONTROL, BASELINE) if name in known]
    if not controls:
        raise InputError(
            f"{plan.name} has neither {CONTROL} nor {BASELINE}: give --against, of {', '.join(sorted(known))}."
        )
    scores = scores_of(plan, store)
    missing = _unfinished(plan, scores) + [
        f"{pair}: {control} is not among its methods."
        for pair in plan.pairs()
        for control in controls
        if control not in plan.methods(pair)
    ]
    return Compared(plan.name, plan.suite.show, comparisons(scores, controls), rankings(scores), missing)


def compare_pairs(plan: SweepPlan, store: RunStore, against: Sequence[str] = ()) -> Compared:
    """Compares the pairs of a suite, by each method, as it stands: whether another teacher makes a better student.

    Args:
        plan: of the suite.
        store: where its runs are.
        against: pairs that are controls; none is the suite's first.

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
    return Compared(plan.name, plan.suite.show, found, ranks, _unfinished(plan, scores), "pair")


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
    """Test accuracies of a suite by pair, method and seed, of what has one, in the suite's order."""
    scores: dict[str, dict[str, dict[int, float]]] = {
        pair: {method: {} for method in plan.methods(pair)} for pair in plan.pairs()
    }
    for planned in plan.runs():
        run = store.get(planned.key) if planned.phase == "seed" else None
        value = run.outcome.headline(plan.suite.show, "test") if run and run.outcome else None
        if value is not None:
            scores[planned.pair][planned.method][planned.number] = value
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
            p_values = [t_test(gain) for gain in gains.values()]
            family = [
                Comparison(
                    pair,
                    control,
                    method,
                    interval(gain),
                    p,
                    p_holm,
                    wilcoxon(gain),
                    share_won(gain),
                    probability_better(gain),
                )
                for (method, gain), p, p_holm in zip(gains.items(), p_values, holm(p_values), strict=True)
            ]
            found += sorted(family, key=lambda each: -each.difference.mean)
    return found


def rankings(scores: Scores) -> list[Ranked]:
    """Ranks over pairs, then over the seeds of each pair."""
    return [over_pairs(scores), *(over_seeds(pair, methods) for pair, methods in scores.items())]


def over_pairs(scores: Scores) -> Ranked:
    """Ranks by the mean on each pair: of the methods that all pairs share, or else those that most of them share."""
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
    """Ranks on one pair, a block a seed, of the methods that have every seed."""
    seeds = sorted({seed for scores in methods.values() for seed in scores})
    whole = [method for method, scores in methods.items() if scores.keys() == set(seeds)]
    left_out = [method for method in methods if method not in whole]
    if len(seeds) < 2 or len(whole) < 3:
        reason = f"ranks on {pair} take two seeds of three rows, but have {len(seeds)} of {len(whole)}."
        return Ranked(pair, [], left_out, None, reason)
    blocks = [{method: methods[method][seed] for method in whole} for seed in seeds]
    return Ranked(pair, [f"seed {seed}" for seed in seeds], left_out, ranking(blocks))
