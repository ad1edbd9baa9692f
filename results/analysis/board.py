"""A suite's leaderboard as plain values: its rows, and what a reader must know to judge them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdbench.bench.record import Metric
from kdbench.results.analysis.statistics import Interval


@dataclass(frozen=True)
class Row:
    """A method on a pair; a field that cannot be known yet is None."""

    pair: str
    given: str
    """What it learns from: rows are compared with those that are given the same. Empty if the plan does not say."""
    method: str
    status: str
    """done; partial (fewer seeds than the suite asks); pending; unsupported, diverged, failed."""
    reason: str
    seeds: int
    score: Interval | None
    """The suite's metric on the test part, as a share if it is printed in %."""
    gain_control: Interval | None
    """By how much it is better than the suite's control, paired by seed."""
    gain_baseline: Interval | None
    """By how much it is better than the suite's baseline, paired by seed."""
    p_control: float | None
    """P value of `gain_control`, corrected for all rows of the pair, as `kdbench compare` has it."""
    p_baseline: float | None
    """That of `gain_baseline`."""
    tied: bool
    """Whether it may be the best of the pair as well as the one that leads, by comparisons with the best."""
    agreement: float | None
    """Share of the test decisions that student and teacher make alike."""
    parameters: int | None
    compression: float | None
    """How many times more parameters the teacher has than the student."""
    latency_ms: float | None
    """Of one sample, the median over seeds that had a quiet core."""
    latency_spread_ms: float | None
    """Half the distance of the quartiles of a seed's repeats, the median over seeds; None of records without it."""
    trials: int
    """The number of tuning trials that ended, pruned ones among them."""
    samples: int | None
    """The number of samples that a run trains on, unlabelled and synthetic ones among them."""
    epochs: int
    """The number of epochs of one run."""
    updates: int | None
    """The number of updates of all networks that one run takes, those of its teachers and peers among them."""
    teacher_forwards: int
    """The number of samples that teachers were run on, over trials and seeds."""
    seconds: float
    """Training time of all trials and seeds; that of teachers is not counted."""
    setting: dict[str, Any]
    """The best setting that tuning found."""


@dataclass(frozen=True)
class Budget:
    """What every method of a suite is given."""

    trials: int
    epochs: int
    seeds: int
    warm_from: str = ""
    """The suite whose longer tuning gave one of the trials."""
    warm_trials: int = 0
    """The number of that tuning's trials."""


@dataclass(frozen=True)
class LabelShares:
    """Labelled shares of the training part."""

    student: float
    teacher: float


@dataclass(frozen=True)
class Board:
    """The leaderboard of a suite."""

    suite: str
    about: str
    metric: Metric
    """The primary one, which decides the order of the rows."""
    control: str
    """The method without distillation, tuned under the same budget."""
    baseline: str
    """The distillation that a new method must beat, tuned under the same budget."""
    shows: str
    """last or best: the epoch whose test score is shown."""
    budget: Budget
    labels: LabelShares
    teachers: dict[str, Interval]
    """Test score of each teacher over the seeds that it was trained with, by the name of its model."""
    unlabelled_ratio: float | None
    """Unlabelled samples of a batch for each labelled one, in methods that are given them; None if none is."""
    batch_size: int
    reasons: dict[str, str]
    """Why a method does worse than the control, where that is known, by method."""
    hardware: str
    damaged: list[str]
    """What is left out, as its files are not what was written."""
    done: int
    expected: int
    rows: list[Row]
