"""surface: contours of the loss with the three models and the branches' projections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from merit.eval.report.style import BLACK, GREY, VERMILION, new_figure, save, styled


def draw(result: dict[str, Any], folder: Path) -> None:
    losses, rows = np.array(result["losses"]), result["tables"]["surface"]
    summary = result["summary"]
    # levels where the models are: far corners would take all the colours
    top = 1.25 * max(summary[f"loss_{name}"] for name in ("base", "joint", "merged"))
    levels = np.geomspace(losses.min(), max(top, float(np.median(losses))), 17)
    with styled():
        figure = new_figure(6.0, 4.2)
        axes = figure.subplots()
        axes.grid(False)
        filled = axes.contourf(
            result["x"],
            result["y"],
            losses,
            levels=levels,
            norm="log",
            cmap="viridis",
            extend="max",
        )
        axes.contour(
            result["x"], result["y"], losses, levels=levels, colors="white", linewidths=0.3
        )
        bar = figure.colorbar(filled, ax=axes, label="loss on the mixture", shrink=0.8)
        bar.set_ticks(levels[::4].tolist(), labels=[f"{level:.2f}" for level in levels[::4]])
        bar.minorticks_off()
        branches = [row for row in rows if row["point"].startswith("b") and row["point"] != "base"]
        axes.plot(
            [row["x"] for row in branches],
            [row["y"] for row in branches],
            "o",
            mfc="white",
            mec=BLACK,
            mew=0.7,
            ms=5,
            label="branches (projected)",
        )
        marks = {"base": ("o", GREY, 8), "joint": ("s", VERMILION, 8), "merged": ("*", BLACK, 14)}
        for row in rows[:3]:
            marker, color, size = marks[row["point"]]
            label = f"{row['point']}: {row['loss']:.3f}"
            axes.plot(
                row["x"], row["y"], marker, color=color, mec="white", ms=size, label=label, ls=""
            )
        axes.set_aspect("equal")
        axes.set_title("Loss on the plane through base, joint and merged")
        axes.set_xlabel(f"distance along {summary['joint']} - base")
        axes.set_ylabel(f"orthogonal part of {summary['merged']} - base")
        figure.legend(loc="outside lower center", ncols=4)
        save(figure, folder / "figures", "surface")
