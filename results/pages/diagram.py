"""Critical-difference diagrams (Demšar 2006, figure 1): mean ranks on a line, bars under what is not told apart."""

from __future__ import annotations

from collections.abc import Mapping

from kdbench.results.analysis.statistics import Ranking
from kdbench.results.pages.pictures import check_picture, figure_file


def critical_difference_diagram(rankings: Mapping[str, Ranking], form: str = "png") -> bytes:
    """Rankings below each other, as a file.

    Args:
        rankings: one or more, by title.
        form: png, svg or pdf.

    Raises:
        InputError: for another form.
    """
    import pandas as pd
    from matplotlib.figure import Figure
    from scikit_posthocs import critical_difference_diagram as draw

    check_picture(form)
    heights = [0.2 * len(ranking.ranks) / 2 + 0.2 * len(ranking.groups) + 1.2 for ranking in rankings.values()]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    panels = figure.subfigures(len(rankings), squeeze=False, height_ratios=heights)
    for panel, (title, ranking) in zip(panels.flat, rankings.items(), strict=True):
        axes = panel.subplots()
        names, best = list(ranking.ranks), min(ranking.ranks.values())
        draw(
            ranking.ranks,
            pd.DataFrame(ranking.nemenyi).loc[names, names],
            ax=axes,
            label_fmt_left="{label} {rank:.2f}",
            label_fmt_right="{rank:.2f} {label}",
            color_palette=dict.fromkeys(names, "black"),
            label_props={"fontsize": 9},
            marker_props={"s": 8},
            elbow_props={"linewidth": 0.8},
            crossbar_props={"linewidth": 3, "solid_capstyle": "butt"},
            text_h_margin=0.02 * (len(names) - 1),
        )
        axes.locator_params(axis="x", integer=True)
        panel.suptitle(title, x=0.01, horizontalalignment="left", fontsize=9)
        end = best + ranking.critical_difference
        axes.errorbar([best, end], [2.4, 2.4], yerr=0.3, color="black", linewidth=1)
        axes.text(end, 2.4, f"  CD {ranking.critical_difference:.2f}", fontsize=9, va="center")
    return figure_file(figure, form)
