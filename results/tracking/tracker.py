"""Records to MLflow: the only writer to it, a projection of the run store that can be rebuilt at any time.

An experiment for each suite and protocol, as NAME@HASH; a parent run for each method and pair; a child for each trial
and seed; a run "leaderboard", and a run "reproduction" where a paper's table is reproduced. Nothing is made twice: a
run is looked for by its tag before it is created, and times come from the records.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")

from filelock import FileLock  # noqa: E402
from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Metric, Param, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

from kdbench.bench.atomic import replacing  # noqa: E402
from kdbench.bench.errors import InputError  # noqa: E402
from kdbench.results.analysis.board import Board, Row  # noqa: E402
from kdbench.results.analysis.comparison import compare  # noqa: E402
from kdbench.results.analysis.explanation import Explained  # noqa: E402
from kdbench.results.analysis.reproduction import Reproduction  # noqa: E402
from kdbench.results.pages.board import board_report  # noqa: E402
from kdbench.results.pages.comparison import comparison_report  # noqa: E402
from kdbench.results.pages.explanation import explanation_report, numbers_of  # noqa: E402
from kdbench.results.pages.report import Report, forms_of, render, rows_of  # noqa: E402
from kdbench.results.pages.reproduction import reproduction_report  # noqa: E402
from kdbench.results.pages.run_summary import run_summary_report  # noqa: E402
from kdbench.results.store.files import sha256  # noqa: E402
from kdbench.results.store.plan import Planned, SweepPlan  # noqa: E402
from kdbench.results.store.run_store import RunStore  # noqa: E402
from kdbench.results.store.stored_run import StoredRun  # noqa: E402
from kdbench.results.tracking.place import artifacts_of, follow  # noqa: E402
from kdbench.results.tracking.projection import epoch_numbers, result_numbers, row_numbers, run_params, run_tags  # noqa: E402

for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)

KEY, PARENT, BOARD, REPRODUCTION = "kdbench.key", "kdbench.parent", "kdbench.board", "kdbench.reproduction"
KIND, NOTE, PRIMARY = "mlflow.experimentKind", "mlflow.note.content", "mlflow.experiment.primaryMetric"
"""By which MLflow's pages know what an experiment is for, what is said above its runs, and what these are sorted by."""
LOGGED = "kdbench.logged"
"""Set last on a run: what was projected, so that a death in between is seen."""
SUFFIXES = {"markdown": "md", "csv": "csv", "latex": "tex"}
"""The endings of a report's files, by the forms that are logged."""
STATUSES = {"stopped": "KILLED", "failed": "FAILED", "running": None, "interrupted": None}
"""How MLflow says that a run of a status ended, None if it did not; those of other statuses are FINISHED."""
BATCH = 1000
"""The most metrics that MLflow takes at once."""


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
            _make(store.root / "mlflow.db")
            sqlite3.connect(store.root / "mlflow.db").close()  # what cannot be opened, MLflow tries for 100 s
            follow(store.root / "mlflow.db", store.root)
            self.client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            found = self.client.get_experiment_by_name(experiment)
            place = artifacts_of(store.root, experiment)
            self.experiment = found.experiment_id if found else self.client.create_experiment(experiment, place)
        self.parents: dict[str, str] = {}
        self.ended: dict[str, float] = {}
        """When the last run of a method and pair ended, in seconds since 1970, by the parent's label."""

    def run(self, planned: Planned) -> None:
        """Projects a run of a suite, finished or not, below the parent of its method and pair."""
        run = self.store.get(planned.key)
        if run is None or run.damaged or not (run.times or run.finished or run.reason):
            return
        name = f"{planned.phase} {planned.number}"
        if planned.phase == "teacher":
            name = f"teacher {run.spec.student.name} of {planned.pair}"
        tags = {"pair": planned.pair, "method": planned.method, "phase": planned.phase}
        if planned.phase != "teacher":
            tags["mlflow.parentRunId"] = self._parent(planned, run.started)
            self.ended[_label(planned)] = max(run.ended, self.ended.get(_label(planned), 0.0))
        self.single(run, name, tags, whole=planned.phase != "trial", pictured=planned.number == 1)

    def single(
        self, run: StoredRun, name: str, tags: dict[str, str], whole: bool = True, pictured: bool = True
    ) -> None:
        """Projects one run.

        Args:
            run: what the store knows of it.
            name: how MLflow shows it.
            tags: more of them.
            whole: whether its weights and summary are logged too.
            pictured: whether the summary's pictures are; those of all seeds would take as long as a small training.
        """
        run_id, logged = self._find_or_create(KEY, run.key, name, run.started, tags)
        state = f"{run.status}:{len(run.epochs)}"
        if logged == state:
            return
        self._run(run_id, run)
        if whole:
            if not self.store.damage(run.key):
                self._file(run_id, run.folder / "last.safetensors" if run.folder else None)
            summary = run_summary_report(run)
            self._reports(run_id, summary if pictured else replace(summary, pictures={}))
        self.client.set_tag(run_id, LOGGED, state)
        if (status := STATUSES.get(run.status, "FINISHED")) is not None:
            self._end(run_id, status, run.ended)

    def explanation(self, rows: Sequence[Explained]) -> None:
        """Logs an explanation of runs: a run for each, with its numbers, and the report of all on each."""
        report = explanation_report(rows)
        report = replace(report, pictures={name: functools.cache(draw) for name, draw in report.pictures.items()})
        for row in rows:
            run_id, _ = self._find_or_create(KEY, row.key, row.label, 0.0, {"method": row.method})
            self._reports(run_id, replace(report, metrics=numbers_of(row)))
            self._end(run_id, "FINISHED", None)

    def board(self, board: Board) -> None:
        """Logs a leaderboard and, where there is a control to compare with, the comparison.

        Their numbers are metrics of the parents, of equal names, so that MLflow charts them over methods.
        """
        run_id, _ = self._find_or_create(BOARD, board.suite, "leaderboard", 0.0, {})
        self._describe(board)
        reports = [board_report(board)]
        with contextlib.suppress(InputError):
            reports.append(comparison_report(compare(SweepPlan.find(self.store.root, board.suite), self.store)))
        self._reports(run_id, *reports)
        for row in board.rows:
            self._summary(row, f"test_{board.metric.name}")
        self._end(run_id, "FINISHED", max(self.ended.values(), default=None))

    def reproduction(self, table: Reproduction) -> None:
        """Logs a paper's table beside ours.

        MLflow shows the metric of the highest step: here the seeds that are behind it. What has no more seeds than
        were logged, and yet differs, gets a run of its own instead of the one there was.
        """
        report = reproduction_report(table)
        seeds = sum(len(row.seeds) for row in table.rows)
        values = json.dumps(report.values, sort_keys=True, default=str)
        state = f"{seeds}:{sha256(values.encode())[:16]}"
        tags = {"table": table.table, "scale": table.scale, "data": table.data}
        run_id, logged = self._find_or_create(REPRODUCTION, table.title, "reproduction", 0.0, tags)
        if logged == state:
            return
        if logged and seeds <= int(logged.partition(":")[0]):
            self.client.delete_run(run_id)
            run_id, _ = self._find_or_create(REPRODUCTION, table.title, "reproduction", 0.0, tags)
        self._reports(run_id, report)
        self.client.set_tag(run_id, LOGGED, state)
        self._end(run_id, "FINISHED", None)

    def _reports(self, run_id: str, *reports: Report) -> None:
        """Logs reports on a run: as texts, as tables that MLflow shows, as pictures, and as metrics."""
        tables = []
        for report in reports:
            for form in SUFFIXES.keys() & forms_of(report):
                self.client.log_text(run_id, render(report, form), f"{report.name}.{SUFFIXES[form]}")
            if report.blocks:
                tables.append({"path": f"{report.name}.json", "type": "table"})
                self.client.log_text(run_id, json.dumps(rows_of(report)), f"{report.name}.json")
            for name, draw in report.pictures.items():
                with contextlib.suppress(InputError):  # there is nothing to draw
                    self._picture(run_id, f"{name}.png", draw("png"))
            self._metrics(run_id, [Metric(metric_name(n.name), n.value, 0, n.step) for n in report.metrics])
        if tables:
            self.client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(tables))

    def _run(self, run_id: str, run: StoredRun) -> None:
        """Logs a run's curves, result, parameters, tags and records."""
        ended = [(number, run.ended) for number in (result_numbers(run.outcome) if run.outcome else ())]
        curves = [
            (number, when) for epoch, when in zip(run.epochs, run.times, strict=True) for number in epoch_numbers(epoch)
        ]
        self._metrics(run_id, [Metric(n.name, n.value, int(when * 1000), n.step) for n, when in curves + ended])
        params = [Param(name, value[:6000]) for name, value in run_params(run.spec).items()]
        tags = [RunTag(name, value) for name, value in run_tags(run).items()]
        self.client.log_batch(run_id, params=params[:100], tags=tags)
        self.client.log_text(run_id, run.spec.model_dump_json(indent=1), "spec.json")
        self._file(run_id, run.folder / "records.jsonl" if run.folder else None)

    def _metrics(self, run_id: str, metrics: Iterable[Metric]) -> None:
        """Logs those of the metrics that are finite."""
        finite = [metric for metric in metrics if math.isfinite(metric.value)]
        for start in range(0, len(finite), BATCH):
            self.client.log_batch(run_id, metrics=finite[start : start + BATCH])

    def _file(self, run_id: str, path: Path | None) -> None:
        """Logs a file of a run, if it is there."""
        if path and path.exists():
            self.client.log_artifact(run_id, str(path))

    def _picture(self, run_id: str, name: str, file: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(file)
            self.client.log_artifact(run_id, str(path))

    def _summary(self, row: Row, metric: str) -> None:
        """The mean, gains, cost and the chosen setting on the parent of a method and pair, which ends it."""
        if (run_id := self.parents.get(f"{row.pair}/{row.method}")) is None:
            return
        tags = [RunTag(f"best.{name}", str(value)) for name, value in row.setting.items()]
        self.client.log_batch(run_id, tags=tags)
        self._metrics(run_id, [Metric(number.name, number.value, 0, 0) for number in row_numbers(row, metric)])
        if row.status == "done":  # until then another setting may turn out best, and MLflow keeps what it was told
            with contextlib.suppress(MlflowException):
                params = [Param(f"best.{name}", str(value)) for name, value in row.setting.items()]
                self.client.log_batch(run_id, params=params)
        self._end(run_id, "FINISHED", self.ended.get(f"{row.pair}/{row.method}"))

    def _describe(self, board: Board) -> None:
        """Says on the experiment what it is: of training, about what, on which data."""
        data = SweepPlan.find(self.store.root, board.suite).suite.data
        said = f"{board.about}\n\nData: {data.name}, labelled share {data.train_fraction:g}, of task {data.task}."
        direction = str(board.metric.higher_is_better).lower()
        tags = {KIND: "custom_model_development", NOTE: said, f"{PRIMARY}.name": f"test_{board.metric.name}"}
        for name, value in (tags | {f"{PRIMARY}.greaterIsBetter": direction, "dataset": data.name}).items():
            self.client.set_experiment_tag(self.experiment, name, value)

    def _parent(self, planned: Planned, started: float) -> str:
        """The run of a planned run's method and pair."""
        label = _label(planned)
        if label not in self.parents:
            tags = {"pair": planned.pair, "method": planned.method, "phase": "method"}
            name = f"{planned.method}: {planned.pair}"
            self.parents[label] = self._find_or_create(PARENT, label, name, started, tags)[0]
        return self.parents[label]

    def _find_or_create(
        self, tag: str, value: str, name: str, started: float, tags: Mapping[str, str]
    ) -> tuple[str, str | None]:
        """The id of the run with a tag, and what was logged of it; made if there is none."""
        quoted = value.replace("'", "")
        found = self.client.search_runs([self.experiment], f"tags.`{tag}` = '{quoted}'", max_results=1)
        if found:
            return found[0].info.run_id, found[0].data.tags.get(LOGGED)
        start = int(started * 1000) or None
        run = self.client.create_run(self.experiment, start, {tag: quoted, **tags}, name)
        return run.info.run_id, None

    def _end(self, run_id: str, status: str, ended: float | None) -> None:
        """Ends a run at a time in seconds since 1970, or now."""
        self.client.set_terminated(run_id, status, None if ended is None else int(ended * 1000))


def _label(planned: Planned) -> str:
    """Of the parent of a run."""
    return f"{planned.pair}/{planned.method}"


def _make(database: Path) -> None:
    """Makes MLflow's database, if it is new, under another name: a death while its tables are made leaves no part."""
    if database.exists():
        return
    with replacing(database) as temporary:
        temporary.unlink(missing_ok=True)
        uri = f"sqlite:///{temporary}"
        MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)


def metric_name(name: str) -> str:
    """A name with what MLflow does not allow in it spelt out or replaced."""
    spelt = name.replace("->", "to").replace("+", "and").replace("*", "x")
    return re.sub(r"[^\w\-. :/]", "_", spelt)
