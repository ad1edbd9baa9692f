"""The command `kdbench`."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.errors import InputError

app = typer.Typer(
    help="Knowledge distillation, compared honestly: run methods, sweep suites, read leaderboards.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Store = Annotated[Path, typer.Option("--store", envvar="KDBENCH_STORE", help="Folder of all that is kept.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of data sets; downloads go there. [default: STORE/data]")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Precision = Annotated[str, typer.Option(help="auto (measured for each model), fp32 (the plain path) or bf16.")]
Cache = Annotated[
    str, typer.Option("--teacher-cache", help="Of teachers' answers: off, or disk:8, memory:2, device:4 (GiB).")
]
DEFAULT_STORE = Path("runs")


def say(text: str = "") -> None:
    """Prints to standard error, where everything but results goes."""
    typer.echo(text, err=True)


def answer(value: dict[str, Any]) -> None:
    """Prints a JSON object to standard output."""
    typer.echo(json.dumps(value, indent=1, default=str))


@app.command(epilog="Example: kdbench methods kd")
def methods(
    name: Annotated[str | None, typer.Argument(help="Show one method in full.")] = None,
    form: Annotated[str, typer.Option("--format", help="terminal, or markdown: all methods in full.")] = "terminal",
    as_json: Json = False,
) -> None:
    """Lists the methods, or one with its hyperparameters."""
    from sweeps.registry import method_page, method_values, methods_in_full, methods_page

    if form not in ("terminal", "markdown"):
        raise InputError(f"methods are shown as terminal or markdown, but got --format {form}.")
    if as_json:
        answer(method_values(name))
    elif form == "markdown":
        typer.echo(methods_in_full(name))
    else:
        typer.echo(method_page(name) if name else methods_page())


@app.command(epilog="Example: kdbench compatibility --methods at,tinybert --teachers vit,resnet")
def compatibility(
    methods: Annotated[str | None, typer.Option(help="Only these, as kd,at.")] = None,
    teachers: Annotated[str | None, typer.Option(help="Only these families, as resnet,vit.")] = None,
    students: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    form: Annotated[str, typer.Option("--format", help="terminal or markdown.")] = "terminal",
    as_json: Json = False,
) -> None:
    """Tries methods on pairs of timm's families by one update of every stage; says what works, and why not."""
    from sweeps.show import compatibility_and_show

    values, text = compatibility_and_show(methods, teachers, students, form)
    answer(values) if as_json else typer.echo(text)


@app.command(
    epilog="Example: kdbench run --method kd --teacher cifar_resnet20 --student cifar_resnet8 --data digits --epochs 10"
)
def run(
    method: Annotated[str, typer.Option(help="See kdbench methods; kd+at adds up the losses of several.")],
    student: Annotated[
        str, typer.Option(help="A timm model, or one of the literature (cifar_resnet20, wrn_16_2, ...).")
    ],
    data: Annotated[
        str, typer.Option(help="digits, mnist, fashion-mnist, cifar10, cifar100, cifar10-jpeg, or a folder.")
    ],
    teacher: Annotated[
        list[str] | None, typer.Option(help="As --student; trained first if the store has none. Again for more.")
    ] = None,
    teacher_weights: Annotated[
        list[Path] | None, typer.Option(help="A checkpoint of the teacher (safetensors or tensors).")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A hyperparameter, as --set temperature=8.")
    ] = None,
    recipe: Annotated[list[str] | None, typer.Option(help="A field of the recipe, as --recipe lr=0.1.")] = None,
    student_args: Annotated[
        list[str] | None, typer.Option("--student-arg", help="Of its constructor, as drop_rate=0.1.")
    ] = None,
    teacher_args: Annotated[
        list[str] | None, typer.Option("--teacher-arg", help="Likewise; mean, std and input_size are its input's.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Of the student.")] = None,
    finetune: Annotated[
        float | None, typer.Option(help="Share of the epochs, at the end, on hard labels alone, as 0.1.")
    ] = None,
    teacher_epochs: Annotated[
        int | None, typer.Option(help="Of a teacher that is trained. [default: --epochs]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights and batches.")] = 0,
    train_fraction: Annotated[float, typer.Option(help="Labelled share of the training part.")] = 1.0,
    image_size: Annotated[int, typer.Option(help="Pixels; needed for a folder.")] = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    cache: Cache = "disk:8",
    data_dir: DataDir = None,
    store: Store = DEFAULT_STORE,
    mlflow: Annotated[bool, typer.Option(help="Whether to log to MLflow.")] = True,
    as_json: Json = False,
) -> None:
    """Carries out one run: trains the teacher if need be, then the student, and scores it on test once."""
    from sweeps.single import Request, carry_out_request

    request = Request(
        method=method,
        student=student,
        data=data,
        teachers=tuple(teacher or ()),
        teacher_weights=tuple(teacher_weights or ()),
        settings=pairs_of(settings, "--set"),
        recipe=pairs_of(recipe, "--recipe") | ({} if finetune is None else {"finetune": str(finetune)}),
        student_args=pairs_of(student_args, "--student-arg"),
        teacher_args=pairs_of(teacher_args, "--teacher-arg"),
        epochs=epochs,
        teacher_epochs=teacher_epochs,
        seed=seed,
        train_fraction=train_fraction,
        image_size=image_size,
        device=device,
        precision=precision,
        cache=cache,
        data_dir=data_dir,
    )
    values, text = carry_out_request(request, store, mlflow)
    answer(values) if as_json else typer.echo(text)


@app.command(epilog="Example: kdbench show 3f2a --plot confusion.png")
def show(
    run: Annotated[str, typer.Argument(help="A run's key, or the first characters of it.")],
    plot: Annotated[Path | None, typer.Option(help="Writes the confusion matrix there, as a png file.")] = None,
    anytime: Annotated[Path | None, typer.Option(help="Writes accuracy over cost of every exit there.")] = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Shows a run: its scores, cost, and whether it meets practitioners' targets."""
    from results.card import anytime_picture, card_page, card_values, confusion_picture
    from results.store import write

    runs = _store(existing(store))
    found = runs.find(run)
    if plot:
        write(in_folder(plot), confusion_picture(found))
    if anytime:
        write(in_folder(anytime), anytime_picture(found))
    answer(card_values(found)) if as_json else typer.echo(card_page(found, runs))


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
    from dataclasses import asdict

    from bench.environment import pick_device
    from results.card import card_page, card_values
    from results.explanation import explain_page, explain_plot
    from sweeps.explain import Settings
    from sweeps.explain import explain as explained

    kept = _store(existing(store), read_only=False)
    settings = Settings(images=images, snapshots=snapshots, depth=depth, threshold=threshold)
    if plot:
        in_folder(plot)
    rows = explained(runs, kept, (data_dir or store / "data").expanduser().resolve(), pick_device(device), settings)
    if plot:
        explain_plot(rows, plot)
    if mlflow:
        from results.tracking import Tracker

        Tracker(kept, "explain").explanation(rows)
    cards = [kept.find(row.key) for row in rows]
    if as_json:
        answer({"runs": [asdict(row) | {"card": card_values(card)} for row, card in zip(rows, cards, strict=True)]})
    else:
        typer.echo("\n\n".join([explain_page(rows), *(card_page(card, kept) for card in cards)]))


@app.command(epilog="Example: kdbench sweep digits --methods student,kd --trials 4 --seeds 3")
def sweep(
    suite: Annotated[str, typer.Argument(help="A bundled suite (digits), or a path of a TOML file.")],
    methods: Annotated[str | None, typer.Option(help="Only these, as student,kd.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Tuning trials of each method.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Final runs of each method.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of each run.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 is one a core on a CPU, one on a GPU.")] = 0,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16. [default: the suite's]")] = "",
    cache: Cache = "disk:8",
    data_dir: DataDir = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Tunes every method under one budget, trains the best settings on all seeds, and prints the leaderboard."""
    from sweeps.show import sweep_and_show

    changes = {"trials": trials, "seeds": seeds, "epochs": epochs, "methods": methods}
    board, text = sweep_and_show(suite, changes, store, workers, device, precision, cache, data_dir)
    answer(board) if as_json else typer.echo(text)


@app.command(epilog="Example: kdbench leaderboard digits --format markdown")
def leaderboard(
    suite: Annotated[str, typer.Argument(help="NAME (the protocol last run) or NAME@HASH.")],
    form: Annotated[str, typer.Option("--format", help="terminal, markdown, latex or csv.")] = "terminal",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Prints the leaderboard of a suite as it stands, also while it runs."""
    from results.leaderboard import leaderboard as board_of
    from results.plan import Plan
    from results.tables import plain, render

    board = board_of(Plan.find(existing(store), suite), _store(store))
    answer(plain(board)) if as_json else typer.echo(render(board, form))


@app.command(epilog="Example: kdbench compare digits --against kd --plot ranks.png")
def compare(
    suite: Annotated[str, typer.Argument(help="NAME (the protocol last run) or NAME@HASH.")],
    against: Annotated[str | None, typer.Option(help="Controls. [default: student,kd]")] = None,
    form: Annotated[str, typer.Option("--format", help="terminal, markdown, latex; csv (no ranks).")] = "terminal",
    plot: Annotated[
        Path | None, typer.Option(help="Writes the critical-difference diagram there, as a png, svg or pdf file.")
    ] = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Tests each method against the controls by paired seeds, and ranks all over pairs; also while a sweep runs."""
    from results.comparison import compare as compared_of
    from results.comparison_page import comparison_page, comparison_picture, comparison_values
    from results.plan import Plan
    from results.store import write

    controls = [name.strip() for name in (against or "").split(",") if name.strip()]
    compared = compared_of(Plan.find(existing(store), suite), _store(store), controls)
    if plot:
        write(in_folder(plot), comparison_picture(compared, plot.suffix.removeprefix(".").lower()))
    answer(comparison_values(compared)) if as_json else typer.echo(comparison_page(compared, form))


@app.command(epilog="Example: kdbench published --method at --data cifar10")
def published(
    method: Annotated[str | None, typer.Option(help="As at (also in sums), or a sum as kd+at.")] = None,
    data: Annotated[str | None, typer.Option(help="As cifar10, imagenet, mnist, sst-2.")] = None,
    paper: Annotated[str | None, typer.Option(help="As crd2020.")] = None,
    table: Annotated[str | None, typer.Option(help="As crd2020_cifar100_same; also shows its protocol.")] = None,
    teacher: Annotated[str | None, typer.Option(help="As WRN-40-2.")] = None,
    student: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    text: Annotated[str | None, typer.Option(help="Anything that a row says.")] = None,
    conflicts: Annotated[bool, typer.Option("--conflicts", help="Only where sources print other values.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="Rows; 0 is all.")] = 40,
    form: Annotated[str, typer.Option("--format", help="terminal, markdown or csv.")] = "terminal",
    as_json: Json = False,
) -> None:
    """Searches the papers' numbers, with their sources."""
    from sweeps.published import published_and_show

    wanted = {"method": method, "data": data, "paper": paper, "table": table}
    wanted |= {"teacher": teacher, "student": student, "text": text}
    values, rows, notes = published_and_show(wanted, conflicts, form, limit)
    if as_json:
        answer(values)
    elif form == "csv":
        typer.echo(rows)
        say(notes)
    else:
        typer.echo(f"{rows}\n\n{notes}")


@app.command(epilog="Example: kdbench tables hinton2015_mnist")
def tables(
    name: Annotated[
        str | None, typer.Argument(help="Show one protocol in full, with the source of each value.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="terminal or markdown.")] = "terminal",
    device: Device = "auto",
    data_dir: DataDir = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Lists the papers' tables that can be reproduced: what they cost, if their data are here, how far they are."""
    from sweeps.show_tables import tables_and_show

    values, text = tables_and_show(name, store, data_dir, device, form)
    answer(values) if as_json else typer.echo(text)


@app.command(epilog="Example: kdbench reproduce hinton2015_mnist --scale short")
def reproduce(
    table: Annotated[str, typer.Argument(help="See kdbench tables; or a path of a TOML file.")],
    pairs: Annotated[str | None, typer.Option(help="Only these pairs or networks, as WRN-16-1,WRN-40-2.")] = None,
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
    cache: Cache = "disk:8",
    data_dir: DataDir = None,
    form: Annotated[str, typer.Option("--format", help="terminal, markdown, latex or csv.")] = "terminal",
    plot: Annotated[Path | None, typer.Option(help="Plots published against ours there, as a png file.")] = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Runs a paper's table by its own protocol and prints each number beside the published; goes on where it was."""
    from sweeps.protocol_file import load_protocol
    from sweeps.show_tables import reproduce_and_show
    from sweeps.task import task_of

    task = task_of(load_protocol(table), scale, pairs, methods, seeds, data)
    plot = in_folder(plot) if plot else None
    values, text = reproduce_and_show(
        task, store, workers, device, precision, cache, data_dir, form, plot, train
    )  # fmt: skip
    answer(values) if as_json else typer.echo(text)


@app.command(epilog="Example: kdbench status digits")
def status(
    suite: Annotated[str, typer.Argument(help="NAME (the protocol last run) or NAME@HASH.")],
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Counts the runs of a suite by how they stand."""
    from results.plan import Plan
    from results.status import page, status_of

    values = status_of(Plan.find(existing(store), suite), _store(store))
    answer(values) if as_json else typer.echo(page(values))


@app.command(epilog="Example: kdbench teachers")
def teachers(store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """Lists every teacher in the store, and verifies its weights against their SHA-256."""
    from results.status import teachers_of, teachers_page

    rows = teachers_of(_store(existing(store)))
    answer({"teachers": rows}) if as_json else typer.echo(teachers_page(rows))
    if any(row["problem"] for row in rows):
        raise typer.Exit(1)


@app.command(epilog="Example: kdbench sync digits")
def sync(
    suite: Annotated[str, typer.Argument(help="NAME (the protocol last run) or NAME@HASH.")],
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Brings MLflow up to date with the run store; rebuilds it if it was lost."""
    from results.leaderboard import leaderboard as board_of
    from results.plan import Plan
    from results.reproduction import reproduction_of_plan
    from results.tracking import Tracker

    plan, runs = Plan.find(existing(store), suite), _store(store, read_only=False)
    tracker = Tracker(runs, plan.name)
    for planned in plan.runs():
        tracker.run(planned)
    tracker.board(board_of(plan, runs))
    if table := reproduction_of_plan(plan, runs):
        tracker.reproduction(table)
    values = {"experiment": plan.name, "runs": len(plan.runs()), "tracking_uri": tracker.uri}
    answer(values) if as_json else typer.echo(f"{values['runs']} runs of {suite} are in {tracker.uri}")


@app.command(epilog="Example: kdbench export hinton2015_mnist results/tables")
def export(
    suite: Annotated[str, typer.Argument(help="NAME (the protocol last run) or NAME@HASH; also a paper's table.")],
    folder: Annotated[Path, typer.Argument(help="Which is then a store itself; several suites may share it.")],
    weights_under: Annotated[
        float, typer.Option(min=0, help="MB; the weights of a teacher are copied if they take less.")
    ] = 10.0,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Copies what stands behind a suite's or a paper's table into a folder for git, to make the table again from."""
    from results.export import export as export_of
    from results.plan import Plan

    exported = export_of(Plan.find(existing(store), suite), _store(store), folder, weights_under)
    answer(exported.values()) if as_json else typer.echo(exported.page())


def pairs_of(items: list[str] | None, option: str) -> dict[str, str]:
    """NAME=VALUE items by name.

    Raises:
        InputError: for an item without an equals sign.
    """
    pairs = {}
    for item in items or ():
        name, equals, value = item.partition("=")
        if not (name and equals):
            raise InputError(f"{option} takes NAME=VALUE, but got {item!r}.")
        pairs[name.strip()] = value.strip()
    return pairs


def in_folder(path: Path) -> Path:
    """A path whose folder is there.

    Raises:
        InputError: if it is not.
    """
    if not path.resolve().parent.is_dir():
        raise InputError(f"there is no folder {path.resolve().parent} to write {path.name} into.")
    return path


def existing(store: Path) -> Path:
    """A store that must be there, as reading does not make one.

    Raises:
        InputError: if it is not.
    """
    if not store.is_dir():
        raise InputError(f"there is no store {store}: run a sweep first, or give its folder by --store.")
    return store


def _store(store: Path, read_only: bool = True) -> Any:
    from results.store import RunStore

    return RunStore(store, read_only)


def guarded(command: Callable[[], Any]) -> int:
    """Runs a command; bad input is one line and exit code 2, an interrupt 130 or 143."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        command()
    except InputError as error:
        say(f"kdbench: {error}")
        return 2
    except KeyboardInterrupt:
        say("\nkdbench: interrupted. What is finished is kept; the same command goes on.")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def main() -> None:
    """Entry point."""
    sys.exit(guarded(_typer))


def _typer() -> None:
    try:
        code = app(standalone_mode=False, prog_name="kdbench")
    except typer.TyperException as error:
        raise InputError(" ".join(error.format_message().split()) + " See: kdbench --help") from None
    if code == 130:
        raise KeyboardInterrupt
    if code:
        sys.exit(code)
