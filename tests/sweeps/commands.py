"""The command `kdbench` in this process, whose imports are made and whose workers start at once."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from unittest import mock

from kdbench.sweeps.cli import _typer, guarded

Run = Callable[..., tuple[int, str, str]]


def kdbench(*arguments: str) -> tuple[int, str, str]:
    """Its exit code, and what it prints on standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["kdbench", *arguments]),
    ):
        try:
            code = guarded(_typer)
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()
