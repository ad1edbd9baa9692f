"""Records to MLflow: the only writer to it, a projection of the run store that can be rebuilt at any time.

An experiment for each suite and protocol, as NAME@HASH; a parent run for each method and pair; a child for each trial
and seed; a run "leaderboard", and a run "reproduction" where a paper's table is reproduced. Nothing is made twice: a
run is looked for by its tag before it is created, and times come from the records.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")

import pandas as pd  # noqa: E402
from filelock import FileLock  # noqa: E402
from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Metric, Param, RunTag  # noqa: E402

from bench.errors import InputError  # noqa: E402
from results.analysis.comparison import compare  # noqa: E402
from results.analysis.leaderboard import Board  # noqa: E402
from results.analysis.reproduction import Reproduction, Verdict  # noqa: E402
from results.pages.board import display, render  # noqa: E402
from results.pages.comparison import comparison_page, comparison_picture  # noqa: E402
from results.pages.explanation import METRICS, Explained, explain_page, explain_plot  # noqa: E402
from results.pages.reproduction import (  # noqa: E402
    reproduction_display,
    reproduction_page,
    reproduction_plot,
    reproduction_values,
)
from results.pages.run_summary import anytime_picture, confusion_picture, has_exits, targets  # noqa: E402
from results.store.files import sha256  # noqa: E402
from results.store.plan import Planned, SweepPlan  # noqa: E402
from results.store.run_store import RunStore, StoredRun  # noqa: E402

for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)

KEY, PARENT, BOARD, REPRODUCTION = "kdbench.key", "kdbench.parent", "kdbench.board", "kdbench.reproduction"
LOGGED = "kdbench.logged"
"""Set last on a run: what was projected, so that a death in between is seen."""


class Tracker:
    """Writes one experiment of the MLflow store inside the run store."""

    def __init__(self, store: RunStore, experiment: str) -> None:
        """Opens MLflow's database, making it under a lock if it is new, and the experiment.

        Args:
            store: whose runs are projected; the database is STORE/mlflow.db.
            experiment: its name, as the plan's.
        """
        self.store, self.uri = store, f"sqlite:///{store.root / 'mlflow.db'}"
        with FileLock(store.root / "mlflow.lock"):
            self.client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            found = self.client.get_experiment_by_name(experiment)
            location = (store.root / "mlflow-artifacts" / experiment).as_uri()
            self.experiment = found.experiment_id if found else self.client.create_experiment(experiment, location)
        self.parents: dict[str, str] = {}

    def run(self, planned: Planned) -> None:
        """Projects a run of a suite, finished or not, below the parent of its method and pair."""
        run = self.store.get(planned.key)
        if run is None or not (run.times or run.finished or run.reason):
            return
        name = f"{planned.phase} {planned.number}"
        if planned.phase == "teacher":
            name = f"teacher {run.spec.student.name} of {planned.pair}"
        tags = {"pair": planned.pair, "method": planned.method, "phase": planned.phase}
        if planned.phase != "teacher":
            tags["mlflow.parentRunId"] = self._parent(planned, run.started)
        self.single(run, name, tags, weights=planned.phase != "trial")

    def single(self, run: StoredRun, name: str, tags: dict[str, str], weights: bool = True) -> None:
        """Projects one run."""
        run_id, logged = self._find_or_create(KEY, run.key, name, run.started, tags)
        state = f"{run.status}:{len(run.epochs)}"
        if logged == state:
            return
        self._log(run_id, run, weights)
        self.client.set_tag(run_id, LOGGED, state)
        ends = {"stopped": "KILLED", "failed": "FAILED", "running": None, "interrupted": None}
        if (status := ends.get(run.status, "FINISHED")) is not None:
            self._end(run_id, status, run.ended)

    def explanation(self, rows: Sequence[Explained]) -> None:
        """Logs an analysis of runs: a run for each, with its metrics, and the table and plot of all on each."""
        page = explain_page(rows)
        with tempfile.TemporaryDirectory() as folder:
            plot = Path(folder) / "concepts.png"
            explain_plot(rows, plot)
            for row in rows:
                run_id, _ = self._find_or_create(KEY, row.key, row.label, 0.0, {"method": row.method})
                values = {column: getattr(row, field) for column, field, *_ in METRICS}
                metrics = [Metric(name, value, 0, 0) for name, value in values.items() if value is not None]
                curve = zip(row.epochs, row.foreground, strict=True)
                metrics += [Metric("N_fg over epochs", value, 0, epoch) for epoch, value in curve]
                self.client.log_batch(run_id, metrics=metrics)
                self.client.log_text(run_id, page, "concepts.txt")
                self.client.log_artifact(run_id, str(plot))
                self._end(run_id, "FINISHED", None)

    def board(self, board: Board) -> None:
        """Logs the comparison table: as a table artifact, as text, and as a metric for each row."""
        run_id, _ = self._find_or_create(BOARD, board.suite, "leaderboard", 0.0, {})
        self._table(run_id, "leaderboard.json", display(board))
        for form, suffix in (("markdown", "md"), ("csv", "csv"), ("latex", "tex")):
            self.client.log_text(run_id, render(board, form), f"leaderboard.{suffix}")
        metrics = [
            Metric(_metric_name(f"test_accuracy/{row.pair}/{row.method}"), row.accuracy.mean, 0, row.seeds)
            for row in board.rows
            if row.accuracy
        ]
        self.client.log_batch(run_id, metrics=metrics)
        self._comparison(run_id, SweepPlan.find(self.store.root, board.suite))
        for row in board.rows:
            summary = {"test_accuracy": row.accuracy.mean} if row.accuracy else {}
            self._summary(row.pair, row.method, summary, row.setting)
        self._end(run_id, "FINISHED", None)

    def reproduction(self, table: Reproduction) -> None:
        """Logs a paper's table beside ours: as a table artifact, as text, as a plot, and as metrics for each number.

        MLflow shows the metric of the highest step: here the seeds that are behind it. What has no more seeds than
        were logged, and yet differs, gets a run of its own instead of the one there was.
        """
        seeds = sum(len(row.seeds) for row in table.rows)
        values = json.dumps(reproduction_values(table), sort_keys=True, default=str)
        state = f"{seeds}:{sha256(values.encode())[:16]}"
        tags = {"table": table.table, "scale": table.scale, "data": table.data}
        run_id, logged = self._find_or_create(REPRODUCTION, table.title, "reproduction", 0.0, tags)
        if logged == state:
            return
        if logged and seeds <= int(logged.partition(":")[0]):
            self.client.delete_run(run_id)
            run_id, _ = self._find_or_create(REPRODUCTION, table.title, "reproduction", 0.0, tags)
        self._table(run_id, "reproduction.json", reproduction_display(table))
        for form, suffix in (("markdown", "md"), ("csv", "csv"), ("latex", "tex")):
            self.client.log_text(run_id, reproduction_page(table, form), f"reproduction.{suffix}")
        if any(row.difference is not None for row in table.rows):
            self._picture(run_id, "reproduction.png", reproduction_plot(table))
        verdicts = Counter(row.verdict for row in table.rows)
        metrics = [Metric(f"verdict/{name}", verdicts[name], 0, seeds) for name in get_args(Verdict)]
        metrics += [Metric(_metric_name(name), value, 0, step) for name, value, step in _numbers(table)]
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(run_id, metrics=metrics[start : start + 1000])
        self.client.set_tag(run_id, LOGGED, state)
        self._end(run_id, "FINISHED", None)

    def _table(self, run_id: str, name: str, table: pd.DataFrame) -> None:
        """A table that MLflow shows as one."""
        self.client.log_text(run_id, table.to_json(orient="split", index=False), name)
        self.client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([{"path": name, "type": "table"}]))

    def _comparison(self, run_id: str, plan: SweepPlan) -> None:
        """Logs what paired tests and ranks say, where there is a control to compare with."""
        try:
            compared = compare(plan, self.store)
        except InputError:
            return
        for form, suffix in (("markdown", "md"), ("csv", "csv"), ("latex", "tex")):
            self.client.log_text(run_id, comparison_page(compared, form), f"comparison.{suffix}")
        if any(each.ranking for each in compared.rankings):
            self._picture(run_id, "ranks.png", comparison_picture(compared))
        metrics = [
            Metric(_metric_name(f"{name}/{each.control}/{each.pair}/{each.method}"), value, 0, each.difference.count)
            for each in compared.comparisons
            for name, value in (("gain", each.difference.mean), ("p_holm", each.p_holm))
            if value is not None
        ]
        self.client.log_batch(run_id, metrics=metrics)

    def _summary(self, pair: str, method: str, metrics: dict[str, float], setting: dict[str, Any]) -> None:
        """The mean and the chosen setting on the parent of a method and pair, which ends it."""
        if (run_id := self.parents.get(f"{pair}/{method}")) is None:
            return
        tags = [RunTag(f"best.{name}", str(value)) for name, value in setting.items()]
        self.client.log_batch(run_id, metrics=[Metric(k, v, 0, 0) for k, v in metrics.items()], tags=tags)
        self._end(run_id, "FINISHED", None)

    def _parent(self, planned: Planned, started: float) -> str:
        label = f"{planned.pair}/{planned.method}"
        if label not in self.parents:
            tags = {"pair": planned.pair, "method": planned.method, "phase": "method"}
            name = f"{planned.method}: {planned.pair}"
            self.parents[label] = self._find_or_create(PARENT, label, name, started, tags)[0]
        return self.parents[label]

    def _find_or_create(
        self, tag: str, value: str, name: str, started: float, tags: dict[str, str]
    ) -> tuple[str, str | None]:
        """The id of the run with a tag, and what was logged of it; made if there is none."""
        quoted = value.replace("'", "")
        found = self.client.search_runs([self.experiment], f"tags.`{tag}` = '{quoted}'", max_results=1)
        if found:
            return found[0].info.run_id, found[0].data.tags.get(LOGGED)
        start = int(started * 1000) or None
        run = self.client.create_run(self.experiment, start, {tag: quoted, **tags}, name)
        return run.info.run_id, None

    def _log(self, run_id: str, run: StoredRun, weights: bool) -> None:
        metrics = [
            Metric(name, value, int(when * 1000), epoch.number)
            for epoch, when in zip(run.epochs, run.times, strict=True)
            for name, value in _epoch_metrics(epoch.model_dump())
        ]
        metrics += [Metric(name, value, int(run.ended * 1000), 0) for name, value in _final_metrics(run)]
        finite = [metric for metric in metrics if math.isfinite(metric.value)]
        for start in range(0, len(finite), 1000):
            self.client.log_batch(run_id, metrics=finite[start : start + 1000])
        params = [Param(name, str(value)[:6000]) for name, value in _flat(run.spec.model_dump(mode="json"))]
        tags = [RunTag(name, str(value)) for name, value in _tags(run)]
        self.client.log_batch(run_id, params=params[:100], tags=tags)
        self.client.log_text(run_id, run.spec.model_dump_json(indent=1), "spec.json")
        if run.folder:
            self.client.log_artifact(run_id, str(run.folder / "records.jsonl"))
            if weights and (run.folder / "last.safetensors").exists():
                self.client.log_artifact(run_id, str(run.folder / "last.safetensors"))
        if weights and run.outcome and run.outcome.confusion:
            self._picture(run_id, "confusion.png", confusion_picture(run))
            if has_exits(run.outcome):
                self._picture(run_id, "anytime.png", anytime_picture(run))

    def _picture(self, run_id: str, name: str, file: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(file)
            self.client.log_artifact(run_id, str(path))

    def _end(self, run_id: str, status: str, ended: float | None) -> None:
        self.client.set_terminated(run_id, status, None if ended is None else int(ended * 1000))


def _metric_name(name: str) -> str:
    """A name with what MLflow does not allow in it spelt out or replaced."""
    spelt = name.replace("->", "to").replace("+", "and").replace("*", "x")
    return re.sub(r"[^\w\-. :/]", "_", spelt)


def _numbers(table: Reproduction) -> Iterable[tuple[str, float, int]]:
    """Name, value and step of every number of a table: published, ours, and the difference."""
    for row in table.rows:
        name = f"{row.wanted.pair}/{row.wanted.label}/{row.wanted.metric}"
        if row.wanted.published:
            yield f"published/{name}", row.wanted.published.value, 0
        for kind, value in (("ours", row.value), ("difference", row.difference)):
            if value is not None:
                yield f"{kind}/{name}", value, len(row.seeds)


def _epoch_metrics(epoch: dict[str, Any]) -> Iterable[tuple[str, float]]:
    for name, value in epoch["losses"].items():
        yield f"loss/{name}", value
    for name in (
        "train",
        "validation",
        "learning_rate",
        "seconds",
        "teacher_forwards",
        "teacher_cached",
    ):
        yield name, float(epoch[name])


def _final_metrics(run: StoredRun) -> Iterable[tuple[str, float]]:
    """Headline metrics, those of every named prediction, and the cost."""
    if run.outcome is None:
        return
    for which, scores in run.outcome.scores.items():
        for part in ("validation", "test"):
            for metric in ("accuracy", "agreement", "teacher_kl", "calibration_error", "nll"):
                if (value := run.outcome.headline(which, part, metric)) is not None:
                    yield f"{part}_{metric}/{which}", value
            for student, predictions in scores.part(part).items():
                for prediction, metrics in predictions.items():
                    for metric, value in metrics.items():
                        if metric.startswith("accuracy") or metric == "multiply_adds":
                            yield f"{part}_{metric}/{which}/{student}/{prediction}", value
    for name, value in run.outcome.cost.items():
        yield f"cost/{name}", float(value)
    if run.outcome.status == "done":
        for target in targets(run.outcome):
            yield f"target_met/{target.name}", float(target.met)


def _tags(run: StoredRun) -> Iterable[tuple[str, Any]]:
    yield "status", run.status
    yield "data_fingerprint", run.spec.data.fingerprint
    if run.reason:
        yield "reason", run.reason
    if run.outcome:
        yield "git_commit", run.outcome.environment.commit
        yield "hardware", run.outcome.environment.hardware
        for reference, digest in run.outcome.provenance.weights.items():
            yield f"sha256.{reference.replace(':', '.')}", digest
        digests = list(run.outcome.provenance.weights.values())
        yield "teacher_hash", ",".join(digests)


def _flat(value: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, dict) and item:
            yield from _flat(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(item) if isinstance(item, list | dict) else item
