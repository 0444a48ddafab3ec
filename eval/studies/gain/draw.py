"""gain: predicted against measured gain with the diagonal; and gain / t^2, a constant in theory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from merit.eval.report.style import BLACK, group_mark, new_figure, save, styled

STYLES: dict[str, dict[str, Any]] = {
    "measured": {},
    "predicted": {"ls": "--", "mfc": "white"},
    "predicted_at_base": {"ls": ":", "mfc": "none"},
}
LABELS = {
    "measured": "measured",
    "predicted": "curvature at merged",
    "predicted_at_base": "curvature at base",
}


def draw(result: dict[str, Any], folder: Path) -> None:
    rows = result["tables"]["gain"]
    with styled():
        figure = new_figure(7.2, 3.6)
        scatter, scaled = figure.subplots(1, 2)
        _draw_scatter(scatter, rows)
        _draw_scaled(scaled, rows)
        save(figure, folder / "figures", "gain")


def _by_method(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    methods = dict.fromkeys(row["method"] for row in rows)
    return {method: [row for row in rows if row["method"] == method] for method in methods}


def _draw_scatter(axes: Axes, rows: list[dict[str, Any]]) -> None:
    values = [row[key] for row in rows for key in ("measured", "predicted")]
    ends = (min(values), max(values))
    axes.plot(ends, ends, color=BLACK, lw=0.7, ls="--", label="predicted = measured")
    for i, (method, mine) in enumerate(_by_method(rows).items()):
        color, marker = group_mark(i)
        for row in mine:
            axes.errorbar(
                row["measured"],
                row["predicted"],
                xerr=row["measured_se"],
                color=color,
                marker=marker,
                ms=3 + 4 * row["t"],
                elinewidth=0.7,
                label=method if row is mine[-1] else None,
            )
    # decades, but through zero where a gain is negative
    linear = float(np.quantile(np.abs(values), 0.25)) or 1.0
    for set_scale in (axes.set_xscale, axes.set_yscale):
        if min(values) > 0:
            set_scale("log")
        else:
            set_scale("symlog", linthresh=linear)
    axes.set_title("Merging gain, predicted and measured")
    axes.set_xlabel("measured: mean branch loss - merged loss")
    axes.set_ylabel("predicted: theorem 3.1, curvature at merged")
    axes.legend(loc="lower right", title="larger mark: larger t", title_fontsize=7)


def _draw_scaled(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for i, (_, mine) in enumerate(_by_method(rows).items()):
        color, marker = group_mark(i)
        at = [row["t"] for row in mine]
        for key, style in STYLES.items():
            heights = [row[key] / row["t"] ** 2 for row in mine]
            axes.plot(at, heights, color=color, marker=marker, lw=1, ms=4, **style)
    for key, style in STYLES.items():
        axes.plot([], [], color=BLACK, marker="o", lw=1, ms=4, label=LABELS[key], **style)
    axes.axhline(0, color=BLACK, lw=0.6)
    axes.set_title("Where the quadratic model holds")
    axes.set_xlabel("t: branches shrunk to theta0 + t (theta_k - theta0)")
    axes.set_ylabel("gain / t^2")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3)
