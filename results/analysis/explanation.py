"""What `kdbench explain` finds of a run: the visual concepts that its student learned, as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import AliasChoices, Field

from kdbench.bench.record import ACCURACY, Metric
from kdbench.bench.schema import Frozen

INK = "ink"
"""The foreground mask of images of one channel: what Otsu's threshold separates from the background."""


class Explained(Frozen):
    """What a run's student knew; means over images, and None where no image had a concept."""

    key: str
    method: str
    control: bool
    """Whether the method learns from labels alone, so that the others are compared with it."""
    model: str
    stage: int
    """The stage of the network, counted from 1, whose feature is explained."""
    stages: int
    mask: str
    """What counts as foreground: "ink" or "central half"."""
    images: int
    epochs: list[int]
    """The epochs at whose ends concepts were counted."""
    foreground: list[float]
    """N_fg, the number of concepts on the foreground, after each of these epochs."""
    background: list[float]
    """N_bg, the number of concepts on the background, after each of these epochs."""
    ratio: float | None
    """lambda: the share of concepts that are on the foreground, after the last of these epochs."""
    d_mean: float | None
    """D_mean: the distance that the weights had moved, relative to their norm, when an image had most concepts."""
    d_std: float | None
    """D_std: the standard deviation of that distance over images."""
    peaks_first: float | None
    """Share of images with most concepts at the first snapshot already: for them, D is the distance to it."""
    discarded: float | None
    """1 - rho: the share of the foreground concepts ever learned that the student lacks at the end."""
    metric: Metric = ACCURACY
    score: float | None = Field(validation_alias=AliasChoices("score", "test_accuracy"))
    """The metric of the stored run's last epoch on the test part; None for a tuning run."""
    same_weights: bool
    """Whether the repeated training ended in the stored weights, bit by bit."""

    @property
    def n_fg(self) -> float:
        """Foreground concepts at the end."""
        return self.foreground[-1]

    @property
    def n_bg(self) -> float:
        """Background concepts at the end."""
        return self.background[-1]

    @property
    def label(self) -> str:
        """Names the run to a person, as "kd 3f2a9c41"."""
        return f"{self.method} {self.key[:8]}"


@dataclass(frozen=True)
class Hypothesis:
    """What the paper expects of distillation, as a number of an explanation."""

    name: str
    """The number's name in the paper."""
    field: Literal["n_fg", "ratio", "d_mean", "d_std", "discarded"]
    sign: int
    """1 if distillation is expected to raise the number, -1 if to lower it."""
    why: str

    def of(self, row: Explained) -> float | None:
        """The number of a run."""
        value: float | None = getattr(row, self.field)
        return value

    @property
    def direction(self) -> str:
        """Whether a higher or a lower number is expected, as a word."""
        return "higher" if self.sign > 0 else "lower"


HYPOTHESES = (
    Hypothesis("N_fg", "n_fg", 1, "hypothesis 1: more concepts"),
    Hypothesis("lambda", "ratio", 1, "hypothesis 1: a larger share of them on the foreground"),
    Hypothesis("D_mean", "d_mean", -1, "hypothesis 2: concepts learned sooner"),
    Hypothesis("D_std", "d_std", -1, "hypothesis 2: concepts of all images learned at once"),
    Hypothesis("discarded", "discarded", -1, "hypothesis 3: fewer detours"),
)
