"""A paper's table beside ours: what was published, what our runs of its protocol gave, and how the two compare."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from bench.errors import InputError
from results.analysis.literature import Published
from results.analysis.statistics import ROUNDING, Interval, interval, paired
from results.store.plan import Planned, SweepPlan
from results.store.run_store import RunStore, StoredRun

Metric = Literal[
    "", "accuracy_top1", "accuracy_top5", "error_top1", "error_top5", "test_errors", "test_errors_digit3"
]  # fmt: skip
"""Of published.csv, those that a run of ours measures."""
Verdict = Literal["within", "below", "above", "not comparable", "not run", "not published"]
BAD = ("diverged", "unsupported", "failed")
ONE_SEED = "one seed, so no interval"
ONE_NETWORK = "published weights, so no interval"


@dataclass(frozen=True)
class Wanted:
    """A number of a paper's table, and where ours is found."""

    pair: str
    row: str
    """The plan's name of it, shared by the numbers of one row."""
    label: str
    metric: Metric
    published: Published | None
    part: str = ""
    """Of the data set, if not the usual parts."""
    phase: str = "seed"
    """Of the plan: seed, or teacher; "taught" is a teacher that was not trained, as its students' runs score it."""
    prediction: str = ""
    student: str = ""
    share: str = ""
    classes: tuple[int, ...] = ()
    incomparable: str = ""
    """Why it cannot be compared, if so."""

    @property
    def unit(self) -> str:
        """% or errors."""
        return "errors" if self.metric.startswith("test_errors") else "%"

    @property
    def lower(self) -> bool:
        """Whether lower is better."""
        return "error" in self.metric


@dataclass(frozen=True)
class Table:
    """A paper's table as it is asked for: whole, or a part of it."""

    name: str
    about: str
    scale: str
    data: str
    statistic: str
    """mean or median, the paper's."""
    epoch: str
    """last or best, of which the numbers are."""
    seeds: int
    """That a row is run with."""
    incomparable: str
    """Why nothing of it can be compared, if so."""
    wanted: list[Wanted]
    departures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def values(self) -> dict[str, Any]:
        """All of it as JSON values, as a plan keeps it."""
        values: dict[str, Any] = TypeAdapter(Table).dump_python(self, mode="json")
        return values


@dataclass(frozen=True)
class Reproduced:
    """A number of the paper's table beside ours, in the published unit."""

    wanted: Wanted
    value: float | None
    """Ours, by the paper's statistic."""
    interval: Interval | None
    """95 %, of the mean over seeds."""
    seeds: dict[int, float]
    difference: float | None
    """Ours less the published."""
    verdict: Verdict
    reason: str
    best: bool = False
    """Whether ours is the best of its pair, or cannot be told apart from it."""
    tied: bool = False

    @property
    def judged(self) -> str:
        """The verdict with its reason."""
        if self.verdict in ("below", "above"):
            return f"{self.verdict}: {self.reason}"
        return f"{self.verdict} ({self.reason})" if self.reason else self.verdict


@dataclass(frozen=True)
class Reproduction:
    """A table as it stands."""

    table: str
    about: str
    title: str
    """The plan's name, or the table's if nothing was run."""
    scale: str
    data: str
    statistic: str
    epoch: str
    asked: int
    """Seeds that a row is run with."""
    rows: list[Reproduced]
    departures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def reproduction_of(table: Table, plan: SweepPlan | None, store: RunStore | None) -> Reproduction:
    """A table as it stands.

    Args:
        table: what is asked for.
        plan: under which it was run; None if it never was.
        store: where the runs are; likewise.
    """
    started: Sequence[Planned] = plan.started() if plan else ()
    planned = [each for each in started if each.phase == "teacher" or each.number <= table.seeds]
    return Reproduction(
        table.name,
        table.about,
        plan.name if plan else table.name,
        table.scale,
        table.data,
        table.statistic,
        table.epoch,
        table.seeds,
        reproduced(table.wanted, planned, store, table.statistic, table.epoch, table.incomparable),
        table.departures,
        table.notes,
    )


def reproduction_of_plan(plan: SweepPlan, store: RunStore) -> Reproduction | None:
    """The whole table that a plan keeps, as it stands; None if it keeps none.

    Raises:
        InputError: if it was kept by a kdbench whose tables were other.
    """
    if (values := plan.suite.reproduction) is None:
        return None
    try:
        table = TypeAdapter(Table).validate_python(values)
    except ValidationError:
        again = f"kdbench reproduce {plan.folder.parent.name}"
        raise InputError(
            f"the table in {plan.folder / 'suite.json'} is of another kdbench: {again} writes it anew, and what is "
            "finished is not repeated."
        ) from None
    return reproduction_of(table, plan, store)


def reproduced(
    wanted: Sequence[Wanted],
    planned: Sequence[Planned],
    store: RunStore | None,
    statistic: str,
    epoch: str,
    incomparable: str = "",
) -> list[Reproduced]:
    """Every number beside ours, as far as there are runs.

    Args:
        wanted: the table.
        planned: runs of the protocol.
        store: where they are; None if nothing was ever run.
        statistic: mean or median, the paper's.
        epoch: last or best, of which the numbers are.
        incomparable: why nothing of all this can be compared, if so.
    """
    known = [(each, run) for each in planned if store and (run := store.get(each.key))]
    rows = []
    for want in wanted:
        if want.phase == "taught":
            scored = [run for p, run in known if p.pair == want.pair and run.outcome and run.outcome.teacher]
            rows.append(_row(want, dict(enumerate(scored[:1])), None, statistic, epoch, incomparable))
            continue
        name = "teacher" if want.phase == "teacher" else want.row
        runs = {p.number: run for p, run in known if (p.pair, p.method, p.phase) == (want.pair, name, want.phase)}
        teacher = next((run for p, run in known if (p.pair, p.phase, p.number) == (want.pair, "teacher", 0)), None)
        rows.append(_row(want, runs, teacher, statistic, epoch, incomparable))
    return _ranked(rows)


def _row(
    want: Wanted,
    runs: dict[int, StoredRun],
    teacher: StoredRun | None,
    statistic: str,
    epoch: str,
    incomparable: str,
) -> Reproduced:
    seeds = {number: value for number, run in sorted(runs.items()) if (value := measured(want, run, epoch)) is not None}
    if not seeds:
        bad = [run for run in runs.values() if run.status in BAD]
        reason = f"{bad[0].status}: {bad[0].reason}" if bad else "under way" if runs else ""
        if not runs and teacher and teacher.status in BAD:
            reason = f"its teacher {teacher.status}: {teacher.reason}"
        return Reproduced(want, None, None, {}, None, "not comparable" if bad else "not run", reason)
    values = list(seeds.values())
    value = statistics.median(values) if statistic == "median" else statistics.fmean(values)
    ours = interval(values)
    difference = None if want.published is None else value - want.published.value
    verdict, reason = judge(want, ours, incomparable or want.incomparable)
    lost = [run.status for number, run in runs.items() if number not in seeds and run.status in BAD]
    if lost:
        reason = "; ".join(
            filter(None, (reason, f"of {len(runs)} seeds, {len(lost)} {' and '.join(sorted(set(lost)))}"))
        )
    return Reproduced(want, value, ours, seeds, difference, verdict, reason)


def measured(want: Wanted, run: StoredRun, epoch: str) -> float | None:
    """The number as a finished run has it on the test part, in the published unit; None if it has none."""
    if run.outcome is None:
        return None
    scores = run.outcome.scores.get(epoch)
    students = scores.part("test") if scores else {}
    predictions = students.get(want.student or next(iter(students), ""), {})
    metrics = predictions.get(want.prediction or next(iter(predictions), ""), {})
    if want.phase == "taught":
        metrics = run.outcome.teacher.get("test", {})
    share = metrics.get(want.share or ("top5" if want.metric.endswith("top5") else "accuracy"))
    if share is None or not math.isfinite(share):
        return None
    if want.unit == "errors":
        rows = [sum(row) for row in run.outcome.confusion]
        images = sum(rows[label] for label in want.classes or range(len(rows)))
        return float(round((1 - share) * images))
    return float(100 * (1 - share if want.lower else share))


def judge(want: Wanted, ours: Interval, incomparable: str = "") -> tuple[Verdict, str]:
    """Whether ours agrees with what was published: within, or below (worse) or above (better) by how much.

    Within: the published value lies in our 95 % interval; if it has a spread of its own, the two intervals overlap.
    The interval is that of the mean, so it is the mean that is judged, whatever statistic the table shows.

    Args:
        want: with the published number.
        ours: the interval over seeds.
        incomparable: why they cannot be compared, if so.
    """
    published = want.published
    if published is None:
        return "not published", ""
    if incomparable:
        return "not comparable", incomparable
    if ours.half_width is None:
        return "not comparable", ONE_NETWORK if want.phase == "taught" else ONE_SEED
    theirs = spread_of(published)
    if abs(ours.mean - published.value) <= ours.half_width + theirs + ROUNDING:
        return "within", "the intervals overlap" if theirs else ""
    difference = ours.mean - published.value
    worse = (difference > 0) == want.lower
    return ("below" if worse else "above"), by_how_much(want, difference)


def spread_of(published: Published) -> float:
    """The half-width of a published number's 95 % interval; a spread of unknown kind counts as one, none as zero."""
    if published.spread is None or published.spread_kind != "std":
        return published.spread or 0.0
    if published.seeds is None or published.seeds < 2:
        return published.spread
    from scipy import stats

    quantile = float(stats.t.ppf(0.975, published.seeds - 1))
    return quantile * published.spread / math.sqrt(published.seeds)


def by_how_much(want: Wanted, difference: float) -> str:
    """A difference in words, as "12 more errors"."""
    if want.unit == "errors":
        return f"{abs(difference):.3g} {'more' if difference > 0 else 'fewer'} errors"
    kind = "error" if want.lower else "accuracy"
    return f"{abs(difference):.2f} points {'more' if difference > 0 else 'less'} {kind}"


def _ranked(rows: list[Reproduced]) -> list[Reproduced]:
    """Marks the best of our students for each pair, metric and exit, and what seeds do not tell apart from it."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, row in enumerate(rows):
        want = row.wanted
        if row.interval and want.phase == "seed":
            compared = (want.pair, want.part, want.metric, want.classes, want.prediction, want.student)
            groups.setdefault(compared, []).append(index)
    marked = list(rows)
    for indices in groups.values():
        sign = -1 if rows[indices[0]].wanted.lower else 1
        lead = max(indices, key=lambda index: sign * (rows[index].value or 0.0))
        for index in indices if len(indices) > 1 else ():
            gap = paired(rows[lead].seeds, rows[index].seeds)
            tied = index != lead and gap is not None and gap.half_width is not None and gap.includes_zero
            if index == lead or tied:
                marked[index] = Reproduced(**{**vars(rows[index]), "best": True, "tied": tied})
    return marked
