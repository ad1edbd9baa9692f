"""Batches of a stage's data, in an order drawn from named seeds."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kdbench.bench.data.splits import content
from kdbench.bench.seeds import generator
from kdbench.methods.base import Data
from kdbench.methods.rows import Rows, count, take


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Batches of an epoch; a last batch of one sample, which batch norm cannot take, is left out."""
    return max(1, samples // batch_size + (samples % batch_size > 1))


class Batch(NamedTuple):
    """What one update sees."""

    inputs: Rows
    """As networks take them, augmented: images (B, C, H, W) in [0, 1]."""
    targets: Rows
    """As `kdbench.methods.base.Step` has them."""
    indices: Tensor
    """(B,) int64 on the CPU: which samples of the stage's data these are; of two views of each once."""


class Batches:
    """Batches of a stage's data; what is drawn depends on the seed and the epoch alone. A task says how they look."""

    inputs: Rows
    """As they are in the data, on the device where they fit."""

    def __init__(self, data: Data, batch_size: int, steps: int, device: torch.device) -> None:
        """Moves targets to the device once; those of a task that keeps inputs there do so with them.

        Args:
            data: what to draw from.
            batch_size: samples of a batch, to which a fixed share of `data.additional` ones are added.
            steps: batches of an epoch; with fewer samples the last is short, with more a part is drawn each epoch.
            device: where batches are made.
        """
        self.data, self.steps, self.device = data, steps, device
        self.samples = count(data.inputs)
        own = self.samples - data.additional
        self.drawn = min(own, batch_size * steps)
        """Samples of an epoch that are not additional."""
        if self.drawn > batch_size and self.drawn % batch_size == 1:
            self.drawn -= 1
        self.added = round(data.additional_ratio * batch_size) if data.additional else 0
        """Additional samples of a batch."""
        self.batch_size = batch_size + self.added
        """Samples of a batch with the additional ones; the last of an epoch may have fewer."""
        self.sizes = [min(batch_size, self.drawn - start) for start in range(0, self.drawn, batch_size)]
        """Of each batch of an epoch: the samples that are not additional."""
        self.used = self.drawn + self.added * len(self.sizes)
        """Samples of an epoch."""
        self.views = 2 if data.second else 1
        """Inputs of a batch for each sample."""
        self.inputs, self.targets = data.inputs, on(device, data.targets)

    @property
    def fixed(self) -> bool:
        """Whether a sample looks the same in every epoch."""
        return True

    @property
    def decisive(self) -> tuple[object, ...]:
        """What decides how samples look but their values, the seed and the epoch."""
        return (self.batch_size, self.added, self.steps, *([self.data.second] if self.data.second else []))

    @functools.cached_property
    def stream(self) -> str:
        """16 hexadecimal digits for all that decides what batches show but the seed and the epoch; not for targets."""
        return hashlib.sha256(repr((content(self.data.inputs), *self.decisive)).encode()).hexdigest()[:16]

    def order(self, seed: int, number: int) -> Tensor:
        """Which samples (used,) an epoch shows, int64 on the CPU, batch after batch."""
        own = self.samples - self.data.additional
        order = torch.randperm(own, generator=generator(seed, "order", number))[: self.drawn]
        if not self.added:
            return order
        draws, wanted = generator(seed, "additional", number), self.added * len(self.sizes)
        times = math.ceil(wanted / self.data.additional)
        more = own + torch.cat([torch.randperm(self.data.additional, generator=draws) for _ in range(times)])[:wanted]
        parts = zip(order.split(self.sizes), more.split(self.added), strict=True)
        return torch.cat([part for pair in parts for part in pair])

    def epoch(self, seed: int, number: int) -> Iterator[Batch]:
        """Batches of one epoch, as they are."""
        for chosen in self.order(seed, number).split(self.batch_size):
            there = chosen.to(self.device)
            yield Batch(on(self.device, take(self.inputs, there)), take(self.targets, there), chosen)


def on(device: torch.device, rows: Rows) -> Rows:
    """Samples on a device; those in files stay there."""
    if isinstance(rows, dict):
        return {name: tensor.to(device) for name, tensor in rows.items()}
    return rows.to(device) if isinstance(rows, Tensor) else rows
