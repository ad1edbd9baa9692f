"""What a method's entry claims: its row beside tuned KD, what it costs, how true it is to its teacher, by seed."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from kdbench.bench.record import Outcome
from kdbench.results.analysis.board import Row
from kdbench.results.analysis.comparison import over_pairs, scores_of
from kdbench.results.analysis.leaderboard import leaderboard
from kdbench.results.analysis.statistics import Interval, interval
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.stored_run import StoredRun

Run = tuple[Planned, StoredRun]


@dataclass(frozen=True)
class EntryRow:
    """A method on a pair; a field that cannot be known is None."""

    pair: str
    given: str
    method: str
    baseline: str
    """The tuned distillation that it is compared with."""
    seeds: int
    score: Interval | None
    gain_control: Interval | None
    p_control: float | None
    gain_baseline: Interval | None
    p_baseline: float | None
    """Corrected for the rows that it is compared among, as that of the control."""
    seconds: float
    """Training time of all trials and seeds, without the teachers'."""
    teacher_forwards: int
    """Samples that teachers were run on, over trials and seeds."""
    extra_parameters: int | None
    """That are deployed, beyond the control's."""
    training_parameters: int | None
    """That training takes beyond those deployed: teachers, peers and modules of the method; None of older records."""
    peak_memory: int | None
    """Bytes of tensors that an update holds at most; None of older records."""
    agreement: float | None
    teacher_kl: float | None
    """KL(teacher || student) in nats."""
    calibration_error: float | None
    gap: Interval | None
    """Validation score minus test score, by seed."""
    rank: float | None
    """Mean rank over the pairs that rows of the entries share; None with fewer than two pairs or three rows."""
    setting: dict[str, Any]


def entry_rows(plan: SweepPlan, store: RunStore, methods: list[str]) -> list[EntryRow]:
    """The rows of methods on every pair, in the order of the leaderboard."""
    known = [(each, run) for each in plan.runs() if each.phase == "seed" and (run := store.get(each.key))]
    rows = leaderboard(plan, store).rows
    control = {row.pair: row for row in rows if row.method == plan.suite.control}
    ranking = over_pairs(scores_of(plan, store)).ranking if rows else None
    ranks = ranking.ranks if ranking else {}
    return [
        _row(plan, row, control.get(row.pair), known, ranks.get(row.method)) for row in rows if row.method in methods
    ]


def _row(plan: SweepPlan, row: Row, control: Row | None, known: list[Run], rank: float | None) -> EntryRow:
    suite = plan.suite
    ended = [run.outcome for each, run in known if (each.pair, each.method) == (row.pair, row.method) and run.outcome]
    gaps = [gap for each in ended if (gap := _gap(each, suite.show)) is not None]
    extra = row.parameters - control.parameters if row.parameters and control and control.parameters else None
    return EntryRow(
        pair=row.pair,
        given=row.given,
        method=row.method,
        baseline=suite.baselines.get(row.given, suite.baseline),
        seeds=row.seeds,
        score=row.score,
        gain_control=row.gain_control,
        p_control=row.p_control,
        gain_baseline=row.gain_baseline,
        p_baseline=row.p_baseline,
        seconds=row.seconds,
        teacher_forwards=row.teacher_forwards,
        extra_parameters=extra,
        training_parameters=_most(ended, "training_parameters"),
        peak_memory=_most(ended, "peak_memory"),
        agreement=row.agreement,
        teacher_kl=_mean(ended, suite.show, "teacher_kl"),
        calibration_error=_mean(ended, suite.show, "calibration_error"),
        gap=interval(gaps) if gaps else None,
        rank=rank,
        setting=row.setting,
    )


def _mean(ended: list[Outcome], shows: str, metric: str) -> float | None:
    values = [value for each in ended if (value := each.headline(shows, "test", metric)) is not None]
    return statistics.fmean(values) if values else None


def _most(ended: list[Outcome], cost: str) -> int | None:
    """The largest cost of seeds; None if a record lacks it."""
    return max((int(each.cost[cost]) for each in ended), default=None) if all(cost in e.cost for e in ended) else None


def _gap(outcome: Outcome, shows: str) -> float | None:
    validation, test = outcome.headline(shows, "validation"), outcome.headline(shows, "test")
    return None if validation is None or test is None else validation - test


def claims_of(plan: SweepPlan, store: RunStore, method: str) -> dict[str, Any]:
    """What an entry claims, as JSON values."""
    runs = [(each, run) for each in plan.runs() if (run := store.get(each.key))]
    mine = [(each, run) for each, run in runs if each.method == method and run.outcome]
    scores: dict[str, dict[str, float | None]] = {}
    machines, teachers, data = dict[str, None](), dict[str, str](), set[str]()
    for each, run in mine:
        assert run.outcome
        if each.phase == "seed":
            score = run.outcome.headline(plan.suite.show, "test")
            scores.setdefault(each.pair, {})[str(each.number)] = score
        machine = run.outcome.environment
        machines[
            f"{machine.hardware}, {machine.device}, {machine.threads} thread(s), Python {machine.python}, "
            f"torch {machine.torch}, timm {machine.timm}, commit {machine.commit}"
        ] = None
        teachers |= run.outcome.provenance.weights
        data.add(run.outcome.provenance.data)
    return {
        "rows": [asdict(row) for row in entry_rows(plan, store, [method])],
        "seeds": scores,
        "data": sorted(data),
        "teachers": dict(sorted(teachers.items())),
        "environments": list(machines),
    }
