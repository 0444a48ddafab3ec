"""merge_weights: every branch's weight by each reading, and the averages with intervals."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from merit.eval.report.style import GREY, interval_row, legend, mark, name_rows, panels

SPREAD = 0.17  # between the readings of one method


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    weights, scores = result["tables"]["merge_weights"], result["tables"]["merge_weights_scores"]
    methods = list(dict.fromkeys(row["method"] for row in scores))
    summary, readings = result["summary"], result["readings"]
    figure, (left, right) = panels(1, 2, 1.0 + 0.45 * len(methods), sharey=True)
    name_rows(left, methods)
    for i, reading in enumerate(readings):
        aside, look = SPREAD * (i - (len(readings) - 1) / 2), mark(i)
        for row in scores:
            if row["reading"] == reading:
                y = methods.index(row["method"]) + aside
                mine = [w for w in weights if w["method"] == row["method"]]
                values = [w[f"weight_{reading}"] * len(mine) for w in mine]
                left.plot(values, [y] * len(mine), ls="", ms=3, **look)
                found = (row["avg"], row["low"], row["high"])
                color, marker = look["color"], look["marker"]
                interval_row(right, y, found, color=color, fmt=marker, label=reading)
    left.axvline(1, color=GREY, lw=0.8)
    left.set_xlim(left=0)
    left.set_xlabel("merge weight x number of branches (1: uniform)")
    left.set_title("Merge weight of every branch, first seed")
    right.axvline(summary["joint_average"][0], color=GREY, ls="--", lw=1, label=summary["joint"])
    right.grid(axis="y", visible=False)
    right.set(xlabel="average score, test (%)", title="Average, 95 % interval")
    legend(figure, columns=5)
    return {"merge_weights": figure}
