"""How a suite's runs stand, and whether teachers are whole; derived from files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from bench.errors import InputError
from results.store.plan import SweepPlan
from results.store.run_store import RunStore, WeightsLeftOut

TEACHING = ("teacher_forwards", "teacher_cached", "teacher_seconds")


def status_of(plan: SweepPlan, store: RunStore) -> dict[str, Any]:
    """Counts of runs by method and status, with the reasons of those that failed."""
    counts: dict[str, Counter[str]] = {}
    failures = []
    asked = Counter(dict.fromkeys(TEACHING, 0.0))
    for planned in plan.runs():
        run = store.get(planned.key)
        status = run.status if run else "pending"
        status = "pruned" if status == "stopped" else status
        counts.setdefault(planned.method, Counter())[status] += 1
        if run and run.outcome:
            asked.update({name: run.outcome.cost.get(name, 0.0) for name in TEACHING})
        if run and status == "failed":
            failures.append({"key": run.key, "method": planned.method, "phase": planned.phase, "reason": run.reason})
    started = sum(sum(counter.values()) for method, counter in counts.items() if method != "teacher")
    return {
        "suite": plan.name,
        "expected": plan.expected(),
        "started": started,
        "methods": {method: dict(counter) for method, counter in counts.items()},
        "failures": failures,
        "teaching": dict(asked),
    }


def page(values: dict[str, Any]) -> str:
    """The counts as text."""
    lines = [f"{values['suite']}: {values['started']} of {values['expected']} runs started"]
    for method, counts in values["methods"].items():
        lines.append(f"  {method}: " + ", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    lines += [f"  {taught(values['teaching'])}"] if values["teaching"]["teacher_forwards"] else []
    lines += [f"  failed: {f['method']} {f['phase']} ({f['key']}): {f['reason']}" for f in values["failures"]]
    return "\n".join(lines)


def taught(cost: Mapping[str, float]) -> str:
    """What teachers cost, and what keeping their answers saved, as a sentence."""
    asked, cached, seconds = (cost.get(name, 0.0) for name in TEACHING)
    run = asked - cached
    saved = f", about {cached * seconds / run:.0f} s saved" if run and seconds else ""
    return (
        f"teachers were asked about {asked:,.0f} images and run on {run:,.0f} of them, in {seconds:.0f} s; "
        f"{cached:,.0f} answers were at hand{saved}"
    )


def teachers_of(store: RunStore) -> list[dict[str, Any]]:
    """Every teacher with its measured accuracy; `problem` is empty if its weights are what they were, or left out."""
    rows = []
    for reference, model in store.teachers().items():
        kind, _, name = reference.partition(":")
        run = store.get(name) if kind == "run" else None
        outcome = run.outcome if run else None
        problem, left_out = "", False
        try:
            store.weights(reference)
        except WeightsLeftOut:
            left_out = True
        except InputError as error:
            problem = str(error)
        rows.append(
            {
                "reference": reference,
                "model": model,
                "data": run.spec.data.name if run else "",
                "epochs": run.spec.recipe.epochs if run else None,
                "test_accuracy": outcome.headline("last", "test") if outcome else None,
                "problem": problem,
                "left_out": left_out,
            }
        )
    return rows


def teachers_page(rows: list[dict[str, Any]]) -> str:
    """The teachers as text."""
    lines = []
    for row in rows:
        accuracy = f"test {100 * row['test_accuracy']:.2f} %" if row["test_accuracy"] is not None else "imported"
        trained = f"{row['data']}, {row['epochs']} epochs, " if row["data"] else ""
        state = row["problem"] or ("weights not exported" if row["left_out"] else "verified")
        lines.append(f"{row['reference']}  {row['model']}  {trained}{accuracy}  {state}")
    return "\n".join(lines) or "There are no teachers yet."
