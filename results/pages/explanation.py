"""What `kdbench explain` found, as a table, notes and a plot."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from bench.atomic import write
from bench.errors import InputError

INK = "ink"
BASELINE = "student"
"""The method that learns from labels alone."""


@dataclass(frozen=True)
class Explained:
    """What a run's student knew; means over images, and None where no image had a concept."""

    key: str
    method: str
    model: str
    stage: int
    """Of the network, from 1; its feature is what is explained."""
    stages: int
    mask: str
    """What counts as foreground: "ink" or "central half"."""
    images: int
    epochs: list[int]
    """Of the snapshots."""
    foreground: list[float]
    """N_fg at each snapshot."""
    background: list[float]
    """N_bg at each snapshot."""
    ratio: float | None
    """lambda at the last snapshot."""
    d_mean: float | None
    d_std: float | None
    peaks_first: float | None
    """Share of images with most concepts at the first snapshot already: of them, D is the distance to it."""
    discarded: float | None
    """1 - rho."""
    test_accuracy: float | None
    """Of the stored run's last epoch; None for a tuning run."""
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
        """Names the run to a person."""
        return f"{self.method} {self.key[:8]}"


METRICS = (
    ("N_fg", "n_fg", 1, "hypothesis 1: more concepts"),
    ("lambda", "ratio", 1, "hypothesis 1: a larger share of them on the foreground"),
    ("D_mean", "d_mean", -1, "hypothesis 2: concepts learned sooner"),
    ("D_std", "d_std", -1, "hypothesis 2: concepts of all images learned at once"),
    ("discarded", "discarded", -1, "hypothesis 3: fewer detours"),
)
"""Column, field, the direction that the paper expects of distillation, and why."""


def explain_page(rows: Sequence[Explained]) -> str:
    """The metrics as a table, with what the paper expects of each and whether it was seen."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    columns = ("N_fg", "N_bg", "lambda", "D_mean", "D_std", "discarded", "test accuracy")
    table = Table("run", "method", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        numbers = (row.n_fg, row.n_bg, row.ratio, row.d_mean, row.d_std, row.discarded)
        digits = (1, 1, 3, 3, 3, 3)
        cells = [_number(value, places) for value, places in zip(numbers, digits, strict=True)]
        accuracy = "" if row.test_accuracy is None else f"{100 * row.test_accuracy:.1f} %"
        table.add_row(row.key, row.method, *cells, accuracy)
    with console.capture() as capture:
        console.print(table)
        for line in notes(rows):
            console.print(line, highlight=False, markup=False)
    return capture.get().rstrip()


def notes(rows: Sequence[Explained]) -> list[str]:
    """What a reader must know to judge the numbers."""
    first = rows[0]
    layers = dict.fromkeys(f"{row.model} stage {row.stage} of {row.stages}" for row in rows)
    approximation = ", an approximation of the paper's object boxes" if first.mask != INK else " by Otsu's threshold"
    lines = [
        f"Pixels that are visual concepts (Cheng et al. 2020), mean over {first.images} test images; "
        f"feature: {', '.join(layers)}; foreground: {first.mask}{approximation}."
    ]
    lines += [
        f"{row.label}: snapshots after epochs {', '.join(map(str, row.epochs))}; "
        + (
            "trained again to the same weights."
            if row.same_weights
            else "warning: trained again, it did not end in the stored weights (another machine or version); "
            "the numbers are of the repeated training."
        )
        for row in rows
    ]
    lines += [
        f"{row.label}: {100 * row.peaks_first:.0f} % of the images had most concepts at the first snapshot, so D says "
        "little of this run: give more snapshots."
        for row in rows
        if row.peaks_first is not None and row.peaks_first > 0.5
    ]
    baselines = [row for row in rows if row.method == BASELINE]
    others = [row for row in rows if row.method != BASELINE]
    for column, field, sign, why in METRICS:
        line = f"{column}: {'higher' if sign > 0 else 'lower'} is expected of distillation ({why})"
        verdict = _seen(baselines[0], others, field, sign) if len(baselines) == 1 and others else ""
        lines.append(f"{line}{': ' + verdict if verdict else ''}.")
    return [*lines, "One run of each: a difference here is one between runs, not yet one between methods."]


def _seen(baseline: Explained, others: Sequence[Explained], field: str, sign: int) -> str:
    """For which runs a metric differs from the baseline's as expected."""
    ours, groups = getattr(baseline, field), dict[str, list[str]]()
    for row in others:
        theirs = getattr(row, field)
        known = ours is not None and theirs is not None
        groups.setdefault(("seen" if sign * (theirs - ours) > 0 else "not seen") if known else "unknown", []).append(
            row.label
        )
    return "; ".join(f"{verdict} in {', '.join(groups[verdict])}" for verdict in sorted(groups, reverse=True))


def explain_plot(rows: Sequence[Explained], path: Path) -> None:
    """Draws foreground concepts over training, and the other metrics as bars, into a png file.

    Raises:
        InputError: if the folder of `path` does not exist.
    """
    from matplotlib.figure import Figure

    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} for the plot.")
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplot_mosaic(
        [["curve", "ratio", "d_mean"], ["curve", "d_std", "discarded"]], width_ratios=[2, 1, 1]
    )
    for row in rows:
        axes["curve"].plot(row.epochs, row.foreground, marker="o", label=row.label)
    axes["curve"].set(title="N_fg: concepts on the foreground", xlabel="epoch", ylabel="pixels an image")
    axes["curve"].legend()
    for column, field, sign, _ in METRICS[1:]:
        values = [getattr(row, field) for row in rows]
        heights = [math.nan if value is None else value for value in values]
        axes[field].bar(range(len(rows)), heights, color=[f"C{index}" for index in range(len(rows))])
        axes[field].set_xticks([])
        axes[field].set_title(f"{column} ({'higher' if sign > 0 else 'lower'} is expected)", fontsize="medium")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    write(path, file.getvalue())


def _number(value: float | None, places: int) -> str:
    return "none" if value is None else f"{value:.{places}f}"
