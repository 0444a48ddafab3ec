"""hessian: the three tiers; hessian_cosines: |cos| by eigenvector, and the eigenvalues."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from merit.eval.report.style import BLACK, BLUE, CYCLE, VERMILION, legend, panels

LABELS = (
    "random\nunit vector",
    "random\ntask gradient",
    "gradient of\nfour tasks",
    "PCA conflict\ndirection",
    "PCA conflict,\ndouble-centred",
)


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    return {"hessian": _draw_tiers(result), "hessian_cosines": _draw_cosines(result)}


def _draw_tiers(result: dict[str, Any]) -> Figure:
    figure, (axes,) = panels(1, 1, 3.2, width=5.0)
    rows = result["tables"]["figure_hessian_three_tier"]
    for i, (row, color) in enumerate(zip(rows, CYCLE, strict=False)):
        values, mean = result["tiers"].get(row["direction"], []), row["mean_max_abs_cos"]
        spots = i - 0.1 + 0.15 * np.sin(np.arange(len(values)) * 2.4)
        axes.plot(spots, values, "o", ms=2.5, mec="none", color=color, alpha=0.6)
        bars = [[min(row["std"], 0.99 * mean)], [row["std"]]]
        axes.errorbar(i + 0.2, mean, bars, fmt="D", color=BLACK, elinewidth=1, capsize=3)
    axes.set_yscale("log")
    axes.set_xlim(-0.5, len(rows) - 0.4)
    axes.grid(visible=False, axis="x")
    names = [
        f"{label}\n{row['mean_max_abs_cos']:.2g}" for label, row in zip(LABELS, rows, strict=True)
    ]
    axes.set_xticks(range(len(rows)), names)
    axes.set_ylabel("max |cos|, mean and std")
    axes.set_title(
        f"Alignment with {len(result['residuals'])} leading Hessian eigenvectors: "
        f"z = {result['summary']['raw_z_score']:.0f}"
    )
    return figure


def _draw_cosines(result: dict[str, Any]) -> Figure:
    figure, (left, middle, right) = panels(1, 3, 2.4)
    top = max(max(map(max, matrix)) for matrix in result["abs_cosines"].values())
    for axes, name in ((left, "raw"), (middle, "centered")):
        matrix = np.array(result["abs_cosines"][name])
        image = axes.imshow(matrix, cmap="cividis", vmin=0, vmax=top, aspect="auto")
        axes.grid(visible=False)
        axes.set_xticks(range(matrix.shape[1]), [str(j + 1) for j in range(matrix.shape[1])])
        axes.set_yticks(range(matrix.shape[0]), [f"d{i + 1}" for i in range(len(matrix))])
        axes.set_xlabel("Hessian eigenvector")
        axes.set_title("Conflict directions" if name == "raw" else "Double-centred")
    figure.colorbar(image, ax=middle, label="|cos|")
    for (name, values), color, look in zip(
        result["eigenvalues"].items(), (VERMILION, BLUE), ("o-", "s--"), strict=True
    ):
        label = f"eigenvalues: {name.replace('_', ' ')}"
        right.plot(range(1, len(values) + 1), values, look, color=color, ms=3, label=label)
    right.set(xlabel="Hessian eigenvector", title="Leading eigenvalues")
    legend(figure)
    return figure
