"""python -m bench.speed: images/s of a plain loop and of the engine in its ways, interleaved in one process."""

from __future__ import annotations

import json
import shlex
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from bench.configure import by_role
from bench.environment import environment, pick_device
from bench.errors import InputError
from bench.networks.build import check_model
from bench.speed.loops import Setting, models, one_stage
from bench.speed.machine import convolution_peak, cores
from bench.speed.measure import Row, measured

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
    named = [tuple(pair.strip().split(":")) for pair in pairs.split(",")]
    for pair in named:
        if len(pair) != 2:
            raise InputError(f"--pairs takes TEACHER:STUDENT,..., but got {':'.join(pair)!r}.")
        for name in pair:
            check_model(name)
    for method in methods.split(","):
        one_stage(method.strip())
    batches, workers = batches or (1200 if gpu else 40), workers if workers >= 0 else (8 if gpu else 0)
    if batches < rounds + 4:
        raise InputError(f"--batches must be at least four more than --rounds, but got {batches} and {rounds}.")
    peaks = {name: convolution_peak(where, getattr(torch, name)) for name in ("float32", "bfloat16")}
    rows: list[Row] = []
    for pair in named:
        for method in methods.split(","):
            teacher, student = models(pair)
            setting = Setting(teacher, student, method.strip(), batch_size, batches, where)
            rows += measured(setting, students, rounds, workers, compiled, rival, peaks)
            if not as_json:
                _print(rows[-1].pair, [row for row in rows if row.pair == rows[-1].pair and row.method == method])
    middle = {loop: statistics.median(row.ratio for row in rows if row.loop == loop) for loop in _loops(rows)}
    values = {
        "command": shlex.join(
            ["python", "-m", "bench.speed", *("CHECKOUT" if a == str(rival) else a for a in sys.argv[1:])]
        ),
        "environment": environment(where).model_dump() | {"cores": cores()},
        "time": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "peak_operations_per_second": peaks,
        "median_ratio": middle,
        "rows": [asdict(row) for row in rows],
    }
    if output:
        output.write_text(json.dumps(values, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(values, indent=1))
    else:
        parts = ", ".join(f"{loop} {ratio:.2f}" for loop, ratio in middle.items())
        typer.echo(f"Median ratio to the plain loop: {parts}.")


def _loops(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row.loop for row in rows))


def _print(pair: str, rows: list[Row]) -> None:
    table = Table(title=f"{pair.replace(':', ' -> ')}, {rows[0].method}", title_justify="left")
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
        typer.echo(f"bench.speed: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    run()
