"""What `import kdbench` offers: the commands as functions, which return DataFrames and typed results.

A script that calls `sweep` or `reproduce` does so below `if __name__ == "__main__":`, as their workers are processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Unpack

import pandas as pd

from kdbench.bench.errors import InputError, Unfinished
from kdbench.results.store.stored_run import StoredRun
from kdbench.sweeps.cli.place import STORE, Paths, Where, place_of

__all__ = ["InputError", "Unfinished", "leaderboard", "methods", "published", "report", "reproduce", "run", "sweep"]


def methods() -> pd.DataFrame:
    """The registry, a row for each method, those of installed packages among them.

    Returns:
        Columns method, paper, authors, year, link, knowledge, needs, needs_teacher, hyperparameters (values by name)
        and search (what is searched, by name).
    """
    from kdbench.sweeps.cli.registry import all_facts

    rows = []
    for facts in all_facts():
        named = {each.name: each for each in facts.hyperparameters}
        rows.append(
            {
                "method": facts.id,
                "paper": facts.paper.title,
                "authors": facts.paper.authors,
                "year": facts.paper.year,
                "link": facts.paper.link,
                "knowledge": facts.knowledge,
                "needs": facts.needs,
                "needs_teacher": facts.needs_teacher,
                "hyperparameters": {name: each.default for name, each in named.items()},
                "search": {name: each.space for name, each in named.items() if each.space},
            }
        )
    return pd.DataFrame(rows)


def run(
    method: str,
    student: str,
    data: str,
    *,
    teacher: str | Sequence[str] = (),
    teacher_weights: Sequence[Paths] = (),
    settings: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    teacher_epochs: int | None = None,
    seed: int = 0,
    train_fraction: float = 1.0,
    image_size: int = 0,
    task: str = "image",
    **where: Unpack[Where],
) -> StoredRun:
    """Carries out one run, with its teacher's if need be; a finished one is read.

    Args:
        method: an id, a sum such as "kd+at", or "my_method.py:MyKD".
        student: a network: timm's name, or one of the literature.
        data: a data set's name, or the path of a folder of images.
        teacher: as `student`; one or several.
        teacher_weights: checkpoints, one for each teacher, or none.
        settings: the method's hyperparameters by name.
        recipe: fields of the recipe by name.
        epochs: of the student.
        teacher_epochs: of a teacher that is trained here.
        seed: of weights and batches.
        train_fraction: the labelled share of the training part.
        image_size: pixels; needed for a folder.
        task: what is learned of the data.
        where: store, device and more, see `Where`.

    Returns:
        The run: `outcome.headline("last", "test")` is its test score, `epochs` its curve.

    Raises:
        InputError: if anything that was given is wrong.
    """
    from kdbench.sweeps.cli.single import RunRequest, carried_out

    names, files = (teacher,) if isinstance(teacher, str) else tuple(teacher), tuple(map(Path, teacher_weights))
    request = RunRequest(method, student, data, place_of(where, "auto"), task, names, files)
    request = replace(
        request, settings=dict(settings or {}), recipe=dict(recipe or {}), image_size=image_size, seed=seed
    )
    request = replace(request, epochs=epochs, teacher_epochs=teacher_epochs, image_size=image_size)
    return carried_out(replace(request, train_fraction=train_fraction), where.get("mlflow", True)).run


def sweep(
    suite: Paths,
    *,
    methods: Iterable[str] | None = None,
    trials: int | None = None,
    seeds: int | None = None,
    epochs: int | None = None,
    cold: bool = False,
    **where: Unpack[Where],
) -> pd.DataFrame:
    """Tunes and compares the methods of a suite, or goes on where it was, with progress on standard error.

    Args:
        suite: a bundled one's name, or the path of a TOML file.
        methods: only these; by default the suite's, as what follows.
        trials: tuning trials of each method.
        seeds: final runs of each method.
        epochs: of each run.
        cold: whether settings that a longer tuning has found are left out.
        where: store, device, workers and more, see `Where`.

    Returns:
        The leaderboard, as `leaderboard` has it.

    Raises:
        InputError: if the suite cannot be carried out.
        Unfinished: if runs came to no result; the same call tries them again.
    """
    from kdbench.sweeps.cli.finished import swept

    chosen = None if methods is None else ",".join(methods)
    changes = {"methods": chosen, "trials": trials, "seeds": seeds, "epochs": epochs, "cold": cold}
    place = place_of(where, "")
    board, _, failures = swept(str(suite), changes, place)
    if failures:
        raise Unfinished(failures)
    return leaderboard(board["suite"], store=place.store)


def leaderboard(suite: str, *, store: Paths = STORE) -> pd.DataFrame:
    """The leaderboard of a suite as it stands, also while it is swept.

    Args:
        suite: NAME (the protocol last run) or NAME@HASH.
        store: a store's folder, or one of evidence.

    Returns:
        A row for each method on each pair: score, gain_control and gain_baseline are means over seeds (shares where the
        metric is printed in %), each beside the half width of its 95 % interval; p_control and p_baseline are
        corrected (Holm); setting holds the best hyperparameters by name.

    Raises:
        InputError: if there is no such suite or store.
    """
    from kdbench.results.analysis.leaderboard import leaderboard as board_of
    from kdbench.results.store.plan import SweepPlan
    from kdbench.sweeps.cli.common import existing, opened

    board = board_of(SweepPlan.find(existing(Path(store)), suite), opened(Path(store)))
    return _frame([asdict(row) for row in board.rows])


def report(suites: str | Sequence[str] = (), *, out: Paths = "site", store: Paths = STORE) -> Path:
    """Writes a static site that opens from disk: boards that sort and filter, charts, a card for each method.

    Args:
        suites: NAME or NAME@HASH of one or several, papers' tables among them; by default all of the store.
        out: its folder, made if it is new.
        store: a store's folder, or one of evidence.

    Returns:
        Its index.

    Raises:
        InputError: if there is no such suite or store, or the folder cannot be written.
    """
    from kdbench.sweeps.cli.report import site_of

    return Path(site_of([suites] if isinstance(suites, str) else suites, Path(store), Path(out))["index"])


def published(
    method: str | None = None,
    data: str | None = None,
    *,
    paper: str | None = None,
    table: str | None = None,
    teacher: str | None = None,
    student: str | None = None,
    text: str | None = None,
) -> pd.DataFrame:
    """The papers' numbers that meet every condition, each with its source.

    Args:
        method: as at, which also finds sums that it is part of, or a sum, as kd+at.
        data: a data set.
        paper: an id, as crd2020.
        table: an id, as crd2020_cifar100_same.
        teacher: a network.
        student: a network.
        text: anything that a row says.

    Raises:
        InputError: for a name that no row has.
    """
    from kdbench.results.analysis.literature import search

    found = search(method, data, paper, table, teacher, student, text)
    return pd.DataFrame([row.model_dump() for row in found])


def reproduce(
    table: Paths,
    *,
    pairs: str | None = None,
    parts: str | None = None,
    methods: str | None = None,
    seeds: int | None = None,
    scale: str = "full",
    data: str | None = None,
    train: bool = True,
    **where: Unpack[Where],
) -> pd.DataFrame:
    """Runs a paper's table by its own protocol, or goes on where it was; each number beside the published.

    Args:
        table: its name (`kdbench tables`), or the path of a TOML file.
        pairs: only these pairs or networks, with commas between them.
        parts: only these shares of the data, likewise.
        methods: only these rows or methods, likewise.
        seeds: of each row; by default the protocol's.
        scale: full; or short, which is never comparable.
        data: a stand-in for the data, never comparable.
        train: whether to run what is missing, or to read what there is.
        where: store (with `train` false also one of evidence), device and more, see `Where`.

    Returns:
        A row for each number of the table, in the paper's unit: published, value (ours, by the paper's statistic),
        seeds (ours by seed), difference with its half_width, verdict and reason.

    Raises:
        InputError: if anything that was given is wrong.
        Unfinished: if runs came to no result.
    """
    from kdbench.sweeps.cli.tables import reproduce_and_show
    from kdbench.sweeps.protocols.files import load_protocol
    from kdbench.sweeps.protocols.request import table_request

    request = table_request(load_protocol(str(table)), scale, pairs, methods, seeds, data, parts)
    place = place_of(where, "auto")
    values, _, failures = reproduce_and_show(request, place, train=train)
    if failures:
        raise Unfinished(failures)
    shown = ["pair", "label", "metric", "part", "published", "value", "seeds", "difference", "half_width", "verdict"]
    rows = [row | {"published": (row["published"] or {}).get("value")} for row in values["rows"]]
    return pd.DataFrame(rows)[[*shown, "reason"]]


def _frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows with intervals as two columns: the mean, and NAME_half_width."""
    return pd.DataFrame(
        [
            {
                column: value
                for name, each in row.items()
                for column, value in (
                    ((name, each["mean"]), (f"{name}_half_width", each["half_width"]))
                    if isinstance(each, dict) and "half_width" in each
                    else ((name, each),)
                )
            }
            for row in rows
        ]
    )
