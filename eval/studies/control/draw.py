"""control: a panel each for loss, closed and open average, where there are such benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from merit.eval.report.style import BLACK, GREY, MARKERS, PARTITION_COLORS, new_figure, save, styled

PANELS = {
    "loss": ("Loss on the mixture", "mean next-token loss"),
    "closed": ("Closed benchmarks", "average score, validation (%)"),
    "open": ("Open-ended benchmarks", "average score, validation (%)"),
}
WHOLE: dict[str, Any] = {"marker": "o", "mfc": "white", "ms": 5}
BEST: dict[str, Any] = {"marker": "*", "ms": 8}


def draw(result: dict[str, Any], folder: Path) -> None:
    rows = result["tables"]["control_path"]
    panels = [key for key in PANELS if any(row[key] is not None for row in rows)]
    with styled():
        figure = new_figure(2.5 * len(panels), 3.1)
        for axes, key in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            _draw_panel(axes, result, key)
        # the panel with every method has every label
        handles, labels = figure.axes[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)))
        save(figure, folder / "figures", "control")


def _draw_panel(axes: Axes, result: dict[str, Any], key: str) -> None:
    summary, best = result["summary"], result["best"]
    main = [summary[name] for name in ("joint", "random", "method")]
    x = "loss_distance" if key == "loss" else "distance"
    others = 0
    for name, partition in result["partitions"].items():
        color = PARTITION_COLORS[partition]
        mine = [row for row in result["tables"]["control_path"] if row["method"] == name]
        if name in main:
            look: dict[str, Any] = {"lw": 1.6, "zorder": 3}
        else:
            look = {"lw": 0.7, "ls": "--", "alpha": 0.8, "marker": MARKERS[others + 1], "ms": 2.5}
            others = (others + 1) % (len(MARKERS) - 1)
        if mine[0][key] is None or mine[-1][key] is None:
            continue
        axes.plot(
            [row[x] for row in mine], [row[key] for row in mine], color=color, label=name, **look
        )
        if name in main:
            for c, mark in ((1.0, WHOLE), (best[name], BEST)):
                row = next(row for row in mine if row["c"] == c)
                axes.plot(row[x], row[key], color=color, ls="", zorder=4, **mark)
    start = result["tables"]["control_path"][0]
    axes.axhline(start[key], color=GREY, lw=0.8, ls=":", label="base")
    for mark, label in ((WHOLE, "c = 1"), (BEST, "best c")):
        axes.plot([], [], color=BLACK, ls="", label=label, **mark)
    title, label = PANELS[key]
    if key == "loss":
        title += f", seed {summary['seeds'][0]}"
    axes.set_title(title)
    axes.set_ylabel(label)
    axes.set_xlabel("distance from the base")
    axes.set_xlim(left=0)
