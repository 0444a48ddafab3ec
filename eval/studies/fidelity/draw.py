"""Figures of the study `fidelity`: strides and sketches against full cosines; the norms."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from merit.eval.report.style import BLUE, GREEN, GREY, VERMILION, legend, panels
from merit.method.diagnostics import trimmed


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    sketches = _draw_sketches(result["tables"]["gradient_representations"])
    return {"fidelity": _draw_fidelity(result), "fidelity_sketch": sketches}


def _draw_fidelity(result: dict[str, Any]) -> Figure:
    summary, pairs = result["summary"], result["pairs"]
    norms = np.array(result["norms"])
    figure, (left, right) = panels(1, 2, 3.3)
    ends = (min(pairs["full"] + pairs["strided"]), max(pairs["full"] + pairs["strided"]))
    left.plot(ends, ends, color=GREY, lw=0.8)
    left.scatter(pairs["full"], pairs["strided"], s=4, c=BLUE, alpha=0.35, lw=0, rasterized=True)
    left.set_aspect("equal")
    left.set_xlabel(f"cosine, full gradients, {len(pairs['full'])} pairs of tasks")
    left.set_ylabel(f"cosine, one entry in {summary['stride']}")
    left.set_title(f"Strided: r = {summary['pearson']:.4f}, rho = {summary['spearman']:.4f}")
    bins = np.geomspace(norms.min(), norms.max() * 1.001, 25)
    right.hist(norms, bins=list(bins), color=BLUE, ec="white", lw=0.4)
    right.set_xscale("log")
    for trim, dashes in zip([t for t in result["trims"] if t > 0], ("--", ":"), strict=False):
        kept = trimmed(norms, trim)
        label = f"trimmed {100 * trim:g} % at either end"
        for end in (kept[0], kept[-1]):
            right.axvline(end, color=VERMILION, ls=dashes, lw=1, label=label)
    right.set(xlabel="norm of the full task gradient", ylabel="tasks")
    raw = summary["coefficient_of_variation_raw"]
    right.set_title(f"Norms of {len(norms)} task gradients: CV {raw:.2f}")
    legend(figure)
    return figure


def _draw_sketches(rows: list[dict[str, Any]]) -> Figure:
    """RMSE against the entries kept, left; adjusted Rand index of the finest groups, right."""
    index = [column for column in rows[0] if column.startswith("rand_index")]
    finest = [column for column in index if "std" not in column][-1]
    figure, (left, right) = panels(1, 2, 3.0)
    for kind, color, marker in (("stride", BLUE, "s"), ("sketch", GREEN, "o")):
        mine = [row for row in rows if row["gradients"].startswith(kind)]
        kept = [row["num_entries"] for row in mine]
        for axes, measure in ((left, "rmse"), (right, finest)):
            values = [row[measure] for row in mine]
            stds = [row[f"{measure}_std"] or 0.0 for row in mine]
            axes.errorbar(
                kept, values, stds, color=color, fmt=marker, elinewidth=0.8, capsize=2, label=kind
            )
        if kind == "sketch" and mine:
            predicted = [row["predicted_rmse"] for row in mine]
            left.plot(kept, predicted, color=GREY, lw=0.8, label="predicted for a sketch")
    for row in rows:
        if row["gradients"] == "resampled examples":
            for axes, measure in ((left, "rmse"), (right, finest)):
                label = "other calibration examples"
                axes.axhline(row[measure], color=VERMILION, lw=0.8, ls="--", label=label)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("entries kept per task")
    left.set_yscale("log")
    left.set(ylabel="RMSE of the cosines", title="Error against full gradients")
    right.set_ylabel("adjusted Rand index")
    right.set_ylim(top=1.0)
    right.set_title(f"Partition, {finest.removeprefix('rand_index_')}")
    legend(figure)
    return figure
