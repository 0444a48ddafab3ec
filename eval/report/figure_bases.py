"""The forest plot of a family: every difference on every base, and over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from matplotlib.figure import Figure

from merit.eval.report.style import BLACK, BLUE, GREY, interval_row, name_rows, panels

ALL = "all"  # in place of a base's name: the mean over bases


def draw_forest(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A block per comparison: its name, a row per base with its interval, the mean over bases.

    Args: rows: of differences.csv, those of one comparison together.
    """
    names, found = [], []
    for comparison, block in groupby(rows, key=lambda row: row["comparison"]):
        names.append(comparison)
        found.append(None)
        for row in block:
            names.append(f"{row['num_bases']} bases" if row["base"] == ALL else row["base"])
            found.append(row)
    figure, (axes,) = panels(1, 1, 0.6 + 0.13 * len(names))
    name_rows(axes, names)
    axes.axvline(0.0, color=GREY, lw=0.8)
    for y, (row, label) in enumerate(zip(found, axes.get_yticklabels(), strict=True)):
        if row is None:
            label.set_fontweight("bold")
            continue
        look = {"color": BLUE, "ms": 2.5}
        if row["base"] == ALL:
            look = {"color": BLACK, "fmt": "D", "ms": 4, "elinewidth": 1.8}
        interval_row(axes, y, (row["value"], row["low"], row["high"]), **look)
    axes.set_xlabel("difference of the averages in points, with its 95 % interval")
    return figure
