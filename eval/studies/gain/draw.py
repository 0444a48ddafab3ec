"""gain: measured and predicted gain / t^2, a constant where the quadratic model holds."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from merit.eval.report.style import BLACK, BLUE, ORANGE, VERMILION, legend, panels

CURVES: dict[str, dict[str, Any]] = {
    "measured": {"color": BLACK, "marker": "o", "label": "measured, with standard error"},
    "predicted": {"color": BLUE, "marker": "s", "ls": "--", "label": "curvature at merged"},
    "predicted_at_base": {"color": ORANGE, "marker": "^", "ls": ":", "label": "curvature at base"},
}


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    rows = result["tables"]["gain"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, grid = panels(
        1, len(methods), 2.9, width=2.25 * max(2, len(methods)), sharex=True, sharey=True
    )
    for axes, method in zip(grid, methods, strict=True):
        mine = [row for row in rows if row["method"] == method]
        t = [row["t"] for row in mine]
        for key, look in CURVES.items():
            heights = [row[key] / row["t"] ** 2 for row in mine]
            errors = [row["measured_se"] / row["t"] ** 2 for row in mine]
            bars = errors if key == "measured" else None
            axes.errorbar(t, heights, bars, elinewidth=0.8, capsize=2, **look)
        axes.axhline(0, color=VERMILION, lw=0.6)
        axes.set_title(f"{method}, {mine[0]['num_branches']} branches")
        axes.set_xlabel("t: theta0 + t (theta_k - theta0)")
    grid[0].set_ylabel("(mean branch loss - merged loss) / t^2")
    legend(figure)
    return {"gain": figure}
