"""surface: contours of the loss with the three models and the branches' projections."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from merit.eval.report.style import BLACK, GREY, VERMILION, WIDTH, legend, panels

MARKS = {"base": ("o", GREY, 8), "joint": ("s", VERMILION, 8), "merged": ("*", BLACK, 14)}


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    x, y, losses = (np.array(result[key]) for key in ("x", "y", "losses"))
    summary, rows = result["summary"], result["tables"]["surface"]
    # levels where the models are: far corners would take all the colours
    top = 1.25 * max(summary[f"loss_{name}"] for name in MARKS)
    levels = np.geomspace(losses.min(), max(top, float(np.median(losses))), 17)
    height = 1.2 + 0.75 * WIDTH * float(np.ptp(y) / np.ptp(x))  # the same scale along both
    figure, (axes,) = panels(1, 1, min(height, WIDTH))
    axes.grid(False)
    filled = axes.contourf(x, y, losses, levels=levels, norm="log", cmap="viridis", extend="max")
    axes.contour(x, y, losses, levels=levels, colors="white", linewidths=0.3)
    bar = figure.colorbar(filled, ax=axes, label="loss on the mixture")
    bar.set_ticks(levels[::4].tolist(), labels=[f"{level:.2f}" for level in levels[::4]])
    bar.minorticks_off()
    for row in rows:
        if row["point"] in MARKS:
            marker, color, size = MARKS[row["point"]]
            look: dict[str, Any] = {"color": color, "mec": "white", "ms": size, "zorder": 4}
            label = f"{row['point']}: {row['loss']:.3f}"
        else:
            marker, look = "o", {"mfc": "white", "mec": BLACK, "mew": 0.7, "ms": 5}
            label = "branches (projected)"
        axes.plot(row["x"], row["y"], marker, ls="", label=label, **look)
    axes.set_aspect("equal")
    axes.set_title("Loss on the plane through base, joint and merged")
    axes.set_xlabel(f"distance along {summary['joint']} - base")
    axes.set_ylabel(f"orthogonal part of\n{summary['merged']} - base")
    legend(figure)
    return {"surface": figure}
