"""What workers write to their standard error: a file for each in STORE/workers, until its end has been told."""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import os
import socket
from pathlib import Path

import psutil

FOLDER = "workers"
SAID = 1000
"""Characters of a dead worker's standard error that the reason of a failure shows."""
_numbers = itertools.count()


def log_of(store: Path) -> Path:
    """The file of a new worker of this driver, not yet made."""
    return store / FOLDER / f"{socket.gethostname()}-{os.getpid()}-{next(_numbers)}.log"


def write_to(log: Path) -> None:
    """Has this process write its standard error, and how it dies, to a file."""
    with contextlib.suppress(OSError):
        log.parent.mkdir(exist_ok=True)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        faulthandler.enable(2)


def said_in(log: Path) -> str:
    """What a worker that has ended wrote, begin and end, on one line and in brackets; its file is removed."""
    try:
        lines = log.read_text(errors="replace").splitlines()
        log.unlink()
    except OSError:
        return ""
    text = " / ".join(line.strip() for line in lines if line.strip() and not line.startswith("Extension modules"))
    if len(text) > SAID:
        text = f"{text[: SAID // 2]} ... {text[-SAID // 2 :]}"
    return f" ({text})" if text else ""


def remove_logs(store: Path) -> None:
    """Removes what is left of this machine's drivers that are gone."""
    for path in (store / FOLDER).glob(f"{socket.gethostname()}-*-*.log"):
        pid = path.stem.split("-")[-2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            path.unlink(missing_ok=True)
