"""Semantic segmentation: a class for each pixel, judged by the mean intersection over union.

The networks are a timm model's stages and a small decoder: each stage's map through a 1x1 convolution, all brought to
the first one's size and added up, then a 3x3 and a 1x1 convolution (a semantic branch of a feature pyramid, after
Kirillov, Girshick, He and Dollar 2019, "Panoptic Feature Pyramid Networks", with one convolution a stage).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric as RunningMetric
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.functional.classification import multiclass_jaccard_index

from kdbench.bench.data.augment import Augment, check_augment
from kdbench.bench.data.batches import Batches
from kdbench.bench.data.image_batches import ImageBatches, unit_range
from kdbench.bench.data.images import ImageSplits
from kdbench.bench.data.splits import Part, Source, Splits, fingerprint
from kdbench.bench.errors import InputError, unknown
from kdbench.bench.evaluation.decisions import decision_metrics
from kdbench.bench.networks.build import backbone
from kdbench.bench.networks.network import Network
from kdbench.bench.record import Metric
from kdbench.bench.seeds import generator
from kdbench.bench.spec import DataSpec, ModelSpec
from kdbench.bench.tasks.base import Task
from kdbench.methods.base import Data, Losses, Signals
from kdbench.methods.rows import Rows, whole

WIDTH = 16
"""Channels of the decoder."""
MOVING = frozenset({"none", "crop", "flip"})
"""Augmentations that move an image and its classes alike; outside a crop is background."""


class Segmentation(Task):
    """A timm encoder and a decoder decide on one of K classes for each pixel."""

    name = "segmentation"
    primary = Metric(name="mIoU")
    offers = frozenset({"features", "pixels"})

    def read(self, spec: DataSpec, data_dir: Path) -> Source:
        """Images (N, C, H, W) uint8 and the classes of their pixels (N, H, W) int64; `composed-digits` is bundled."""
        if spec.name != "composed-digits":
            raise unknown("data set of the task segmentation", spec.name, ["composed-digits"])
        classes = ("background", *map(str, range(10)))
        train, test = composed_digits("train", 1000, slice(0, 1200)), composed_digits("test", 400, slice(1200, None))
        return Source(train, test, classes, fingerprint(classes, (train, test)))

    def load(self, spec: DataSpec, data_dir: Path) -> ImageSplits:
        """See `Task`."""
        return ImageSplits.of(super().load(spec, data_dir))

    def batches(self, data: Data, batch_size: int, steps: int, device: torch.device) -> Batches:
        """Images whose classes move with them."""
        return SegmentationBatches(data, batch_size, steps, device)

    def prepared(self, inputs: Rows, device: torch.device) -> Tensor:
        """Images (N, C, H, W) uint8 as float32 in [0, 1]."""
        return unit_range(whole(inputs).to(device))

    def build(self, spec: ModelSpec, data: Splits, model_args: dict[str, Any] | None = None) -> Network:
        """A timm model without its classifier, and a decoder."""
        assert isinstance(data, ImageSplits)
        encoder = backbone(spec, data, 0, model_args)
        model = EncoderDecoder(encoder.model, data.train.classes)
        mean, std = (tuple(values.flatten().tolist()) for values in (encoder.mean, encoder.std))
        return SegmentationNetwork(model, mean, std, encoder.input_size, spec.compute)

    def observe(
        self, network: Network, inputs: Rows, targets: Rows | None, needs: frozenset[str], training: bool = False
    ) -> Signals:
        """Decisions (B * H * W, K), image by image and row by row, and the encoder's feature maps."""
        assert isinstance(network.model, EncoderDecoder)
        images = whole(inputs)
        with torch.set_grad_enabled(training), network.precision():
            logits, features = network.model(network.normalised(images), images.shape[-2:])
        maps = tuple(feature.float() for feature in features) if "features" in needs else None
        signals = Signals(decisions(logits).float(), maps)
        return signals if training else signals.detached()

    def loss(self, signals: Signals, targets: Rows) -> Losses:
        """Cross-entropy, the mean over pixels."""
        return {"ce": F.cross_entropy(signals.logits, self.decided(targets))}

    def decided(self, targets: Rows) -> Tensor:
        """The classes of all pixels (N * H * W,)."""
        return whole(targets).flatten()

    def running(self, classes: int) -> RunningMetric:
        """The mean intersection over union of an epoch."""
        return FlattenedJaccardIndex(classes)

    def primary_value(self, logits: Tensor, targets: Rows) -> float:
        """The mean intersection over union, over classes that occur, as a share."""
        return float(multiclass_jaccard_index(logits, self.decided(targets), logits.shape[1]))

    def evaluate(
        self,
        logits: Tensor,
        targets: Rows,
        teacher_logits: Tensor | None = None,
        groups: Mapping[str, tuple[int, ...]] | None = None,
    ) -> dict[str, float]:
        """The mean intersection over union, then metrics of pixels."""
        pixels = decision_metrics(logits, self.decided(targets), teacher_logits, groups)
        return {"mIoU": self.primary_value(logits, targets), **pixels}


class EncoderDecoder(nn.Module):
    """A timm model's stages, and a decoder on the maps of all of them."""

    def __init__(self, encoder: nn.Module, classes: int, width: int = WIDTH) -> None:
        """Starts the decoder from random weights.

        Args:
            encoder: with timm's `forward_intermediates` and `feature_info`.
            classes: K.
            width: channels of the decoder.

        Raises:
            InputError: if the encoder has no stages.
        """
        super().__init__()
        if not hasattr(encoder, "forward_intermediates") or not hasattr(encoder, "feature_info"):
            raise InputError(
                f"{type(encoder).__name__} has no stages that a decoder could stand on: take another model."
            )
        self.encoder = encoder
        stages: Any = encoder.feature_info
        channels = [info["num_chs"] for info in stages]
        self.lateral = nn.ModuleList(nn.Conv2d(each, width, kernel_size=1) for each in channels)
        self.smooth = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.classifier = nn.Conv2d(width, classes, kernel_size=1)

    def forward(self, images: Tensor, size: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, K, *size) of images (B, C, H, W), and each stage's map."""
        stages = list(range(len(self.lateral)))
        encoder: Any = self.encoder
        _, features = encoder.forward_intermediates(images, indices=stages)
        largest = features[0].shape[-2:]
        maps = [_resized(lateral(each), largest) for lateral, each in zip(self.lateral, features, strict=True)]
        logits = self.classifier(self.smooth(torch.stack(maps).sum(dim=0)))
        return _resized(logits, size), features


def _resized(feature: Tensor, size: Sequence[int]) -> Tensor:
    same = tuple(feature.shape[-2:]) == tuple(size)
    return feature if same else F.interpolate(feature, tuple(size), mode="bilinear", align_corners=False)


class SegmentationNetwork(Network):
    """An `EncoderDecoder` that takes images in [0, 1] of any size."""

    def forward(self, images: Tensor) -> Tensor:
        """Decisions (B * H * W, K) on the pixels of images (B, C, H, W) in [0, 1]."""
        return decisions(self.answer(images))

    def answer(self, images: Tensor) -> Tensor:
        """Logits (B, K, H, W) of the pixels of images (B, C, H, W) in [0, 1]."""
        logits: Tensor = self.model(self.normalised(images), images.shape[-2:])[0]
        return logits


def decisions(logits: Tensor) -> Tensor:
    """Logits (B, K, H, W) as a row for each pixel: (B * H * W, K)."""
    return logits.movedim(1, -1).flatten(0, 2)


class FlattenedJaccardIndex(MulticlassJaccardIndex):
    """The mean intersection over union of decisions (M, K) on targets of any shape with M classes."""

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Takes a batch."""
        super().update(logits, targets.flatten())


class SegmentationBatches(ImageBatches):
    """Images (B, C, H, W) and the classes of their pixels (B, H, W), moved alike."""

    def __init__(self, data: Data, batch_size: int, steps: int, device: torch.device) -> None:
        """See `ImageBatches`.

        Raises:
            InputError: if an augmentation does not keep pixels and their classes together.
        """
        super().__init__(data, batch_size, steps, device)
        kinds = {name.partition(":")[0] for name in check_augment(data.augment)}
        if other := sorted(kinds - MOVING):
            raise InputError(
                f"augmentation {', '.join(other)} would part pixels from their classes: the task segmentation takes "
                f"{', '.join(sorted(MOVING))}."
            )

    def augmented(self, augment: Augment, images: Tensor, targets: Rows) -> tuple[Rows, Rows]:
        """The next images in [0, 1], with their classes."""
        classes = whole(targets)
        both = augment(torch.cat([images, classes.unsqueeze(1).to(images.dtype)], dim=1))
        return unit_range(both[:, :-1]), both[:, -1].to(classes.dtype)


def composed_digits(name: str, count: int, chosen: slice, size: int = 32) -> Part:
    """Images (N, 1, 32, 32) of one to four of scikit-learn's digits, twice as large, at random places.

    A pixel is of a digit's class where its ink is above a quarter of the darkest, else background (class 0); where
    digits overlap, the later one lies above. Pixels are of integers alone, so that every machine makes the same.

    Args:
        name: of the draws.
        count: N.
        chosen: which of the 1,797 digits may appear.
        size: height and width in pixels.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    ink = torch.from_numpy(digits.images[chosen]).to(torch.int64).repeat_interleave(2, 1).repeat_interleave(2, 2)
    labels, draws = torch.from_numpy(digits.target[chosen]), generator("composed-digits", name)
    images = torch.zeros(count, 1, size, size, dtype=torch.uint8)
    classes = torch.zeros(count, size, size, dtype=torch.int64)
    side = ink.shape[-1]
    for place in range(count):
        for _ in range(int(torch.randint(1, 5, (), generator=draws))):
            digit = int(torch.randint(len(ink), (), generator=draws))
            top, left = torch.randint(size - side + 1, (2,), generator=draws).tolist()
            window = (slice(top, top + side), slice(left, left + side))
            drawn = ink[digit] > 4
            images[place, 0][window][drawn] = (ink[digit] * 255 // 16).to(torch.uint8)[drawn]
            classes[place][window][drawn] = labels[digit] + 1
    return Part(images, classes)


TASK = Segmentation()
