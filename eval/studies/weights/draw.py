"""weights: merge_weights: left the weight of every branch, right the averages with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from merit.eval.report.style import (
    BLUE,
    GREY,
    ORANGE,
    PURPLE,
    VERMILION,
    error_bars,
    new_figure,
    save,
    styled,
)

LOOKS: dict[str, dict[str, Any]] = {
    "tokens": {"color": BLUE, "marker": "o"},
    "loss_tokens": {"color": VERMILION, "marker": "^"},
    "samples": {"color": ORANGE, "marker": "s"},
    "uniform": {"color": PURPLE, "marker": "D"},
}
SPREAD = 0.17  # between the readings of one branch or method


def draw(result: dict[str, Any], folder: Path) -> None:
    readings = result["readings"]
    with styled():
        figure = new_figure(7.2, 3.2)
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        _draw_branches(left, result["tables"]["merge_weights"], readings)
        _draw_averages(right, result, readings)
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        save(figure, folder / "figures", "merge_weights")


def _shift(index: int, readings: list[str]) -> float:
    return SPREAD * (index - (len(readings) - 1) / 2)


def _draw_branches(axes: Axes, rows: list[dict[str, Any]], readings: list[str]) -> None:
    """Branches of one method side by side, methods behind one another."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    where = [i + methods.index(row["method"]) for i, row in enumerate(rows)]  # a gap between
    for i, reading in enumerate(readings):
        places = [x + _shift(i, readings) for x in where]
        axes.plot(places, [row[f"weight_{reading}"] for row in rows], ls="", ms=3, **LOOKS[reading])
    ticks = []
    for method in methods:
        mine = [x for x, row in zip(where, rows, strict=True) if row["method"] == method]
        ticks.append((mine[0] + mine[-1]) / 2)
        if method != methods[-1]:
            axes.axvline(mine[-1] + 1, color=GREY, lw=0.5)
    axes.set_xticks(ticks, methods, rotation=20)
    axes.grid(axis="x", visible=False)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("merge weight")
    axes.set_title("Merge weight of every branch, first seed")


def _draw_averages(axes: Axes, result: dict[str, Any], readings: list[str]) -> None:
    rows = result["tables"]["merge_weights_scores"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for i, reading in enumerate(readings):
        mine = [row for row in rows if row["reading"] == reading]
        axes.errorbar(
            [methods.index(row["method"]) + _shift(i, readings) for row in mine],
            [row["avg"] for row in mine],
            yerr=error_bars((row["avg"], row["low"], row["high"]) for row in mine),
            ls="",
            ms=3.5,
            elinewidth=0.8,
            label=reading,
            **LOOKS[reading],
        )
    summary = result["summary"]
    axes.axhline(summary["joint_average"][0], color=GREY, ls="--", lw=1, label=summary["joint"])
    axes.set_xticks(range(len(methods)), methods, rotation=20)
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("average score, test (%)")
    axes.set_title("Average, 95 % interval")
