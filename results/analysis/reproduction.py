"""A paper's table beside ours: what was published, what our runs of its protocol gave, and how the two compare."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import TypeAdapter, ValidationError

from bench.errors import InputError
from bench.record import EpochScores, Metrics
from results.analysis.paper_table import Table, Wanted
from results.analysis.statistics import Interval, interval, paired
from results.analysis.verdict import Verdict, judge
from results.store.plan import Planned, SweepPlan
from results.store.run_store import RunStore, StoredRun

BAD = ("diverged", "unsupported", "failed")


@dataclass(frozen=True)
class Reproduced:
    """A number of the paper's table beside ours, in the published unit."""

    wanted: Wanted
    value: float | None
    """Ours, by the paper's statistic."""
    interval: Interval | None
    """The 95 % interval of our mean over seeds."""
    seeds: dict[int, float]
    """Ours by seed."""
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
    """A paper's table as far as it is reproduced."""

    table: str
    about: str
    title: str
    """The plan's name, or the table's if nothing was run."""
    scale: str
    data: str
    statistic: str
    epoch: str
    asked: int
    """The number of seeds that each row is run with."""
    rows: list[Reproduced]
    departures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def reproduction_of(table: Table, plan: SweepPlan | None, store: RunStore | None) -> Reproduction:
    """A table as it stands.

    Args:
        table: what is asked for.
        plan: under which it was run; None if it never was.
        store: where the runs are; None if there are none.
    """
    started: Sequence[Planned] = plan.started() if plan else ()
    planned = [each for each in started if each.phase == "teacher" or each.number <= table.seeds]
    return Reproduction(
        table=table.name,
        about=table.about,
        title=plan.name if plan else table.name,
        scale=table.scale,
        data=table.data,
        statistic=table.statistic,
        epoch=table.epoch,
        asked=table.seeds,
        rows=reproduced(table, planned, store),
        departures=table.departures,
        notes=table.notes,
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


def reproduced(table: Table, planned: Sequence[Planned], store: RunStore | None) -> list[Reproduced]:
    """Every number of a table beside ours, as far as there are runs.

    Args:
        table: what is asked for.
        planned: runs of its protocol.
        store: where they are; None if nothing was ever run.
    """
    known = [(each, run) for each in planned if store and (run := store.get(each.key))]
    rows = []
    for want in table.wanted:
        teacher = None
        if want.phase == "taught":
            scored = [run for p, run in known if p.pair == want.pair and run.outcome and run.outcome.teacher]
            runs = dict(enumerate(scored[:1]))
        else:
            name = "teacher" if want.phase == "teacher" else want.row
            runs = {p.number: run for p, run in known if (p.pair, p.method, p.phase) == (want.pair, name, want.phase)}
            teacher = next((run for p, run in known if (p.pair, p.phase, p.number) == (want.pair, "teacher", 0)), None)
        rows.append(_row(table, want, runs, teacher))
    return _ranked(rows)


def _row(table: Table, want: Wanted, runs: Mapping[int, StoredRun], teacher: StoredRun | None) -> Reproduced:
    """A number beside ours, from its runs by seed; without any, it depends on the teacher why there are none."""
    found = {number: measured(want, run, table.epoch) for number, run in sorted(runs.items())}
    seeds = {number: value for number, value in found.items() if value is not None}
    if not seeds:
        return _without_a_number(want, runs, teacher)
    values = list(seeds.values())
    value = statistics.median(values) if table.statistic == "median" else statistics.fmean(values)
    ours = interval(values)
    difference = None if want.published is None else value - want.published.value
    verdict, reason = judge(want, ours, table.incomparable or want.incomparable)
    if lost := [run.status for number, run in runs.items() if number not in seeds and run.status in BAD]:
        said = f"of {len(runs)} seeds, {len(lost)} {' and '.join(sorted(set(lost)))}"
        reason = "; ".join(filter(None, (reason, said)))
    return Reproduced(want, value, ours, seeds, difference, verdict, reason)


def _without_a_number(want: Wanted, runs: Mapping[int, StoredRun], teacher: StoredRun | None) -> Reproduced:
    """Why there is no number of ours."""
    bad = [run for run in runs.values() if run.status in BAD]
    reason = f"{bad[0].status}: {bad[0].reason}" if bad else "under way" if runs else ""
    if not runs and teacher and teacher.status in BAD:
        reason = f"its teacher {teacher.status}: {teacher.reason}"
    return Reproduced(want, None, None, {}, None, "not comparable" if bad else "not run", reason)


def measured(want: Wanted, run: StoredRun, epoch: str) -> float | None:
    """The number as a finished run has it on the test part, in the published unit; None if it has none."""
    if run.outcome is None:
        return None
    scores = run.outcome.scores.get(epoch)
    name = want.share or ("top5" if want.metric.endswith("top5") else "accuracy")
    predictions, validated = (_predictions(want, scores, part) for part in ("test", "validation"))
    if want.best_of:
        chosen = max(want.best_of, key=lambda each: validated.get(each, {}).get(name, -math.inf))
    else:
        chosen = want.prediction or next(iter(predictions), "")
    metrics = run.outcome.teacher.get("test", {}) if want.phase == "taught" else predictions.get(chosen, {})
    share = metrics.get(name)
    if share is None or not math.isfinite(share):
        return None
    if want.unit == "errors":
        rows = [sum(row) for row in run.outcome.confusion]
        images = sum(rows[label] for label in want.classes or range(len(rows)))
        return float(round((1 - share) * images))
    return float(100 * (1 - share if want.lower else share))


def _predictions(want: Wanted, scores: EpochScores | None, part: str) -> dict[str, Metrics]:
    """The metrics of each prediction of the student that a number is of."""
    students = scores.part(part) if scores else {}
    return students.get(want.student or next(iter(students), ""), {})


def _ranked(rows: list[Reproduced]) -> list[Reproduced]:
    """Marks the best of our students for each pair, measure and exit, and what seeds do not tell apart from it."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, row in enumerate(rows):
        want = row.wanted
        if row.interval and want.phase == "seed":
            compared = (want.pair, want.part, want.metric, want.classes, want.prediction, want.best_of, want.student)
            groups.setdefault(compared, []).append(index)
    marked = list(rows)
    for indices in groups.values():
        sign = -1 if rows[indices[0]].wanted.lower else 1
        lead = max(indices, key=lambda index: sign * (rows[index].value or 0.0))
        for index in indices if len(indices) > 1 else ():
            gap = paired(rows[lead].seeds, rows[index].seeds)
            tied = index != lead and gap is not None and gap.half_width is not None and gap.includes_zero
            if index == lead or tied:
                marked[index] = replace(rows[index], best=True, tied=tied)
    return marked
