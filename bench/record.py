"""What a run emits, in plain values: one record an epoch, one outcome at the end, and who receives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

from pydantic import AliasChoices, ConfigDict, Field, model_validator

from kdbench.bench.schema import Frozen

STATUSES = ("done", "diverged", "unsupported", "failed")
"""How a run can end. The first three are results; a failed run is not kept as one."""


class Stopped(Exception):
    """Raised by a recorder to end a run early, as a pruner does; the run may go on later from its checkpoint."""


class Metric(Frozen):
    """What a score is called, in what unit it is printed, and which direction is better."""

    name: str
    unit: Literal["%", ""] = "%"
    """Of what is printed: a metric in % is kept as a share."""
    higher_is_better: bool = True

    @property
    def factor(self) -> float:
        """From a kept value to a printed one."""
        return 100.0 if self.unit == "%" else 1.0

    @property
    def sign(self) -> int:
        """1 if higher is better, else -1: what a value is multiplied by to be maximised."""
        return 1 if self.higher_is_better else -1

    @property
    def worst(self) -> float:
        """Below, or above, every value that was measured."""
        return -self.sign * float("inf")

    @property
    def phrase(self) -> str:
        """As "accuracy in %"."""
        return f"{self.name} in {self.unit}" if self.unit else self.name


ACCURACY = Metric(name="accuracy")

Metrics = dict[str, float]
"""Values by metric's name, as shares where the metric is printed in %."""
Scores = dict[str, dict[str, Metrics]]
"""By student, then by prediction; the first of each is the headline."""


class EpochScores(Frozen):
    """What students are worth after one epoch, on the parts that were scored."""

    epoch: int
    validation: Scores
    test: Scores | None = None
    """None in a tuning run."""

    def part(self, name: str) -> Scores:
        """Scores of a part, "validation" or "test"; empty if it was not scored."""
        return {"validation": self.validation, "test": self.test}.get(name) or {}

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that were scored; the last is the one that counts."""
        return ("validation",) if self.test is None else ("validation", "test")


class Environment(Frozen):
    """Where a run ran; it does not enter the key."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    device: str = ""
    hardware: str = ""
    threads: int = 0
    cores: int = 0
    python: str = ""
    torch: str = ""
    timm: str = ""
    commit: str = ""


class Provenance(Frozen):
    """What a run was made from."""

    weights: dict[str, str] = {}
    """SHA-256 of each stored file of weights, by its reference."""
    data: str = ""
    """The data's fingerprint."""


class Epoch(Frozen):
    """One epoch of one stage."""

    number: int
    """Counts through the whole run, from 1."""
    of: int
    stage: str
    losses: dict[str, float]
    """Mean over the epoch, by "student/loss"."""
    train: float = Field(validation_alias=AliasChoices("train", "train_accuracy"))
    """The primary metric of the first student on its augmented batches; soft labels count by their largest class."""
    validation: float = Field(validation_alias=AliasChoices("validation", "validation_accuracy"))
    """The primary metric of the first student's headline prediction."""
    learning_rate: float
    samples: int = Field(validation_alias=AliasChoices("samples", "images"))
    """That students were trained on; a sample counts once for each student."""
    teacher_forwards: int
    """Samples that frozen teachers were asked about for training."""
    seconds: float
    """Of this run alone, where others are trained side by side."""
    teacher_cached: int = 0
    """Those of `teacher_forwards` whose answers were at hand."""


class Outcome(Frozen):
    """The end of a run."""

    status: str
    reason: str = ""
    metric: Metric = ACCURACY
    """The primary one, by which runs are selected and compared."""
    scores: dict[str, EpochScores] = {}
    """"last", and "best": the epoch of the best validation score."""
    cost: dict[str, int | float] = {}
    environment: Environment = Environment()
    provenance: Provenance = Provenance()
    teacher: dict[str, Metrics] = {}
    """The pair's teacher's metrics by part."""
    confusion: list[list[int]] = []
    """Counts of the headline's decisions of the last epoch on the last part: rows are classes."""
    combined: tuple[str, ...] = ()
    """Predictions that are of several exits together."""
    notes: tuple[str, ...] = Field(default=(), exclude_if=lambda notes: not notes)
    """What was done otherwise than the method asked for, as noise that a network does not take."""

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        """Costs were once counted in images."""
        if isinstance(values, dict) and "images" in (cost := values.get("cost") or {}):
            cost = {("samples" if name == "images" else name): value for name, value in cost.items()}
            values = {**values, "cost": cost}
        return values

    def headline(self, epoch: str, part: str, metric: str = "") -> float | None:
        """A metric of the headline prediction, by default the primary one; None if it was not measured."""
        scores = self.scores.get(epoch)
        for predictions in (scores.part(part) if scores else {}).values():
            for metrics in predictions.values():
                return metrics.get(metric or self.metric.name)
        return None


class Recorder(Protocol):
    """Receives what a run emits and keeps what an interrupted one needs to go on."""

    def checkpoint(self) -> bytes | None:
        """The last whole checkpoint of this run, if it was interrupted."""

    def epoch(self, record: Epoch, state: Callable[[], bytes]) -> None:
        """Takes an epoch; calls `state` if it keeps a checkpoint now.

        Raises:
            Stopped: if the run should end here.
        """

    def weights(self, reference: str) -> bytes:
        """The verified safetensors file of a stored network."""


def plain(record: Epoch | Outcome) -> dict[str, Any]:
    """A record as plain dicts, for JSON."""
    return record.model_dump(mode="json", exclude_none=True)
