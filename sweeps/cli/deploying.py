"""The commands that hand a student out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdbench.sweeps.cli.common import DEFAULT_STORE, DataDir, Json, Store, answer, opened, say

app = typer.Typer()


@app.command(epilog="Example: kdbench export-student 3f2a --to onnx --out student --int8 static")
def export_student(
    run: Annotated[str, typer.Argument(help="A finished run's key, or the first characters of it.")],
    to: Annotated[
        str,
        typer.Option(help="timm (for timm.create_model), onnx, torchscript, safetensors (weights alone), or mlflow."),
    ],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    epoch: Annotated[str, typer.Option(help="last, or best on validation. [default: what the run's suite shows]")] = "",
    int8: Annotated[str, typer.Option(help="Of onnx, also in eight bits: static or dynamic quantisation.")] = "",
    board: Annotated[
        bool, typer.Option("--board", help="The card also tells its suite's score over all seeds.")
    ] = False,
    data_dir: DataDir = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Writes a run's student into a folder that is used without kdbench, compared with ours before it says done."""
    from kdbench.sweeps.students import ExportRequest
    from kdbench.sweeps.students import export_student as exported

    kept = opened(store)
    place = (data_dir or store / "data").expanduser().resolve()
    values, text = exported(ExportRequest(run, to, out, epoch, int8, board), kept, place, say)
    answer(values) if as_json else typer.echo(text)
