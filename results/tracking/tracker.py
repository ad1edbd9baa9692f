"""Records to MLflow: the only writer to it, a projection of the run store that can be rebuilt at any time.

An experiment for each suite and protocol, as NAME@HASH; a parent run for each method and pair; a child for each trial
and seed; a run "leaderboard", and a run "reproduction" where a paper's table is reproduced. Nothing is made twice: a
run is looked for by its tag before it is created, and times come from the records.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mlflow.entities import Metric

from kdbench.bench.errors import InputError
from kdbench.results.analysis.board import Board, Row
from kdbench.results.analysis.comparison import compare
from kdbench.results.analysis.explanation import Explained
from kdbench.results.analysis.reproduction import Reproduction
from kdbench.results.pages.board import board_report
from kdbench.results.pages.comparison import comparison_report
from kdbench.results.pages.explanation import explanation_report, numbers_of
from kdbench.results.pages.report import Report, forms_of, render, rows_of
from kdbench.results.pages.reproduction import reproduction_report
from kdbench.results.pages.run_summary import run_summary_report
from kdbench.results.store.files import sha256
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.stored_run import StoredRun
from kdbench.results.tracking.experiment import Experiment
from kdbench.results.tracking.ledger import Entry, stated
from kdbench.results.tracking.projection import epoch_numbers, result_numbers, row_numbers, run_params, run_tags

KEY, PARENT, BOARD, REPRODUCTION = "kdbench.key", "kdbench.parent", "kdbench.board", "kdbench.reproduction"
KIND, NOTE, PRIMARY = "mlflow.experimentKind", "mlflow.note.content", "mlflow.experiment.primaryMetric"
"""By which MLflow's pages know what an experiment is for, what is said above its runs, and what these are sorted by."""
MODEL = "kdbench.model"
"""Set last on a run whose student is a logged model: its address."""
SUFFIXES = {"markdown": "md", "csv": "csv", "latex": "tex"}
"""The endings of a report's files, by the forms that are logged."""
STATUSES = {"stopped": "KILLED", "failed": "FAILED", "running": None, "interrupted": None}
"""How MLflow says that a run of a status ended, None if it did not; those of other statuses are FINISHED."""


class Tracker:
    """Writes one experiment."""

    def __init__(self, store: RunStore, experiment: str, uri: str = "", database: Path | None = None) -> None:
        """Opens MLflow and the experiment.

        Args:
            store: whose runs are projected.
            experiment: its name, as the plan's.
            uri: of a tracking server; by default MLflow's database is STORE/mlflow.db.
            database: in place of that.
        """
        self.store, self.at = store, Experiment(store.root, experiment, uri, database)
        self.parents: dict[str, str] = {}
        self.ended: dict[str, float] = {}
        """When the last run of a method and pair ended, in seconds since 1970, by the parent's label."""

    def run(self, planned: Planned) -> None:
        """Projects a run of a suite, finished or not, below the parent of its method and pair.

        One that is finished and was projected is not read.
        """
        entry = self.at.ledger.get(KEY, planned.key)
        if entry and entry.files and entry.files == self._files(planned.key):
            if planned.phase != "teacher":
                self._under(planned, entry.ended, entry.ended)
            return
        run = self.store.get(planned.key)
        if run is None or run.damaged or not (run.times or run.finished or run.reason):
            return
        name = f"{planned.phase} {planned.number}"
        if planned.phase == "teacher":
            name = f"teacher {run.spec.student.name} of {planned.pair}"
        tags = {"pair": planned.pair, "method": planned.method, "phase": planned.phase}
        if planned.phase != "teacher":
            tags["mlflow.parentRunId"] = self._under(planned, run.started, run.ended)
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
        files = self._files(run.key)
        entry = self.at.find_or_create(KEY, run.key, name, run.started, tags)
        now = Entry(entry.run_id, f"{run.status}:{len(run.epochs)}", files, run.ended)
        if entry.state == now.state:
            self.at.ledger.put(KEY, run.key, now)
            return
        self._run(entry.run_id, run)
        if whole:
            if not self.store.damage(run.key):
                self.at.file(entry.run_id, run.folder / "last.safetensors" if run.folder else None)
            summary = run_summary_report(run)
            self._reports(entry.run_id, summary if pictured else replace(summary, pictures={}))
        if (status := STATUSES.get(run.status, "FINISHED")) is not None:
            self.at.end(entry.run_id, status, run.ended)
        self.at.logged(KEY, run.key, now, run_params(run.spec), run_tags(run))

    def explanation(self, rows: Sequence[Explained]) -> None:
        """Logs an explanation of runs: a run for each, with its numbers, and the report of all on each."""
        report = explanation_report(rows)
        report = replace(report, pictures={name: functools.cache(draw) for name, draw in report.pictures.items()})
        for row in rows:
            run_id = self.at.find_or_create(KEY, row.key, row.label, 0.0, {"method": row.method}).run_id
            self._reports(run_id, replace(report, metrics=numbers_of(row)))
            self.at.end(run_id, "FINISHED", None)

    def board(self, board: Board) -> None:
        """Logs a leaderboard and, where there is a control to compare with, the comparison.

        Their numbers are metrics of the parents, of equal names, so that MLflow charts them over methods.
        """
        run_id = self.at.find_or_create(BOARD, board.suite, "leaderboard", 0.0, {}).run_id
        self._describe(board)
        reports = [board_report(board)]
        with contextlib.suppress(InputError):
            reports.append(comparison_report(compare(SweepPlan.find(self.store.root, board.suite), self.store)))
        self._reports(run_id, *reports)
        for row in board.rows:
            self._summary(row, f"test_{board.metric.name}")
        self.at.end(run_id, "FINISHED", max(self.ended.values(), default=None))

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
        named = (REPRODUCTION, table.title)
        entry = self.at.find_or_create(*named, "reproduction", 0.0, tags)
        if entry.state == state:
            return
        if entry.state and seeds <= int(entry.state.partition(":")[0]):
            self.at.delete(*named, entry.run_id)
            entry = self.at.find_or_create(*named, "reproduction", 0.0, tags)
        self._reports(entry.run_id, report)
        self.at.end(entry.run_id, "FINISHED", None)
        self.at.logged(*named, Entry(entry.run_id, state))

    def model(self, planned: Planned) -> str:
        """The address of the model that was logged of a projected run, as models:/ID; empty if there is none."""
        return self.at.tag_of(self._run_id(planned), MODEL)

    def log_model(self, planned: Planned, folder: Path, metrics: Mapping[str, float]) -> str:
        """Logs a model's folder as the output of a projected run, with metrics by which models are compared."""
        run_id = self._run_id(planned)
        tags = {"pair": planned.pair, "method": planned.method, "seed": str(planned.number), KEY: planned.key}
        name = re.sub(r"[^\w -]", "_", f"{planned.method} {planned.pair.replace('->', 'to')}")
        address = self.at.model(run_id, name, folder, metrics, tags)
        self.at.batch(run_id, {}, {MODEL: address})
        return address

    def _run_id(self, planned: Planned) -> str:
        return self.at.find_or_create(KEY, planned.key, "", 0.0, {}).run_id

    def _reports(self, run_id: str, *reports: Report) -> None:
        """Logs reports on a run: as texts, as tables that MLflow shows, as pictures, and as metrics."""
        tables = []
        for report in reports:
            for form in SUFFIXES.keys() & forms_of(report):
                self.at.text(run_id, render(report, form), f"{report.name}.{SUFFIXES[form]}")
            if report.blocks:
                tables.append(f"{report.name}.json")
                self.at.text(run_id, json.dumps(rows_of(report)), tables[-1])
            for name, draw in report.pictures.items():
                with contextlib.suppress(InputError):  # there is nothing to draw
                    self.at.text(run_id, draw("png"), f"{name}.png")
            self.at.metrics(run_id, [Metric(metric_name(n.name), n.value, 0, n.step) for n in report.metrics])
        self.at.shown_as_table(run_id, tables)

    def _run(self, run_id: str, run: StoredRun) -> None:
        """Logs a run's curves, result and records."""
        ended = [(number, run.ended) for number in (result_numbers(run.outcome) if run.outcome else ())]
        curves = [
            (number, when) for epoch, when in zip(run.epochs, run.times, strict=True) for number in epoch_numbers(epoch)
        ]
        self.at.metrics(run_id, [Metric(n.name, n.value, int(when * 1000), n.step) for n, when in curves + ended])
        self.at.text(run_id, run.spec.model_dump_json(indent=1), "spec.json")
        self.at.file(run_id, run.folder / "records.jsonl" if run.folder else None)

    def _files(self, key: str) -> str:
        """What tells that a finished run is the one that was projected."""
        return stated(self.store.root / "runs" / key / "DONE.json")

    def _summary(self, row: Row, metric: str) -> None:
        """The mean, gains, cost and the chosen setting on the parent of a method and pair, which ends it."""
        if (run_id := self.parents.get(f"{row.pair}/{row.method}")) is None:
            return
        best = {f"best.{name}": str(value) for name, value in row.setting.items()}
        self.at.batch(run_id, {}, best)
        self.at.metrics(run_id, [Metric(number.name, number.value, 0, 0) for number in row_numbers(row, metric)])
        if row.status == "done":  # until then another setting may turn out best, and MLflow keeps what it was told
            self.at.best(run_id, best)
        self.at.end(run_id, "FINISHED", self.ended.get(f"{row.pair}/{row.method}"))

    def _describe(self, board: Board) -> None:
        """Says on the experiment what it is: of training, about what, on which data."""
        data = SweepPlan.find(self.store.root, board.suite).suite.data
        said = f"{board.about}\n\nData: {data.name}, labelled share {data.train_fraction:g}, of task {data.task}."
        direction = str(board.metric.higher_is_better).lower()
        tags = {KIND: "custom_model_development", NOTE: said, f"{PRIMARY}.name": f"test_{board.metric.name}"}
        self.at.describe(tags | {f"{PRIMARY}.greaterIsBetter": direction, "dataset": data.name})

    def _under(self, planned: Planned, started: float, ended: float) -> str:
        """The run of a planned run's method and pair, which ends when the last below it does."""
        label = f"{planned.pair}/{planned.method}"
        if label not in self.parents:
            tags = {"pair": planned.pair, "method": planned.method, "phase": "method"}
            name = f"{planned.method}: {planned.pair}"
            self.parents[label] = self.at.find_or_create(PARENT, label, name, started, tags).run_id
        self.ended[label] = max(ended, self.ended.get(label, 0.0))
        return self.parents[label]


def metric_name(name: str) -> str:
    """A name with what MLflow does not allow in it spelt out or replaced."""
    spelt = name.replace("->", "to").replace("+", "and").replace("*", "x")
    return re.sub(r"[^\w\-. :/]", "_", spelt)
