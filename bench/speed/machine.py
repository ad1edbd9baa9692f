"""The machine under a benchmark: whether others used it, what it can do at best, and how much memory was taken."""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.bench.training.precision import timed

FOREIGN = 0.1
"""Largest share of one core that other processes may have used while a measurement counts."""
WIDTHS = (32, 64, 128, 256)
"""Channels of the convolutions that are tried for the peak."""


class Watcher:
    """Tells how much of the processors other processes used since it was last asked."""

    def __init__(self) -> None:
        """Starts to watch now."""
        self.busy, self.own, self.time = _busy(), _own(), time.perf_counter()

    def foreign(self) -> float:
        """Cores that others kept busy, on average."""
        busy, own, now = _busy(), _own(), time.perf_counter()
        used = (busy - self.busy - (own - self.own)) / max(1e-9, now - self.time)
        self.busy, self.own, self.time = busy, own, now
        return max(0.0, used)


def _busy() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def _own() -> float:
    """Seconds of this process and of its children, living and gone."""
    process, total = psutil.Process(), 0.0
    for each in (process, *process.children(recursive=True)):
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + (times.children_user + times.children_system if each == process else 0)
    return total


class Peaks(dict[str, float]):
    """The best rate of a convolution by the name of the precision in torch, measured when it is first asked for."""

    def __init__(self, device: torch.device) -> None:
        """Measures on this device; a precision that its cores lack takes minutes there."""
        self.device = device

    def __missing__(self, precision: str) -> float:
        """Operations a second."""
        self[precision] = convolution_peak(self.device, getattr(torch, precision))
        return self[precision]


def convolution_peak(device: torch.device, precision: torch.dtype) -> float:
    """The best rate of a 3x3 convolution and its gradients that was seen, in operations a second."""
    return max(_rate(width, device, precision) for width in WIDTHS)


def _rate(width: int, device: torch.device, precision: torch.dtype) -> float:
    batch = 64 if device.type == "cpu" else 1024
    shape = (batch, width, 16, 16)
    images = torch.randn(shape, device=device, dtype=precision).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(width, width, 3, 3, device=device, dtype=precision)
    weight = weight.contiguous(memory_format=torch.channels_last).requires_grad_()
    images.requires_grad_()
    grad = torch.randn_like(images.detach())

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(F.conv2d(images, weight, padding=1), (images, weight), grad)

    for _ in range(3):
        step()
    seconds = statistics.median(timed(step, device) for _ in range(15))
    return 3 * 2 * batch * 16 * 16 * width * width * 9 / seconds


def peak_memory(step: Callable[[], object], device: torch.device, steps: int = 4) -> int:
    """Bytes of the device that this process took at most, after some steps."""
    for _ in range(steps):
        step()
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:  # getrusage tells the peak of the parent, from which a process is forked
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
