"""Image classification: one class an image, judged by accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric as RunningMetric

from kdbench.bench.data.batches import Batches
from kdbench.bench.data.image_batches import ImageBatches, unit_range
from kdbench.bench.data.images import ImageSplits, read
from kdbench.bench.data.splits import Source, Splits
from kdbench.bench.evaluation.decisions import LabelledAccuracy, decision_metrics
from kdbench.bench.networks.build import build
from kdbench.bench.networks.network import Network
from kdbench.bench.networks.signals import observe
from kdbench.bench.record import ACCURACY
from kdbench.bench.spec import DataSpec, ModelSpec
from kdbench.bench.tasks.base import Task
from kdbench.methods.base import SAMPLES, SIGNALS, Data, Losses, Signals
from kdbench.methods.functional import labelled_cross_entropy
from kdbench.methods.rows import Rows, whole


class ImageClassification(Task):
    """A timm network decides on one of K classes for each image."""

    name = "image"
    primary = ACCURACY
    offers = SIGNALS | SAMPLES

    def read(self, spec: DataSpec, data_dir: Path) -> Source:
        """An image data set by name, or a folder of images; see `Task.read`."""
        return read(spec.name, spec.image_size, data_dir)

    def load(self, spec: DataSpec, data_dir: Path) -> ImageSplits:
        """A data set split in three, with the mean and deviation by which networks normalise; see `Task.load`."""
        return ImageSplits.of(super().load(spec, data_dir))

    def strata(self, targets: Rows) -> Tensor | None:
        """Every part keeps the classes in proportion."""
        return whole(targets)

    def batches(self, data: Data, batch_size: int, steps: int, device: torch.device) -> Batches:
        """Augmented images; see `Task.batches`."""
        return ImageBatches(data, batch_size, steps, device)

    def prepared(self, inputs: Rows, device: torch.device) -> Tensor:
        """Images (N, C, H, W) uint8 as float32 in [0, 1]."""
        return unit_range(whole(inputs).to(device))

    def build(self, spec: ModelSpec, data: Splits, model_args: dict[str, Any] | None = None) -> Network:
        """A timm model that classifies images of these channels and this size."""
        assert isinstance(data, ImageSplits)
        return build(spec, data, model_args)

    def observe(
        self, network: Network, inputs: Rows, targets: Rows | None, needs: frozenset[str], training: bool = False
    ) -> Signals:
        """Signals by timm's own interface; see `Task.observe`."""
        return observe(network, whole(inputs), None if targets is None else whole(targets), needs, training)

    def loss(self, signals: Signals, targets: Rows) -> Losses:
        """Cross-entropy, the mean over images that have a label."""
        return {"ce": labelled_cross_entropy(signals.logits, whole(targets))}

    def decided(self, targets: Rows) -> Tensor:
        """The classes (N,)."""
        return whole(targets)

    def running(self, classes: int) -> RunningMetric:
        """Accuracy on the labelled images of an epoch."""
        return LabelledAccuracy()

    def primary_value(self, logits: Tensor, targets: Rows) -> float:
        """Accuracy, as a share."""
        return float((logits.argmax(dim=1) == whole(targets)).float().mean())

    def evaluate(
        self,
        logits: Tensor,
        targets: Rows,
        teacher_logits: Tensor | None = None,
        groups: Mapping[str, tuple[int, ...]] | None = None,
    ) -> dict[str, float]:
        """Accuracy, calibration, agreement with the teacher; see `Task.evaluate`."""
        return decision_metrics(logits, whole(targets), teacher_logits, groups)


TASK = ImageClassification()
