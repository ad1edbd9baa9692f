"""A paper's table beside ours: what was published, what our runs of its protocol gave, and how the two compare."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import TypeAdapter, ValidationError

from kdbench.bench.errors import InputError
from kdbench.bench.record import EpochScores, Metrics
from kdbench.results.analysis.order import Order
from kdbench.results.analysis.paper_table import Table, Wanted
from kdbench.results.analysis.reproduced import Reproduced, orders, ranked, with_gains, with_verdicts
from kdbench.results.analysis.statistics import interval
from kdbench.results.analysis.verdict import Judgement
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.stored_run import StoredRun

BAD = ("diverged", "unsupported", "failed", "damaged")


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
    margins: dict[str, float]
    """By measure, in its unit: a smaller difference from the published does not matter."""
    rows: list[Reproduced]
    orders: list[Order] = field(default_factory=list)
    """How far ours have the paper's order: for each student and share of the data, then for all together."""
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
    rows = reproduced(table, planned, store)
    return Reproduction(
        table=table.name,
        about=table.about,
        title=plan.name if plan else table.name,
        scale=table.scale,
        data=table.data,
        statistic=table.statistic,
        epoch=table.epoch,
        asked=table.seeds,
        margins=table.margins,
        rows=rows,
        orders=orders(rows),
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
    return ranked(with_gains(table, with_verdicts(table, rows)))


def _row(table: Table, want: Wanted, runs: Mapping[int, StoredRun], teacher: StoredRun | None) -> Reproduced:
    """A number of ours, from its runs by seed, not yet judged; without any, it depends on the teacher why."""
    found = {number: measured(want, run, table.epoch) for number, run in sorted(runs.items())}
    seeds = {number: value for number, value in found.items() if value is not None}
    if not seeds:
        return _without_a_number(want, runs, teacher)
    values = list(seeds.values())
    value = statistics.median(values) if table.statistic == "median" else statistics.fmean(values)
    lost = [run.status for number, run in runs.items() if number not in seeds and run.status in BAD]
    said = f"of {len(runs)} seeds, {len(lost)} {' and '.join(sorted(set(lost)))}" if lost else ""
    return Reproduced(want, value, interval(values), seeds, Judgement("not published", said))


def _without_a_number(want: Wanted, runs: Mapping[int, StoredRun], teacher: StoredRun | None) -> Reproduced:
    """Why there is no number of ours."""
    bad = [run for run in runs.values() if run.status in BAD]
    reason = f"{bad[0].status}: {bad[0].reason}" if bad else "under way" if runs else ""
    if not runs and teacher and teacher.status in BAD:
        reason = f"its teacher {teacher.status}: {teacher.reason}"
    return Reproduced(want, None, None, {}, Judgement("not comparable" if bad else "not run", reason))


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
