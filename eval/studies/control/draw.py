"""control: a panel each for loss, closed and open average, if there are such benchmarks."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from merit.eval.report.style import BLACK, GREY, PARTITION_COLORS, legend, panels

PANELS = {"loss": "Loss on the mixture", "closed": "Closed benchmarks", "open": "Open-ended"}
WHOLE: dict[str, Any] = {"marker": "o", "mfc": "white", "ms": 5}
BEST: dict[str, Any] = {"marker": "*", "ms": 8}


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    rows = result["tables"]["control_path"]
    shown = [key for key in PANELS if any(row[key] is not None for row in rows)]
    figure, grid = panels(1, len(shown), 2.7, width=2.25 * len(shown), sharex=True)
    for axes, key in zip(grid, shown, strict=True):
        _draw_panel(axes, result, key)
    for axes in grid[2:]:
        axes.sharey(grid[1])
        axes.autoscale_view()
    for mark, label in ((WHOLE, "c = 1"), (BEST, "best c")):
        grid[0].plot([], [], color=BLACK, ls="", label=label, **mark)
    legend(figure, columns=6)
    return {"control": figure}


def _draw_panel(axes: Axes, result: dict[str, Any], key: str) -> None:
    """The methods compared, from the base (c = 0) through the model as it is (c = 1)."""
    summary, rows = result["summary"], result["tables"]["control_path"]
    x = "loss_distance" if key == "loss" else "distance"
    for name in (summary[role] for role in ("joint", "random", "method")):
        color = PARTITION_COLORS[result["partitions"][name]]
        mine = [row for row in rows if row["method"] == name and row[key] is not None]
        axes.plot([row[x] for row in mine], [row[key] for row in mine], color=color, label=name)
        for c, mark in ((1.0, WHOLE), (result["best"][name], BEST)):
            for row in mine:
                if row["c"] == c:
                    axes.plot(row[x], row[key], color=color, ls="", **mark)
    axes.axhline(rows[0][key], color=GREY, lw=0.8, ls=":", label="base")
    axes.set_title(PANELS[key])
    one_seed = f" (seed {summary['seeds'][0]})"
    axes.set_ylabel(f"loss per token{one_seed}" if key == "loss" else "validation average (%)")
    axes.set_xlabel("distance from the base")
    axes.set_xlim(left=0)
