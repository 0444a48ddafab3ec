"""hessian: the three tiers; hessian_cosines: |cos| by eigenvector, and the eigenvalues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from merit.eval.report.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    VERMILION,
    new_figure,
    save,
    styled,
)


def draw(result: dict[str, Any], folder: Path) -> None:
    summary, rows = result["summary"], result["tables"]["figure_hessian_three_tier"]
    labels = [
        "random\nunit vector",
        "random\ntask gradient",
        "gradient of\nthe four tasks",
        "PCA conflict\ndirection",
        "PCA conflict\ndirection,\ndouble-centred",
    ]
    with styled():
        figure = new_figure(5.8, 3.6)
        axes = figure.subplots()
        colors = (GREY, ORANGE, PURPLE, BLUE, GREEN)
        for i, (row, color) in enumerate(zip(rows, colors, strict=True)):
            values = result["tiers"].get(row["direction"], [])
            axes.bar(i, row["mean_max_abs_cos"], width=0.6, color=color, alpha=0.45)
            low = min(row["std"], row["mean_max_abs_cos"] * 0.999)
            axes.errorbar(
                i, row["mean_max_abs_cos"], yerr=[[low], [row["std"]]],
                color="black", lw=1, capsize=3,
            )  # fmt: skip
            spots = i + 0.22 * np.sin(np.arange(len(values)) * 2.4)
            axes.scatter(spots, values, s=7, color=color, lw=0.2, ec="white", zorder=3)
            axes.annotate(
                f"{row['mean_max_abs_cos']:.3g}",
                (i + 0.32, row["mean_max_abs_cos"]), fontsize=7, va="center",
            )  # fmt: skip
        axes.set_yscale("log")
        axes.set_xlim(-0.5, len(rows) - 0.3)
        axes.grid(visible=False, axis="x")
        axes.set_xticks(range(len(rows)), labels)
        axes.set_ylabel("max |cos| with the leading eigenvectors")
        axes.set_title(
            f"Alignment with {len(result['residuals'])} leading Hessian eigenvectors\n"
            f"bars: mean and std; z = {summary['raw_z_score']:.0f} (raw) against random vectors"
        )
        save(figure, folder / "figures", "hessian")
        figure = new_figure(8.4, 3.0)
        left, middle, right = figure.subplots(1, 3)
        top = max(max(map(max, matrix)) for matrix in result["abs_cosines"].values())
        for axes, name, title in (
            (left, "raw", "Conflict directions, raw"),
            (middle, "centered", "Double-centred"),
        ):
            matrix = np.array(result["abs_cosines"][name])
            image = axes.imshow(matrix, cmap="cividis", vmin=0, vmax=top, aspect="auto")
            for i, j in np.ndindex(*matrix.shape):
                axes.text(
                    j, i, f"{matrix[i, j]:.2f}".lstrip("0"), ha="center", va="center", fontsize=6,
                    color="white" if matrix[i, j] < 0.6 * top else "black",
                )  # fmt: skip
            axes.grid(visible=False)
            axes.set_xticks(range(matrix.shape[1]), [str(j + 1) for j in range(matrix.shape[1])])
            axes.set_yticks(range(matrix.shape[0]), [f"d{i + 1}" for i in range(len(matrix))])
            axes.set_xlabel("Hessian eigenvector")
            axes.set_title(title)
        figure.colorbar(image, ax=[left, middle], shrink=0.8).set_label("|cos|")
        for (name, values), color, style in zip(
            result["eigenvalues"].items(), (VERMILION, BLUE), ("o-", "s--"), strict=True
        ):
            label = name.replace("_", " ")
            right.plot(
                range(1, len(values) + 1), values, style, color=color, ms=3, lw=1, label=label
            )
        right.set_xlabel("eigenvector")
        right.set_title("Leading eigenvalues")
        right.legend()
        save(figure, folder / "figures", "hessian_cosines")
