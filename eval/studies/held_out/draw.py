"""held_out: each method's loss per task minus the base's, and the loss over the distance."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from merit.eval.measuring.scores import mean_interval
from merit.eval.report.style import (
    BLACK,
    BLUE,
    GREY,
    PARTITION_COLORS,
    interval_row,
    legend,
    name_rows,
    panels,
)


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    return {"held_out": by_task(result), "held_out_distance": by_distance(result)}


def by_task(result: dict[str, Any]) -> Figure:
    """A dot per task and the mean over tasks, of every method's first model."""
    rows = result["tables"]["held_out_tasks"]
    first = {row["method"]: row["model"] for row in reversed(result["tables"]["held_out_models"])}
    base = first.pop("base", None)
    methods = list(reversed(first))
    zero = np.array([row[base] if base else 0.0 for row in rows])
    figure, (axes,) = panels(1, 1, 1.0 + 0.22 * len(methods), width=5.0)
    name_rows(axes, methods)
    for y, method in enumerate(methods):
        values = np.array([row[first[method]] for row in rows]) - zero
        axes.plot(values, [y + 0.25] * len(values), "o", ms=2.5, mec="none", color=BLUE, alpha=0.4)
        interval_row(axes, y, mean_interval(values), color=BLACK)
    if base:
        axes.axvline(0, color=GREY, ls="--", lw=0.8)
    axes.set_title(f"Held-out loss of {len(rows)} tasks: mean with 95 % interval; dots: tasks")
    axes.set_xlabel(f"loss per token{', minus that of the base' if base else ''} (nats)")
    return figure


def by_distance(result: dict[str, Any]) -> Figure:
    """Every method at several distances from the base; a star is what is recommended."""
    rows, told = result["tables"]["held_out_path"], result["summary"]["recommendation"]
    figure, (axes,) = panels(1, 1, 3.0, width=5.0)
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        look: dict[str, Any] = {"color": PARTITION_COLORS[mine[0]["partition"]], "marker": "o"}
        points = [(row["distance"], row["loss"]) for row in mine]
        axes.plot(*zip(*points, strict=True), mfc="white", label=method, **look)
        for row in mine:
            if (method, row["c"]) == (told["method"], told["c"]):
                axes.plot(row["distance"], row["loss"], **look | {"marker": "*"}, ms=11)
    axes.set_title("Held-out loss over the distance from the base")
    axes.set_xlabel("distance from the base; star: recommended")
    axes.set_ylabel("loss per token (nats)")
    legend(figure)
    return figure
