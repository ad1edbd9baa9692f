"""What one epoch adds up to: mean losses, and the primary metric on its augmented batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from kdbench.methods.rows import Rows


class EpochAverages:
    """Sums over the batches of an epoch, kept on the device until they are read."""

    def __init__(self, metric: Metric, device: torch.device) -> None:
        """Has counted nothing yet.

        Args:
            metric: the task's primary one, updated batch by batch.
            device: where batches are.
        """
        self.metric = metric.to(device)
        self.sums: dict[str, Tensor] = {}
        self.samples = 0

    def add(self, losses: dict[str, Tensor], logits: Tensor, targets: Rows, samples: int) -> None:
        """Takes a batch of so many samples: its losses by name, and the headline's logits (M, K) with the targets."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach() * samples
        self.metric.update(logits, targets)
        self.samples += samples

    def losses(self) -> dict[str, float]:
        """Each loss by name, its mean over the samples of the epoch."""
        return {name: float(value) / self.samples for name, value in self.sums.items()}

    def infinite(self) -> list[str]:
        """The losses that are no finite number, as text."""
        return [f"{name} is {value}" for name, value in self.losses().items() if not math.isfinite(value)]

    def value(self) -> float:
        """The primary metric over the epoch."""
        return float(self.metric.compute())
