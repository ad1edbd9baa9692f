"""Explanations of runs as a report: a table of visual concepts, what the paper expects of them, and a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from kdbench.results.analysis.explanation import HYPOTHESES, INK, Explained, Hypothesis
from kdbench.results.pages.numbers import printed
from kdbench.results.pages.pictures import figure_file
from kdbench.results.pages.report import Block, Column, Number, Report, Sheet

LISTS = {"metric", "epochs", "foreground", "background"}
"""Fields of an explanation that are no single number."""


def explanation_report(rows: Sequence[Explained]) -> Report:
    """A row for each run, with what the paper expects of each number and whether it was seen."""
    names = ["run", "method", "N_fg", "N_bg", "lambda", "D_mean", "D_std", "discarded", f"test {rows[0].metric.name}"]
    columns = [Column(name, left=index < 2, wraps=True) for index, name in enumerate(names)]
    numbers = [
        row.model_dump(exclude=LISTS | {"score"}) | {"n_fg": row.n_fg, "n_bg": row.n_bg, "score": row.score}
        for row in rows
    ]
    return Report(
        name="concepts",
        title=", ".join(row.label for row in rows),
        blocks=[Block("", columns, [_cells(row) for row in rows])],
        notes=_notes(rows),
        sheet=Sheet(list(numbers[0]), numbers),
        values={"runs": [row.model_dump(mode="json") for row in rows]},
        pictures={"concepts": lambda form: _plot(rows, form)},
        metrics=[replace(each, name=f"{each.name}/{row.label}") for row in rows for each in numbers_of(row)],
    )


def numbers_of(row: Explained) -> list[Number]:
    """The numbers of one run: those at its end, and foreground concepts over its epochs."""
    ends = [(each.name, each.of(row)) for each in HYPOTHESES]
    over = zip(row.epochs, row.foreground, strict=True)
    return [
        *(Number(name, value) for name, value in ends if value is not None),
        *(Number("N_fg over epochs", value, epoch) for epoch, value in over),
    ]


def _cells(row: Explained) -> list[str]:
    numbers = (row.n_fg, row.n_bg, row.ratio, row.d_mean, row.d_std, row.discarded)
    texts = [
        "none" if value is None else f"{value:.{digits}f}"
        for value, digits in zip(numbers, (1, 1, 3, 3, 3, 3), strict=True)
    ]
    return [row.key, row.method, *texts, "" if row.score is None else printed(row.score, row.metric)]


def _notes(rows: Sequence[Explained]) -> list[str]:
    first = rows[0]
    layers = dict.fromkeys(f"{row.model} stage {row.stage} of {row.stages}" for row in rows)
    approximation = ", an approximation of the paper's object boxes" if first.mask != INK else " by Otsu's threshold"
    lines = [
        f"Pixels that are visual concepts (Cheng et al. 2020), mean over {first.images} test images; "
        f"feature: {', '.join(layers)}; foreground: {first.mask}{approximation}."
    ]
    for row in rows:
        ended = "trained again to the same weights."
        if not row.same_weights:
            ended = (
                "warning: trained again, it did not end in the stored weights (another machine or version); "
                "the numbers are of the repeated training."
            )
        lines.append(f"{row.label}: snapshots after epochs {', '.join(map(str, row.epochs))}; {ended}")
    lines += [
        f"{row.label}: {100 * row.peaks_first:.0f} % of the images had most concepts at the first snapshot, so D says "
        "little of this run: give more snapshots."
        for row in rows
        if row.peaks_first is not None and row.peaks_first > 0.5
    ]
    lines += [_expected(each, rows) for each in HYPOTHESES]
    return [*lines, "One run of each: a difference here is one between runs, not yet one between methods."]


def _expected(hypothesis: Hypothesis, rows: Sequence[Explained]) -> str:
    """What the paper expects, and for which runs it is seen, where there is one control to compare with."""
    controls = [row for row in rows if row.control]
    others = [row for row in rows if not row.control]
    line = f"{hypothesis.name}: {hypothesis.direction} is expected of distillation ({hypothesis.why})"
    return f"{line}: {_seen(hypothesis, controls[0], others)}." if len(controls) == 1 and others else f"{line}."


def _seen(hypothesis: Hypothesis, control: Explained, others: Sequence[Explained]) -> str:
    """The runs by whether their number differs from the control's as expected."""
    ours, groups = hypothesis.of(control), dict[str, list[str]]()
    for row in others:
        theirs = hypothesis.of(row)
        verdict = "unknown"
        if ours is not None and theirs is not None:
            verdict = "seen" if hypothesis.sign * (theirs - ours) > 0 else "not seen"
        groups.setdefault(verdict, []).append(row.label)
    return "; ".join(f"{verdict} in {', '.join(groups[verdict])}" for verdict in sorted(groups, reverse=True))


def _plot(rows: Sequence[Explained], form: str) -> bytes:
    """Foreground concepts over training, and the other numbers as bars, as a file.

    Raises:
        InputError: for an unknown form.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplot_mosaic(
        [["curve", "ratio", "d_mean"], ["curve", "d_std", "discarded"]], width_ratios=[2, 1, 1]
    )
    for row in rows:
        axes["curve"].plot(row.epochs, row.foreground, marker="o", label=row.label)
    axes["curve"].set(title="N_fg: concepts on the foreground", xlabel="epoch", ylabel="pixels an image")
    axes["curve"].legend()
    for each in HYPOTHESES[1:]:
        values = [each.of(row) for row in rows]
        heights = [math.nan if value is None else value for value in values]
        axes[each.field].bar(range(len(rows)), heights, color=[f"C{index}" for index in range(len(rows))])
        axes[each.field].set_xticks([])
        axes[each.field].set_title(f"{each.name} ({each.direction} is expected)", fontsize="medium")
    return figure_file(figure, form, dpi=150)
