"""Figures of the study `fidelity`: strides and sketches against full cosines; the norms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from merit.eval.report.style import BLUE, GREEN, GREY, VERMILION, new_figure, save, styled
from merit.method.diagnostics import trimmed


def draw(result: dict[str, Any], folder: Path) -> None:
    _draw_sketches(result["tables"]["gradient_representations"], folder)
    summary, pairs = result["summary"], result["pairs"]
    norms = np.array(result["norms"])
    with styled():
        figure = new_figure(7.6, 3.5)
        left, right = figure.subplots(1, 2)
        ends = (min(pairs["full"] + pairs["strided"]), max(pairs["full"] + pairs["strided"]))
        left.plot(ends, ends, color=GREY, lw=0.8)
        left.scatter(
            pairs["full"], pairs["strided"], s=4, c=BLUE, alpha=0.35, lw=0, rasterized=True
        )
        left.set_aspect("equal")
        left.set_xlabel("cosine, full gradients")
        left.set_ylabel(f"cosine, one entry in {summary['stride']}")
        left.set_title(
            f"Strided gradients: r = {summary['pearson']:.4f}, rho = {summary['spearman']:.4f}"
        )
        left.annotate(
            f"{len(pairs['full'])} pairs of tasks",
            (0.97, 0.04),
            xycoords="axes fraction",
            ha="right",
            fontsize=7,
        )
        bins = np.geomspace(norms.min(), norms.max() * 1.001, 25)
        right.hist(norms, bins=list(bins), color=BLUE, ec="white", lw=0.4)
        right.set_xscale("log")
        for trim, style in zip([t for t in result["trims"] if t > 0], ("--", ":"), strict=False):
            kept = trimmed(norms, trim)
            label = f"trimmed {100 * trim:g} % at either end"
            right.axvline(kept[0], color=VERMILION, ls=style, lw=1, label=label)
            right.axvline(kept[-1], color=VERMILION, ls=style, lw=1)
        right.set_xlabel("norm of the full task gradient")
        right.set_ylabel("tasks")
        raw = summary["coefficient_of_variation_raw"]
        right.set_title(f"Norms of {len(norms)} task gradients: CV {raw:.2f}")
        if right.get_legend_handles_labels()[0]:
            right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
        right.yaxis.get_major_locator().set_params(integer=True)
    save(figure, folder / "figures", "fidelity")


def _draw_sketches(rows: list[dict[str, Any]], folder: Path) -> None:
    """RMSE against the entries kept, left; adjusted Rand index of the finest groups, right."""
    index = [
        column for column in rows[0] if column.startswith("rand_index") and "std" not in column
    ]
    finest = index[-1]
    with styled():
        figure = new_figure(7.6, 3.2)
        left, right = figure.subplots(1, 2)
        for kind, color, marker in (("stride", BLUE, "s"), ("sketch", GREEN, "o")):
            mine = [row for row in rows if row["gradients"].startswith(kind)]
            kept = [row["num_entries"] for row in mine]
            for axes, measure in ((left, "rmse"), (right, finest)):
                axes.errorbar(
                    kept,
                    [row[measure] for row in mine],
                    [row[f"{measure}_std"] or 0.0 for row in mine],
                    color=color,
                    marker=marker,
                    ms=4,
                    ls="none",
                    capsize=2,
                    label=kind,
                )
            if kind == "sketch" and mine:
                predicted = [row["predicted_rmse"] for row in mine]
                left.plot(kept, predicted, color=GREY, lw=0.8, label="predicted")
        for row in rows:
            if row["gradients"] == "resampled examples":
                label = "other calibration examples"
                left.axhline(row["rmse"], color=VERMILION, lw=0.8, ls="--", label=label)
                right.axhline(row[finest], color=VERMILION, lw=0.8, ls="--", label=label)
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_xlabel("entries kept a task")
        left.set_yscale("log")
        left.set_ylabel("RMSE of the cosines")
        left.set_title("Error beside full gradients")
        left.legend()
        right.set_ylabel("adjusted Rand index")
        right.set_ylim(top=1.0)
        right.set_title(f"Partition, {finest.removeprefix('rand_index_')}")
    save(figure, folder / "figures", "fidelity_sketch")
