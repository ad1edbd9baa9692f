"""A task that only tests have: a class for each token of a sequence, with inputs and targets that are named tensors.

A sequence is L tokens and a mask, padded at the end. The class of a token is its number modulo four; padding has the
class -1, which counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric as RunningMetric
from torchmetrics.classification import MulticlassAccuracy

from kdbench.bench.data.batches import Batch, Batches, on
from kdbench.bench.data.splits import Part, Source, Splits, fingerprint
from kdbench.bench.networks.network import Network
from kdbench.bench.record import Metric
from kdbench.bench.seeds import generator
from kdbench.bench.spec import DataSpec, ModelSpec
from kdbench.bench.tasks.base import Task
from kdbench.methods.base import Data, Losses, Signals
from kdbench.methods.rows import Rows

WORDS, LENGTH, CLASSES, MASKED = 12, 6, 4, 0
NAMES = tuple(f"class {number}" for number in range(CLASSES))


def sequences(count: int, seed: int = 0) -> Part:
    """{"ids": (N, L), "mask": (N, L)} with {"classes": (N, L)}."""
    draws = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, WORDS, (count, LENGTH), generator=draws)
    mask = torch.arange(LENGTH) < torch.randint(3, LENGTH + 1, (count, 1), generator=draws)
    return Part({"ids": ids * mask, "mask": mask}, {"classes": (ids % CLASSES).masked_fill(~mask, -1)})


class Tagging(Task):
    """A small convolutional network decides on one of four classes for each token."""

    name = "tagging"
    primary = Metric(name="tagged")
    offers = frozenset({"tokens"})

    def read(self, spec: DataSpec, data_dir: Path) -> Source:
        train, test = sequences(90), sequences(30, seed=1)
        return Source(train, test, NAMES, fingerprint(NAMES, (train, test)))

    def batches(self, data: Data, batch_size: int, steps: int, device: torch.device) -> Batches:
        return TokenBatches(data, batch_size, steps, device)

    def prepared(self, inputs: Rows, device: torch.device) -> Rows:
        return on(device, inputs)

    def build(self, spec: ModelSpec, data: Splits, model_args: dict[str, Any] | None = None) -> Network:
        return Tagger(int(spec.args["width"]), data.train.classes)

    def observe(
        self, network: Network, inputs: Rows, targets: Rows | None, needs: frozenset[str], training: bool = False
    ) -> Signals:
        assert isinstance(network, Tagger) and isinstance(inputs, dict)
        with torch.set_grad_enabled(training):
            tokens = network.tokens(inputs)
            logits = network.model["classifier"](tokens[-1]).flatten(0, 1)
        signals = Signals(logits, tokens=tokens if "tokens" in needs else None)
        return signals if training else signals.detached()

    def loss(self, signals: Signals, targets: Rows) -> Losses:
        return {"tags": F.cross_entropy(signals.logits, self.decided(targets), ignore_index=-1)}

    def decided(self, targets: Rows) -> Tensor:
        assert isinstance(targets, dict)
        return targets["classes"].flatten()

    def running(self, classes: int) -> RunningMetric:
        return Tagged(classes, average="micro", ignore_index=-1)

    def primary_value(self, logits: Tensor, targets: Rows) -> float:
        decided = self.decided(targets)
        return float((logits.argmax(dim=1) == decided)[decided >= 0].float().mean())

    def evaluate(
        self,
        logits: Tensor,
        targets: Rows,
        teacher_logits: Tensor | None = None,
        groups: Mapping[str, tuple[int, ...]] | None = None,
    ) -> dict[str, float]:
        agreement = {} if teacher_logits is None else {"agreement": _agreement(logits, teacher_logits)}
        return {"tagged": self.primary_value(logits, targets), **agreement}


def _agreement(first: Tensor, second: Tensor) -> float:
    return float((first.argmax(dim=1) == second.argmax(dim=1)).float().mean())


class TokenBatches(Batches):
    """Sequences of which augmentation "mask" hides a tenth of the tokens, anew each epoch."""

    @property
    def fixed(self) -> bool:
        return self.data.augment == "none"

    @property
    def decisive(self) -> tuple[object, ...]:
        return (self.data.augment, *super().decisive)

    def epoch(self, seed: int, number: int) -> Iterator[Batch]:
        draws = generator(seed, "views", number)
        for batch in super().epoch(seed, number):
            assert isinstance(batch.inputs, dict)
            hidden = torch.rand(batch.inputs["ids"].shape, generator=draws) < (0.1 if not self.fixed else 0.0)
            ids = batch.inputs["ids"].masked_fill(hidden.to(self.device), MASKED)
            yield batch._replace(inputs={**batch.inputs, "ids": ids})


class Tagger(Network):
    """Embeds tokens, mixes each with its neighbours, and classifies it."""

    def __init__(self, width: int, classes: int) -> None:
        embedding, mixer = nn.Embedding(WORDS, width), nn.Conv1d(width, width, 3, padding=1)
        classifier = nn.Linear(width, classes)
        model = nn.ModuleDict({"embedding": embedding, "mixer": mixer, "classifier": classifier})
        super().__init__(model, mean=(0.0,), std=(1.0,), input_size=0)

    def tokens(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(B, L, D), embedded and mixed."""
        embedded = self.model["embedding"](inputs["ids"]) * inputs["mask"].unsqueeze(2)
        return embedded, F.relu(self.model["mixer"](embedded.transpose(1, 2))).transpose(1, 2)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        """(B * L, K)"""
        logits: Tensor = self.model["classifier"](self.tokens(inputs)[-1]).flatten(0, 1)
        return logits


class Tagged(MulticlassAccuracy):
    """The share of real tokens that are classified right."""

    def update(self, logits: Tensor, targets: dict[str, Tensor]) -> None:
        super().update(logits, targets["classes"].flatten())


TASK = Tagging()
