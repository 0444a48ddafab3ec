"""The forest plot of a family: every difference on every base, and over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from matplotlib.figure import Figure

from merit.eval.report.style import BLACK, BLUE, GREY, interval_row, name_rows, panels

SINGLE: dict[str, Any] = {"color": BLUE, "ms": 2.5}
POOLED: dict[str, Any] = {"color": BLACK, "fmt": "D", "ms": 4, "elinewidth": 1.8}
ALL = "all"  # in place of a base's name: the mean over bases


def draw_forest(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A block per comparison: its name, a row per base with its interval, the mean over bases.

    Args: rows: of differences.csv, those of one comparison together.
    """
    names: list[str] = []
    shown: list[Mapping[str, Any] | None] = []
    for comparison, block in groupby(rows, key=lambda row: row["comparison"]):
        names.append(comparison)
        shown.append(None)
        for row in block:
            names.append(f"{row['num_bases']} bases" if row["base"] == ALL else row["base"])
            shown.append(row)
    figure, (axes,) = panels(1, 1, 0.5 + 0.12 * len(names))
    name_rows(axes, names)
    axes.axvline(0.0, color=GREY, lw=0.8)
    for y, (found, label) in enumerate(zip(shown, axes.get_yticklabels(), strict=True)):
        if found is None:
            label.set_fontweight("bold")
        else:
            look = POOLED if found["base"] == ALL else SINGLE
            interval_row(axes, y, (found["value"], found["low"], found["high"]), **look)
    axes.set_xlabel("difference of the averages in points, with its 95 % interval")
    return figure
