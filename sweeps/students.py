"""`kdbench export-student`: the student of a finished run in a folder that is used without kdbench."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from kdbench.bench.atomic import write
from kdbench.bench.configure import method_of
from kdbench.bench.data.images import ImageSplits
from kdbench.bench.deploy.check import TOLERANCE, check_recorded, difference, one_of, scored
from kdbench.bench.deploy.formats import Format
from kdbench.bench.deploy.onnx_graph import answer_of
from kdbench.bench.deploy.quantised import check_way, quantise
from kdbench.bench.deploy.student import Student, student_of
from kdbench.bench.deploy.table import format_of
from kdbench.bench.environment import processor
from kdbench.bench.errors import InputError, unknown
from kdbench.bench.evaluation.latency import REPEATS, WARM_UP, timed
from kdbench.bench.record import Outcome
from kdbench.bench.tasks import load
from kdbench.methods.rows import count
from kdbench.results.analysis.leaderboard import leaderboard
from kdbench.results.pages.numbers import printed, score_text
from kdbench.results.pages.student_card import Origin, Shown, Use, student_card, values_of
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.stored_run import StoredRun
from kdbench.sweeps.scheduling.sources import provide

EPOCHS = ("last", "best")


@dataclass(frozen=True)
class ExportRequest:
    """What the command line asks for; texts are not yet checked."""

    run: str
    """A key, or the first characters of it."""
    to: str
    """A format."""
    folder: Path
    epoch: str = ""
    """last or best; empty is what the run's suite shows."""
    int8: str = ""
    """A way of quantisation; empty for none."""
    board: bool = False
    """Whether the card tells the score of the suite's board too."""


def export_student(
    request: ExportRequest, store: RunStore, data_dir: Path, say: Callable[[str], None]
) -> tuple[dict[str, Any], str]:
    """Writes the student's folder; returns what was measured as JSON values and as text.

    Nothing is kept of an export that does not answer as our network does.

    Args:
        request: which run, in which format, where.
        store: where the run is.
        data_dir: where its data are.
        say: told what is being done.

    Raises:
        InputError: if the run, the format or the folder cannot be had, or the export is not the same network.
    """
    form = format_of(request.to)
    if request.int8:
        check_way(request.int8)
        if request.to != "onnx":
            raise InputError(f"--int8 is made of an ONNX file, but got --to {request.to}: give --to onnx.")
    run, outcome = _done(store, request.run)
    place = _place(store, run.key)
    epoch = _epoch(request.epoch, place)
    about = _board(place, store) if request.board else ""
    data = load(run.spec.data, data_dir)
    file = f"{epoch}.safetensors"
    student = student_of(run.spec, data, store.weights(f"run:{run.key}", file))
    assert isinstance(data, ImageSplits)
    form.check(student)
    with _new_folder(request.folder) as folder:
        say(f"Writing {student.name} of run {run.key} ({epoch} epoch) as {form.name}")
        form.write(student, folder)
        say(f"Comparing it with ours on the {count(data.test.inputs)} images of the test part")
        shown = _shown(student, form, folder, data, outcome, request, epoch)
        paper = method_of(run.spec).paper
        cited = f"{paper.authors} {paper.year}, {paper.title}" if paper else ""
        origin = Origin(epoch, cited, version("kdbench"), about)
        side = (student.channels, student.size, student.size)
        normal = (student.mean, student.std, student.class_names)
        use = Use(form.name, form.lines, form.use, form.takes, side, *normal)
        values = values_of(run, use, shown, origin)
        write(folder / "kdbench.json", json.dumps(values, indent=1).encode())
        write(folder / "README.md", student_card(run, outcome, use, shown, origin).encode())
    return values | {"folder": str(request.folder)}, _text(request, shown, outcome)


def _done(store: RunStore, text: str) -> tuple[StoredRun, Outcome]:
    """A run with a test score, its method at hand."""
    run = store.find(text)
    provide(run.spec.canonical(), store.root)
    if run.status != "done" or run.outcome is None:
        raise InputError(f"the student of a run that is done can be exported, but {run.key} is {run.status}.")
    if run.outcome.headline("last", "test") is None:
        raise InputError(
            f"run {run.key} is a tuning trial, which is never scored on test: export a run of a seed, as kdbench "
            "leaderboard has them."
        )
    return run, run.outcome


Place = tuple[SweepPlan, Planned]


def _place(store: RunStore, key: str) -> Place | None:
    """The suite that a run belongs to, the one last run of several, and its place there."""
    found: list[Place] = []
    for path in (store.root / "suites").glob("*/*/suite.json"):
        with contextlib.suppress(InputError):
            plan = SweepPlan(path.parent)
            found += [(plan, planned) for planned in plan.started() if planned.key == key]
    return max(found, key=lambda place: place[0].last_run) if found else None


def _epoch(asked: str, place: Place | None) -> str:
    if asked and asked not in EPOCHS:
        raise unknown("epoch", asked, EPOCHS)
    return asked or (place[0].suite.show if place else "last")


def _board(place: Place | None, store: RunStore) -> str:
    """What the board of a run's suite says of its method, over all seeds."""
    if place is None or place[1].phase != "seed":
        raise InputError("--board tells a row of a suite's leaderboard, but this run is in none: leave it out.")
    plan, planned = place
    board = leaderboard(plan, store)
    row = next(row for row in board.rows if (row.pair, row.method) == (planned.pair, planned.method))
    if row.score is None:
        raise InputError(f"{plan.name} has no score of {planned.method} yet: leave --board out.")
    return (
        f"On the board of {plan.name}, over {row.seeds} seeds: {score_text(row.score, board.metric)} "
        f"{board.metric.unit} (mean and 95 % interval)."
    )


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder of its own, made for an export, and gone if that fails.

    Raises:
        InputError: if there is something in it, or it cannot be made.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there and not empty: give a new folder by --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be made: {error}") from None
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _shown(
    student: Student,
    form: Format,
    folder: Path,
    data: ImageSplits,
    outcome: Outcome,
    request: ExportRequest,
    epoch: str,
) -> Shown:
    """What was written, scored and timed beside the network that was trained."""
    graph = student.graph()
    ours = scored(student, graph, data.test)
    check_recorded(student, ours, data.test, lambda name: outcome.headline(epoch, "test", name))
    answer, image = form.load(student, folder), one_of(data.test)
    theirs = scored(student, answer, data.test)
    worst = difference(ours, theirs, form.name)
    calls: dict[str, Callable[[], object]] = {"torch": lambda: graph(image), form.name: lambda: answer(image)}
    shown = Shown(ours.score, theirs.score, worst, TOLERANCE, count(data.test.inputs), {}, _how())
    if request.int8:
        small = answer_of(quantise(student, folder, request.int8, data))
        calls["int8"] = lambda: small(image)
        shown = dataclasses.replace(shown, int8=request.int8, int8_score=scored(student, small, data.test).score)
    with torch.no_grad():
        speed = {name: str(timing) for name, timing in timed(calls).items()}
    files = sorted(path for path in folder.rglob("model*") if path.is_file())
    return dataclasses.replace(shown, speed=speed, sizes={path.name: path.stat().st_size for path in files})


def _how() -> str:
    return (
        f"One image, median of {REPEATS} repeats after {WARM_UP} for warming up, in turn, on {processor()}, "
        f"{torch.get_num_threads()} thread(s)."
    )


def _text(request: ExportRequest, shown: Shown, outcome: Outcome) -> str:
    metric = outcome.metric
    lines = [
        f"The same on {shown.images} test images: logits differ by at most {shown.difference:.2g} (tolerance "
        f"{shown.tolerance:g}).",
        f"Test {metric.name}: {printed(shown.ours, metric, 2)} here, {printed(shown.theirs, metric, 2)} as "
        f"{request.to}" + (f", {printed(shown.int8_score, metric, 2)} in int8 ({shown.int8})" if shown.int8 else ""),
        *(f"One image, {name}: {text}" for name, text in shown.speed.items()),
        shown.timing,
        f"The student is in {request.folder}; README.md there says how it is used, made, and how good it is.",
    ]
    return "\n".join(lines)
