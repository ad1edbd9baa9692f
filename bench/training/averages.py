"""What one epoch adds up to: mean losses, and accuracy on the labelled images."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class EpochAverages:
    """Sums over the batches of an epoch, kept on the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        """Starts at nothing."""
        self.sums: dict[str, Tensor] = {}
        self.counts = torch.zeros(2, device=device)
        self.images = 0

    def add(self, losses: dict[str, Tensor], logits: Tensor, labels: Tensor) -> None:
        """Takes a batch: its losses by name, and the headline's logits (B, K) with the labels (B,) or (B, K)."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach() * len(logits)
        self.counts += correct(logits, labels)
        self.images += len(logits)

    def means(self) -> dict[str, float]:
        """Mean losses over images."""
        return {name: float(value) / self.images for name, value in self.sums.items()}

    def infinite(self) -> list[str]:
        """The losses that are no finite number, as text."""
        return [f"{name} is {value}" for name, value in self.means().items() if not math.isfinite(value)]

    def accuracy(self) -> float:
        """Share of the labelled images that were classified as their label; 0 if none was labelled."""
        return float(self.counts[0] / self.counts[1].clamp_min(1))


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many labelled images of a batch are classified as their (largest) label, and how many are labelled.

    Args:
        logits: (B, K)
        labels: (B,) classes, or (B, K), where a row of zeros is an image without a label.
    """
    labelled = torch.ones_like(labels, dtype=torch.bool) if labels.dim() == 1 else labels.ne(0).any(dim=1)
    classes = labels if labels.dim() == 1 else labels.argmax(dim=1)
    return torch.stack([((logits.argmax(dim=1) == classes) & labelled).sum(), labelled.sum()])
