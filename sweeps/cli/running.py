"""The commands that compute: runs, sweeps, papers' tables, explanations, MLflow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kdbench.bench.errors import InputError, Unfinished
from kdbench.results.tracking.place import DATABASE
from kdbench.sweeps.cli.common import (
    DEFAULT_STORE,
    PRECISION_HELP,
    Cache,
    DataDir,
    Device,
    Json,
    Lease,
    Patience,
    Precision,
    Store,
    TrackingUri,
    answer,
    draw_picture,
    opened,
    pairs_of,
    picture_path,
    print_report,
    say,
)
from kdbench.sweeps.cli.place import DEFAULT_CACHE, LEASE, PATIENCE, Place

app = typer.Typer()
LogModels = Annotated[
    bool, typer.Option("--log-models", help="Also the best seed's student of each method, as a model MLflow serves.")
]

Students = Annotated[
    str | None, typer.Option(help="Search one of these instead, as 'mobilenetv3*,resnet1*'; --trials are of all.")
]

Texts = list[str] | None
MODEL_HELP = "A timm model, or one of the literature (cifar_resnet20, wrn_16_2, ...)."
DATA_HELP = "digits, mnist, fashion-mnist, cifar10, cifar100, cifar10-jpeg, composed-digits, or a folder."
TEACHER_HELP = "As --student; trained first if the store has none. Again for more."
WEIGHTS_HELP = "A checkpoint of the teacher: safetensors, or tensors that torch.save wrote."
ARGS_HELP = "Of its constructor, as drop_rate=0.1."
TEACHER_ARGS_HELP = "Of the teacher's, too; mean, std and input_size are its input's."
FINETUNE_HELP = "Share of the epochs, at the end, on hard labels alone, as 0.1."
TEACHER_EPOCHS_HELP = "Of a teacher that is trained. [default: --epochs]"


@app.command(epilog="Example: kdbench compatibility --methods at,tinybert --teachers vit,resnet")
def compatibility(
    methods: Annotated[str | None, typer.Option(help="Only these, as kd,at.")] = None,
    teachers: Annotated[str | None, typer.Option(help="Only these families, as resnet,vit.")] = None,
    students: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    form: Annotated[str, typer.Option("--format", help="terminal or markdown.")] = "terminal",
    as_json: Json = False,
) -> None:
    """Tries methods on pairs of timm's families by one update of every stage; says what works, and why not."""
    from kdbench.sweeps.cli.sweep import report_of_compatibility

    print_report(report_of_compatibility(methods, teachers, students, form), form, as_json)


@app.command(
    epilog="Example: kdbench run --method kd --teacher cifar_resnet20 --student cifar_resnet8 --data digits --epochs 10"
)
def run(
    method: Annotated[
        str, typer.Option(help="See kdbench methods; kd+at adds up several; my_method.py:MyKD is your own.")
    ],
    student: Annotated[str, typer.Option(help=MODEL_HELP)],
    data: Annotated[str, typer.Option(help=DATA_HELP)],
    task: Annotated[
        str, typer.Option(help="What is learned of the data: image (its class) or segmentation.")
    ] = "image",
    teacher: Annotated[Texts, typer.Option(help=TEACHER_HELP)] = None,
    teacher_weights: Annotated[list[Path] | None, typer.Option(help=WEIGHTS_HELP)] = None,
    settings: Annotated[Texts, typer.Option("--set", help="A hyperparameter, as --set temperature=8.")] = None,
    recipe: Annotated[Texts, typer.Option(help="A field of the recipe, as --recipe lr=0.1.")] = None,
    student_args: Annotated[Texts, typer.Option("--student-arg", help=ARGS_HELP)] = None,
    teacher_args: Annotated[Texts, typer.Option("--teacher-arg", help=TEACHER_ARGS_HELP)] = None,
    epochs: Annotated[int | None, typer.Option(help="Of the student.")] = None,
    finetune: Annotated[float | None, typer.Option(help=FINETUNE_HELP)] = None,
    teacher_epochs: Annotated[int | None, typer.Option(help=TEACHER_EPOCHS_HELP)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and batches.")] = 0,
    train_fraction: Annotated[float, typer.Option(help="Labelled share of the training part.")] = 1.0,
    image_size: Annotated[int, typer.Option(help="Pixels; needed for a folder.")] = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    cache: Cache = DEFAULT_CACHE,
    data_dir: DataDir = None,
    store: Store = DEFAULT_STORE,
    mlflow: Annotated[bool, typer.Option(help="Whether to log to MLflow.")] = True,
    tracking_uri: TrackingUri = "",
    as_json: Json = False,
) -> None:
    """Carries out one run: trains the teacher if need be, then the student, and scores it on test once."""
    from kdbench.sweeps.cli.single import RunRequest, carry_out_request

    changes = pairs_of(recipe, "--recipe") | ({} if finetune is None else {"finetune": str(finetune)})
    request = RunRequest(
        *(method, student, data, Place(store, device, precision, cache, data_dir, tracking=tracking_uri), task),
        teachers=tuple(teacher or ()),
        teacher_weights=tuple(teacher_weights or ()),
        settings=pairs_of(settings, "--set"),
        recipe=changes,
        student_args=pairs_of(student_args, "--student-arg"),
        teacher_args=pairs_of(teacher_args, "--teacher-arg"),
        epochs=epochs,
        teacher_epochs=teacher_epochs,
        seed=seed,
        train_fraction=train_fraction,
        image_size=image_size,
    )
    values, text = carry_out_request(request, mlflow)
    answer(values) if as_json else typer.echo(text)


@app.command(epilog="Example: kdbench explain 3f2a 9c41 --plot concepts.png")
def explain(
    runs: Annotated[list[str], typer.Argument(help="Keys of finished runs: a student's alone, and distilled ones'.")],
    images: Annotated[int, typer.Option(help="Test images, evenly drawn.")] = 32,
    snapshots: Annotated[int, typer.Option(help="Epochs at which concepts are counted.")] = 8,
    depth: Annotated[float, typer.Option(help="Of the feature: 0 is the first stage, 1 the last.")] = 0.5,
    threshold: Annotated[float, typer.Option(help="Nats by which a concept is below the background.")] = 0.2,
    plot: Annotated[Path | None, typer.Option(help="Writes a plot there, as a png file.")] = None,
    device: Device = "auto",
    data_dir: DataDir = None,
    store: Store = DEFAULT_STORE,
    mlflow: Annotated[bool, typer.Option(help="Whether to log to MLflow.")] = True,
    as_json: Json = False,
) -> None:
    """Counts the visual concepts that students learned, and how, by training them again with snapshots."""
    from kdbench.bench.environment import pick_device
    from kdbench.results.pages.explanation import explanation_report
    from kdbench.results.pages.report import render
    from kdbench.results.pages.run_summary import run_summary_report
    from kdbench.sweeps.cli.explain import Settings
    from kdbench.sweeps.cli.explain import explain as explained

    kept = opened(store, read_only=False)
    settings = Settings(images=images, snapshots=snapshots, depth=depth, threshold=threshold)
    if plot:
        picture_path(plot)
    rows = explained(runs, kept, (data_dir or store / "data").expanduser().resolve(), pick_device(device), settings)
    report = explanation_report(rows)
    if plot:
        draw_picture(report, "concepts", plot)
    if mlflow:
        from kdbench.results.tracking.tracker import Tracker

        Tracker(kept, "explain").explanation(rows)
    summaries = [run_summary_report(kept.find(row.key)) for row in rows]
    if as_json:
        runs_of = zip(report.values["runs"], summaries, strict=True)
        answer({"runs": [values | {"run": summary.values} for values, summary in runs_of]})
    else:
        typer.echo("\n\n".join([render(report).rstrip(), *map(render, summaries)]))


@app.command(epilog="Example: kdbench sweep digits --methods student,kd --trials 4 --seeds 3")
def sweep(
    suite: Annotated[str, typer.Argument(help="A bundled suite (digits), or a path of a TOML file.")],
    methods: Annotated[str | None, typer.Option(help="Only these, as student,kd,my_method.py:MyKD.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Tuning trials of each method.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Final runs of each method.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of each run.")] = None,
    cold: Annotated[bool, typer.Option("--cold", help="Without settings that a longer tuning has found.")] = False,
    students: Students = None,
    max_params: Annotated[str | None, typer.Option(help="Of --students, at most so many parameters, as 2M.")] = None,
    max_latency: Annotated[str | None, typer.Option(help="Likewise, for one image, as 5ms.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Plots the front of --students there, as a png file.")] = None,
    log_models: LogModels = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 is one a core on a CPU, one on a GPU.")] = 0,
    ray: Annotated[str, typer.Option(help="Sends runs to a Ray cluster: auto, or its head's HOST:PORT.")] = "",
    gpus_per_run: Annotated[float | None, typer.Option(min=0, help="Of the cluster, as 0.25.")] = None,
    cpus_per_run: Annotated[float | None, typer.Option(min=0.01, help="Likewise. [default: 1]")] = None,
    storage: Annotated[str, typer.Option(help="Several sweeps of one store at once: postgresql://USER@HOST/DB.")] = "",
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help=f"{PRECISION_HELP} [default: the suite's]")] = "",
    cache: Cache = DEFAULT_CACHE,
    data_dir: DataDir = None,
    lease: Lease = LEASE,
    patience: Patience = PATIENCE,
    tracking_uri: TrackingUri = "",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Tunes every method under one budget, trains the best settings on all seeds, and prints the leaderboard.

    With --students it searches student, method and hyperparameters together, and prints the Pareto front.
    """
    changes = {"trials": trials, "seeds": seeds, "epochs": epochs, "methods": methods, "cold": cold}
    here = Place(store, device, precision, cache, data_dir, workers, tracking_uri, lease, patience)
    place = replace(here, ray=ray, cpus_per_run=cpus_per_run, gpus_per_run=gpus_per_run, storage=storage)
    if any(option is not None for option in (students, max_params, max_latency, plot)):
        from kdbench.sweeps.cli.students import limits_of, search_and_show

        limits = limits_of(students, max_params, max_latency, plot)
        board, text, failures = search_and_show(suite, changes, limits, place, plot)
    else:
        from kdbench.sweeps.cli.finished import swept

        board, text, failures = swept(suite, changes, place)
    if log_models:
        board["models"], said = _log_models(board["suite"], store, place.data, tracking_uri)
        text += f"\n{said}"
    answer(board) if as_json else typer.echo(text)
    if failures:
        raise Unfinished(failures)


@app.command(epilog="Example: kdbench reproduce hinton2015_mnist --scale short")
def reproduce(
    table: Annotated[str, typer.Argument(help="See kdbench tables; or a path of a TOML file.")],
    pairs: Annotated[str | None, typer.Option(help="Only these pairs or networks, as WRN-16-1,WRN-40-2.")] = None,
    parts: Annotated[str | None, typer.Option(help="Only these shares of the data, as all,10 %,2 %.")] = None,
    methods: Annotated[str | None, typer.Option(help="Only these rows or methods, as teacher,kd.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of each row. [default: the protocol's]")] = None,
    scale: Annotated[str, typer.Option(help="full; or short: minutes, never comparable.")] = "full",
    data: Annotated[
        str | None, typer.Option(help="A stand-in for the data, as cifar10-jpeg; never comparable.")
    ] = None,
    train: Annotated[bool, typer.Option(help="Whether to run what is missing, or to print what there is.")] = True,
    workers: Annotated[int, typer.Option(min=0, help="Processes. [default: one a core, or one on a GPU]")] = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    cache: Cache = DEFAULT_CACHE,
    data_dir: DataDir = None,
    form: Annotated[str, typer.Option("--format", help="terminal, markdown, latex or csv.")] = "terminal",
    plot: Annotated[Path | None, typer.Option(help="Plots published against ours there, as a png file.")] = None,
    lease: Lease = LEASE,
    patience: Patience = PATIENCE,
    tracking_uri: TrackingUri = "",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Runs a paper's table by its own protocol and prints each number beside the published; goes on where it was."""
    from kdbench.sweeps.cli.tables import reproduce_and_show
    from kdbench.sweeps.protocols.files import load_protocol
    from kdbench.sweeps.protocols.request import table_request

    request = table_request(load_protocol(table), scale, pairs, methods, seeds, data, parts)
    plot = picture_path(plot) if plot else None
    place = Place(store, device, precision, cache, data_dir, workers, tracking_uri, lease, patience)
    values, text, failures = reproduce_and_show(request, place, form, plot, train)
    answer(values) if as_json else typer.echo(text)
    if failures:
        raise Unfinished(failures)


@app.command(epilog="Example: kdbench sync digits")
def sync(
    suite: Annotated[
        str | None, typer.Argument(help="NAME (the protocol last run) or NAME@HASH. [default: all, and single runs]")
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Make the database anew; the old one is kept until the new is whole.")
    ] = False,
    log_models: LogModels = False,
    data_dir: DataDir = None,
    tracking_uri: TrackingUri = "",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Brings MLflow up to date with the run store, without a run twice; exit code 1 if it could not."""
    from kdbench.sweeps.cli.finished import brought_up_to_date

    if log_models and not suite:
        raise InputError("--log-models is of one suite: name it, as kdbench sync digits --log-models.")
    values, problem = brought_up_to_date(opened(store, read_only=False), suite, tracking_uri, rebuild)
    text = f"{values['runs']} runs are in {values['tracking_uri']}"
    if suite and log_models and not problem:
        models, said = _log_models(suite, store, data_dir, tracking_uri)
        values, text = values | {"models": models}, f"{text}\n{said}"
    answer(values) if as_json else typer.echo(text)
    if problem:
        say(problem)
        raise typer.Exit(1)


def _log_models(suite: str, store: Path, data_dir: Path | None, uri: str) -> tuple[list[str], str]:
    """Logs a suite's students as models; their addresses, and how one is served on this machine alone."""
    from kdbench.bench.environment import command
    from kdbench.results.store.plan import SweepPlan
    from kdbench.results.store.run_store import RunStore
    from kdbench.sweeps.logged_models import log_models

    runs = RunStore(store)
    data = (data_dir or store / "data").expanduser()
    models = log_models(SweepPlan.find(runs.root, suite), runs, data, say, uri)
    at = f"MLFLOW_TRACKING_URI={uri or f'sqlite:///{runs.root / DATABASE}'}"
    serve = f"{at} {command('mlflow')} models serve -m {models[-1]} --env-manager local" if models else ""
    return models, f"Models:  {len(models)} students are logged" + (f"; serve one: {serve}" if models else "")
