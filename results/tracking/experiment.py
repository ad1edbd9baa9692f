"""One experiment of MLflow: in the store's own database, or behind a tracking server.

MLflow's retries are off: one after a reply that was lost makes a second run. Whoever writes tries again from the start,
which looks for a run by its tag before it creates one.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")  # a database may take another's place
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")

from filelock import FileLock  # noqa: E402
from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import LoggedModelOutput, Metric, Param, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

from kdbench.bench.atomic import replacing  # noqa: E402
from kdbench.results.tracking.ledger import Entry, Ledger  # noqa: E402
from kdbench.results.tracking.place import ARTIFACTS, DATABASE, add_points, artifacts_of, follow  # noqa: E402

for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)

LOGGED, PROJECTION = "kdbench.logged", "kdbench.projection"
"""Set last on a run: what was projected, so that a death in between is seen. On an experiment: its ledger's name."""
BATCH, PARAMS = 1000, 100
"""The most metrics, and the most parameters, that MLflow takes at once."""


class Experiment:
    """Finds and writes runs of one experiment; nothing is made twice."""

    def __init__(self, root: Path, name: str, uri: str = "", database: Path | None = None) -> None:
        """Opens MLflow and the experiment, making what is new: the database under a lock.

        Args:
            root: of the store.
            name: of the experiment.
            uri: of a tracking server; by default the database is one in the store.
            database: in place of STORE/mlflow.db.
        """
        self.root, self.name = root, name
        self.database = None if uri else (database or root / DATABASE)
        self.uri = uri or f"sqlite:///{self.database}"
        with FileLock(root / "mlflow.lock"):
            if self.database:
                _make(self.database)
                sqlite3.connect(self.database).close()  # what cannot be opened, MLflow tries for 100 s
                follow(self.database, root)
            self.client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            found = self.client.get_experiment_by_name(name)
            place = artifacts_of(root, name) if self.database else None
            self.id = found.experiment_id if found else self.client.create_experiment(name, place)
            ledger = found.tags.get(PROJECTION) if found else None
            if not ledger:
                self.client.set_experiment_tag(self.id, PROJECTION, ledger := uuid.uuid4().hex)
        self.ledger = Ledger(root, ledger)

    def describe(self, tags: Mapping[str, str]) -> None:
        """Sets tags of the experiment."""
        for name, value in tags.items():
            self.client.set_experiment_tag(self.id, name, value)

    def find_or_create(self, tag: str, value: str, name: str, started: float, tags: Mapping[str, str]) -> Entry:
        """The run that has a tag, and what was logged of it; made if there is none.

        Args:
            tag: by which the run is known.
            value: of the tag.
            name: how MLflow shows it.
            started: seconds since 1970; 0 is now.
            tags: more of them.
        """
        if known := self.ledger.get(tag, value):
            return known
        quoted = value.replace("'", "")
        found = self.client.search_runs([self.id], f"tags.`{tag}` = '{quoted}'", max_results=1)
        if found:
            entry = Entry(found[0].info.run_id, found[0].data.tags.get(LOGGED) or "")
        else:
            start = int(started * 1000) or None
            entry = Entry(self.client.create_run(self.id, start, {tag: quoted, **tags}, name).info.run_id)
        self.ledger.put(tag, value, entry)
        return entry

    def logged(
        self,
        tag: str,
        value: str,
        entry: Entry,
        params: Mapping[str, str] = MappingProxyType({}),
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Logs a run's parameters and tags, and at last what was logged of it: so a death in between is seen."""
        self.batch(entry.run_id, params, {**tags, LOGGED: entry.state})
        self.ledger.put(tag, value, entry)

    def delete(self, tag: str, value: str, run_id: str) -> None:
        """Removes a run."""
        self.client.delete_run(run_id)
        self.ledger.entries.pop((tag, value), None)

    def metrics(self, run_id: str, metrics: Iterable[Metric]) -> None:
        """Logs those of the metrics that are finite."""
        finite = [metric for metric in metrics if math.isfinite(metric.value)]
        if self.database:
            add_points(self.database, run_id, [(m.key, float(m.value), m.timestamp, m.step) for m in finite])
            return
        for start in range(0, len(finite), BATCH):
            self.client.log_batch(run_id, metrics=finite[start : start + BATCH])

    def batch(self, run_id: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Logs parameters, then tags."""
        chosen = [Param(name, value[:6000]) for name, value in list(params.items())[:PARAMS]]
        self.client.log_batch(run_id, params=chosen, tags=[RunTag(*each) for each in tags.items()])

    def best(self, run_id: str, params: Mapping[str, str]) -> None:
        """Logs parameters, unless others were before: MLflow keeps what it was told first."""
        try:
            self.batch(run_id, params, {})
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise

    def text(self, run_id: str, text: str | bytes, name: str) -> None:
        """Logs an artifact of this content."""
        content = text.encode() if isinstance(text, str) else text
        if folder := self._folder(run_id):
            (folder / name).write_bytes(content)
            return
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / name
            path.write_bytes(content)
            self.client.log_artifact(run_id, str(path))

    def file(self, run_id: str, path: Path | None) -> None:
        """Logs a file, if it is there."""
        if not (path and path.exists()):
            return
        if folder := self._folder(run_id):
            shutil.copyfile(path, folder / path.name)
        else:
            self.client.log_artifact(run_id, str(path))

    def shown_as_table(self, run_id: str, names: Iterable[str]) -> None:
        """Has MLflow's pages show JSON artifacts as tables."""
        if tables := [{"path": name, "type": "table"} for name in names]:
            self.client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(tables))

    def tag_of(self, run_id: str, name: str) -> str:
        """A tag of a run; empty if it has none of that name."""
        return str(self.client.get_run(run_id).data.tags.get(name, ""))

    def model(self, run_id: str, name: str, folder: Path, metrics: Mapping[str, float], tags: Mapping[str, str]) -> str:
        """Logs a model's folder as the output of a run; gives its address, as models:/ID."""
        model_id = self.client.create_logged_model(self.id, name, run_id, dict(tags)).model_id
        self.client.log_model_artifacts(model_id, str(folder))
        self.client.finalize_logged_model(model_id, "READY")
        self.client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
        for metric, value in metrics.items():
            self.client.log_metric(run_id, metric, value, model_id=model_id)
        return f"models:/{model_id}"

    def end(self, run_id: str, status: str, ended: float | None) -> None:
        """Ends a run at a time in seconds since 1970, or now."""
        self.client.set_terminated(run_id, status, None if ended is None else int(ended * 1000))

    def _folder(self, run_id: str) -> Path | None:
        """Where a run's artifacts lie in the store; None if a server has them."""
        if not self.database:
            return None
        folder = self.root / ARTIFACTS / self.name / run_id / "artifacts"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _make(database: Path) -> None:
    """Makes MLflow's database, if it is new, under another name: a death while its tables are made leaves no part."""
    if database.exists():
        return
    with replacing(database) as temporary:
        temporary.unlink(missing_ok=True)
        uri = f"sqlite:///{temporary}"
        MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)
