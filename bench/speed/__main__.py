"""python -m kdbench.bench.speed: images/s of a plain loop and of the engine in its ways, interleaved in one process."""

from __future__ import annotations

import itertools
import json
import shlex
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from kdbench.bench.configure import by_role
from kdbench.bench.environment import environment, pick_device
from kdbench.bench.errors import InputError
from kdbench.bench.networks.build import check_model
from kdbench.bench.spec import ModelSpec
from kdbench.bench.speed.loops import Setting, one_stage
from kdbench.bench.speed.machine import Peaks, cores
from kdbench.bench.speed.measure import Measuring, Row, measured
from kdbench.bench.training.precision import check_precision

PAIRS = "wrn_40_2:wrn_16_2,cifar_resnet56:cifar_resnet20,cifar_resnet32x4:cifar_resnet8x4"


def main(
    pairs: Annotated[str, typer.Option(help="TEACHER:STUDENT,...")] = PAIRS,
    methods: Annotated[
        str, typer.Option(help="ID,... of methods that teach one student in one stage; see kdbench methods.")
    ] = by_role("baseline"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    batch_size: Annotated[int, typer.Option(min=2)] = 64,
    students: Annotated[int, typer.Option(min=1, help="Side by side.")] = 4,
    rounds: Annotated[int, typer.Option(min=3, help="Measurements of each loop.")] = 10,
    batches: Annotated[int, typer.Option(help="Of an epoch. [default: 40 on a CPU, 1200 on a GPU]")] = 0,
    workers: Annotated[int, typer.Option(help="Of the plain loop's DataLoader. [default: 0; 8 on a GPU]")] = -1,
    precision: Annotated[
        str, typer.Option(help="Of the engine, but on its plain path: measured, auto, fp32 or bf16.")
    ] = "measured",
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="Whether to try torch.compile.")] = True,
    rival: Annotated[Path | None, typer.Option("--repdistiller", help="A checkout of RepDistiller.")] = None,
    output: Annotated[Path | None, typer.Option(help="Writes the JSON there too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Measures training speed: a plain loop, the engine with the teacher run, with its answers kept, and many students.

    Everything of a pair runs in this process, in turn, a measurement each round. Those during which other processes
    used the cores are dropped and counted.
    """
    where = pick_device(device)
    gpu = where.type == "cuda"
    check_precision(precision)
    named, taught = _pairs(pairs), [method.strip() for method in methods.split(",")]
    for method in taught:
        one_stage(method)
    batches, workers = batches or (1200 if gpu else 40), workers if workers >= 0 else (8 if gpu else 0)
    if batches < rounds + 4:
        raise InputError(f"--batches must be at least four more than --rounds, but got {batches} and {rounds}.")
    peaks = Peaks(where)
    how = Measuring(students, rounds, workers, compiled, rival, precision, peaks)
    rows: list[Row] = []
    for (teacher, student), method in itertools.product(named, taught):
        mine = measured(Setting(teacher, student, method, batch_size, batches, where), how)
        rows += mine
        if not as_json:
            _print(mine)
    values = _values(rows, where, peaks, rival)
    if output:
        output.write_text(json.dumps(values, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(values, indent=1))
    else:
        parts = ", ".join(f"{loop} {ratio:.2f}" for loop, ratio in values["median_ratio"].items())
        typer.echo(f"Median ratio to the plain loop: {parts}.")


def _pairs(text: str) -> list[tuple[ModelSpec, ModelSpec]]:
    """The teachers and students of --pairs, which must be known."""
    named = []
    for pair in text.split(","):
        names = pair.strip().split(":")
        if len(names) != 2:
            raise InputError(f"--pairs takes TEACHER:STUDENT,..., but got {pair.strip()!r}.")
        for name in names:
            check_model(name)
        named.append((ModelSpec(name=names[0]), ModelSpec(name=names[1])))
    return named


def _values(rows: list[Row], device: torch.device, peaks: dict[str, float], rival: Path | None) -> dict[str, Any]:
    """What was measured, on what and by which command, as JSON values."""
    arguments = ["CHECKOUT" if argument == str(rival) else argument for argument in sys.argv[1:]]
    loops = dict.fromkeys(row.loop for row in rows)
    return {
        "command": shlex.join(["python", "-m", "kdbench.bench.speed", *arguments]),
        "environment": environment(device).model_dump() | {"cores": cores()},
        "time": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "peak_operations_per_second": peaks,
        "median_ratio": {loop: statistics.median(row.ratio for row in rows if row.loop == loop) for loop in loops},
        "rows": [asdict(row) for row in rows],
    }


def _print(rows: list[Row]) -> None:
    """The loops of one pair and method as a table."""
    table = Table(title=f"{rows[0].pair.replace(':', ' -> ')}, {rows[0].method}", title_justify="left")
    for column in ("loop", "images/s", "ratio", "ceiling", "share", "memory", "start", "counted", "dropped"):
        table.add_column(column, justify="left" if column == "loop" else "right")
    for row in rows:
        table.add_row(
            row.loop,
            f"{row.images_per_second:.0f}",
            f"{row.ratio:.2f}",
            f"{row.ceiling:.0f}",
            f"{100 * row.share:.0f} %",
            f"{row.memory / 2**30:.2f} GiB" if row.memory else "",
            f"{row.start:.1f} s",
            str(row.measurements),
            str(row.dropped),
        )
    Console(width=max(100, Console().width)).print(table)


def run() -> None:
    """Entry point; bad input is one line and exit code 2."""
    try:
        typer.run(main)
    except InputError as error:
        typer.echo(f"kdbench.bench.speed: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    run()
