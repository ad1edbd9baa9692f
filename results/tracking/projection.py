"""What MLflow is told of a run: numbers over epochs, numbers of the result, parameters and tags."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from kdbench.bench.record import Epoch, Metrics, Outcome
from kdbench.bench.spec import Spec
from kdbench.results.analysis.board import Row
from kdbench.results.analysis.targets import targets
from kdbench.results.pages.report import Number
from kdbench.results.store.stored_run import StoredRun


def epoch_numbers(epoch: Epoch) -> Iterator[Number]:
    """The losses of an epoch, its scores, and what it cost; the step is its number."""
    values = {f"loss/{name}": value for name, value in epoch.losses.items()}
    values |= {"train": epoch.train, "validation": epoch.validation, "learning_rate": epoch.learning_rate}
    values |= {"seconds": epoch.seconds}
    values |= {"teacher_forwards": epoch.teacher_forwards, "teacher_cached": epoch.teacher_cached}
    for name, value in values.items():
        yield Number(name, float(value), epoch.number)


def result_numbers(outcome: Outcome) -> Iterator[Number]:
    """The headline's scores, the primary metric of every prediction, the cost, and which targets are met."""
    for which, scores in outcome.scores.items():
        for part in scores.parts:
            predictions = [
                (f"{student}/{prediction}", metrics)
                for student, by_prediction in scores.part(part).items()
                for prediction, metrics in by_prediction.items()
            ]
            for name, value in (predictions[0][1] if predictions else {}).items():
                yield Number(f"{part}_{name}/{which}", value)
            for place, metrics in predictions:
                for name, value in _of_each_prediction(outcome, metrics).items():
                    yield Number(f"{part}_{name}/{which}/{place}", value)
    for name, value in outcome.cost.items():
        yield Number(f"cost/{name}", float(value))
    for target in targets(outcome) if outcome.status == "done" else ():
        if target.met is not None:
            yield Number(f"target_met/{target.name}", float(target.met))


def _of_each_prediction(outcome: Outcome, metrics: Metrics) -> Metrics:
    """What predictions are compared by: the primary metric, also on some classes alone, and the cost of an exit."""
    return {
        name: value
        for name, value in metrics.items()
        if name.startswith(outcome.metric.name) or name == "multiply_adds"
    }


def row_numbers(row: Row, score: str) -> Iterator[Number]:
    """What a row of a board says: its mean score and gains with their half-widths, and what it cost.

    Args:
        row: of one method and pair.
        score: name of the metric.
    """
    intervals = {score: row.score, "gain_over_control": row.gain_control, "gain_over_baseline": row.gain_baseline}
    for name, value in intervals.items():
        if value is not None:
            yield Number(name, value.mean)
            if value.half_width is not None:
                yield Number(f"{name}_half_width", value.half_width)
    for name, p_value in (("p_holm_control", row.p_control), ("p_holm_baseline", row.p_baseline)):
        if p_value is not None:
            yield Number(name, p_value)
    yield Number("cost/seconds", row.seconds)
    yield Number("cost/teacher_forwards", float(row.teacher_forwards))
    for name, count in {"parameters": row.parameters, "updates": row.updates, "samples": row.samples}.items():
        if count is not None:
            yield Number(f"cost/{name}", float(count))


def run_params(spec: Spec) -> dict[str, str]:
    """The specification with the names of nested fields joined by dots."""
    return {name: str(value) for name, value in _flat(spec.model_dump(mode="json"))}


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, dict) and item:
            yield from _flat(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(item) if isinstance(item, list | dict) else item


def run_tags(run: StoredRun) -> dict[str, str]:
    """How a run ended, and what it was made from and on."""
    tags = {"status": run.status, "data_fingerprint": run.spec.data.fingerprint}
    if run.reason:
        tags["reason"] = run.reason
    if run.outcome:
        environment, weights = run.outcome.environment, run.outcome.provenance.weights
        tags |= {"git_commit": environment.commit, "hardware": environment.hardware}
        tags |= {f"sha256.{reference.replace(':', '.')}": digest for reference, digest in weights.items()}
        tags["teacher_hash"] = ",".join(weights.values())
    return tags
