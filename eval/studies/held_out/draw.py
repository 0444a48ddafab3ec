"""held_out: each method's loss per task minus the base's, and the mean over tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from merit.eval.measuring.means import mean_interval
from merit.eval.report.style import BLACK, BLUE, GREY, interval_row, name_rows, panels


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    rows = result["tables"]["held_out_tasks"]
    first = {row["method"]: row["model"] for row in reversed(result["tables"]["held_out"])}
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
    return {"held_out": figure}
