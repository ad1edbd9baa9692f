"""Where a run ran: device, threads, versions, and the commit of the code; imports torch where a device is asked for."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.bench.errors import InputError
from kdbench.bench.record import Environment

if TYPE_CHECKING:
    import torch


def pick_device(name: str) -> torch.device:
    """The device by name; "auto" is the GPU where there is one.

    Raises:
        InputError: if there is no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device {name!r} cannot be used here: {str(error).splitlines()[0]} Try --device cpu."
        ) from None
    return device


@contextlib.contextmanager
def in_threads(count: int) -> Iterator[None]:
    """So many threads of torch's for what is computed within: sums in another order give other last bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def environment(device: torch.device) -> Environment:
    """What a record says of the machine; it does not enter the key."""
    import torch

    return Environment(
        device=device.type,
        hardware=hardware(device),
        threads=torch.get_num_threads(),
        cores=os.cpu_count() or 0,
        python=platform.python_version(),
        torch=version("torch"),
        timm=version("timm"),
        commit=commit(),
    )


def hardware(device: torch.device) -> str:
    """The name of the GPU or the processor."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def command(name: str) -> str:
    """How a person here calls a command of this environment: by its name if the shell finds it, else by its path."""
    path = Path(sys.executable).parent / name
    if shutil.which(name) == str(path) or not path.exists():
        return name
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


@functools.cache
def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


@functools.cache
def commit() -> str:
    """The git commit of this code, marked if the tree differs from it; empty outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
