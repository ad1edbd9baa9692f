"""Task: all that the engine does not know of what is learned.

Two rules let one engine, and every method's loss, serve all tasks:

1. A row is a sample. Inputs and targets are one tensor, or several by name, with one row for each sample, padded to a
   fixed size. So splits, orders, subsets and the cache of teachers' answers need not know what a sample is.
2. A row of logits is a decision. `Signals.logits` is (M, K), a row for each decision that counts: one an image, one a
   pixel, one a token. So losses on predictions need not know what is decided.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric as RunningMetric

from kdbench.bench.data.batches import Batches
from kdbench.bench.data.splits import Source, Splits, check_fingerprint, divided
from kdbench.bench.networks.network import Network
from kdbench.bench.record import Metric
from kdbench.bench.spec import DataSpec, ModelSpec
from kdbench.methods.base import Data, Losses, Signals, Unsupported
from kdbench.methods.rows import Rows


class Task(ABC):
    """What is learned: its data, batches, networks, losses on hard targets, and metrics."""

    name: ClassVar[str]
    primary: ClassVar[Metric]
    """The metric by which epochs, trials and methods are compared."""
    offers: ClassVar[frozenset[str]]
    """What methods may need: names of `kdbench.methods.base.SIGNALS` that its networks can emit, and of `SAMPLES`."""

    def check(self, method: str, needs: frozenset[str]) -> None:
        """Checks that this task has what a method reads.

        Raises:
            Unsupported: naming what it has not.
        """
        if lacking := sorted(needs - self.offers):
            raise Unsupported(
                f"{method} reads {' and '.join(lacking)}, which the task {self.name} does not have; it has "
                f"{', '.join(sorted(self.offers))}."
            )

    @abstractmethod
    def read(self, spec: DataSpec, data_dir: Path) -> Source:
        """A data set as it comes, from a folder or a download into it.

        Raises:
            InputError: if the name is unknown or the files cannot be had.
        """

    def load(self, spec: DataSpec, data_dir: Path) -> Splits:
        """A data set read and split in three, the same for every run.

        Raises:
            InputError: if the data are unknown, missing, changed since the spec was made, or too few to split.
        """
        source = self.read(spec, data_dir)
        check_fingerprint(spec, source.fingerprint, data_dir)
        return divided(source, spec, self.strata(source.train.targets))

    def strata(self, targets: Rows) -> Tensor | None:
        """What every part of a split keeps in proportion, (N,) int64; None, the default, for nothing."""
        return None

    @abstractmethod
    def batches(self, data: Data, batch_size: int, steps: int, device: torch.device) -> Batches:
        """Augmented batches of a stage's data; see `Batches`."""

    @abstractmethod
    def prepared(self, inputs: Rows, device: torch.device) -> Rows:
        """Inputs of a part as networks take them, on a device, without augmentation."""

    @abstractmethod
    def build(self, spec: ModelSpec, data: Splits, model_args: dict[str, Any] | None = None) -> Network:
        """A network for these data, with published weights if the spec asks for them, else random ones.

        Args:
            spec: name, weights and constructor arguments.
            data: what it is for.
            model_args: more constructor arguments, as dropout for a noised student.

        Raises:
            InputError: if it cannot be built.
            Refused: if the model does not take one of `model_args`.
        """

    @abstractmethod
    def observe(
        self, network: Network, inputs: Rows, targets: Rows | None, needs: frozenset[str], training: bool = False
    ) -> Signals:
        """Runs a network on a batch and returns what was asked for, in float32.

        Args:
            network: in the mode (train or eval) that the caller chose.
            inputs: as networks take them.
            targets: of the batch, for signals that depend on them; None where there are none.
            needs: names of `Signals` fields beyond the logits.
            training: whether the result is differentiated, as a student's is.

        Raises:
            Unsupported: if the network does not offer what is asked for.
        """

    @abstractmethod
    def loss(self, signals: Signals, targets: Rows) -> Losses:
        """The task's own losses on hard targets, by name."""

    @abstractmethod
    def decided(self, targets: Rows) -> Tensor:
        """The right decisions (M,) int64 for targets, in the order of the rows of logits; -1 where none counts."""

    @abstractmethod
    def running(self, classes: int) -> RunningMetric:
        """The primary metric over augmented batches, to be updated by logits (M, K) and the batch's targets."""

    @abstractmethod
    def primary_value(self, logits: Tensor, targets: Rows) -> float:
        """The primary metric of logits (M, K) of a part."""

    @abstractmethod
    def evaluate(
        self,
        logits: Tensor,
        targets: Rows,
        teacher_logits: Tensor | None = None,
        groups: Mapping[str, tuple[int, ...]] | None = None,
    ) -> dict[str, float]:
        """All metrics of one prediction for a part.

        Args:
            logits: (M, K)
            targets: of the part.
            teacher_logits: (M, K) of the pair's teacher, if there is one.
            groups: classes by name of a group, which are scored apart too.
        """
