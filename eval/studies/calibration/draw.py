"""calibration: the mean with its spread over units, every unit, and the paper's curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from merit.eval.paper import load_paper_table
from merit.eval.report.style import BLUE, GREY, VERMILION, new_figure, save, styled
from merit.io.artifacts import REPORTS_DIR

TABLE = "table11_calibration"  # ours and the paper's


def draw(result: dict[str, Any], folder: Path) -> None:
    rows, sizes = result["tables"][TABLE], result["sizes"]
    mean = np.array([row["mean_cosine"] for row in rows])
    std = np.array([row["std"] or 0.0 for row in rows])
    summary = result["summary"]
    paper = np.array(load_paper_table(TABLE, REPORTS_DIR).rows, dtype=np.float64)
    plural = "tasks" if summary["unit"] == "task" else "families"
    with styled():
        figure = new_figure(5.2, 3.6)
        axes = figure.subplots()
        axes.fill_between(
            sizes, mean - std, np.minimum(mean + std, 1), color=BLUE, alpha=0.18, lw=0
        )
        for values in result["units"].values():
            axes.plot(sizes, values, color=BLUE, lw=0.5, alpha=0.5)
        axes.plot(
            sizes, mean, "o-", color=BLUE, ms=4, lw=1.6,
            label=f"ours: mean of {len(result['units'])} {plural}, each a thin line; band: std",
        )  # fmt: skip
        axes.errorbar(
            paper[:, 0], paper[:, 1], yerr=paper[:, 2],
            fmt="s--", color=VERMILION, ms=3, lw=0.9, elinewidth=0.6, capsize=2,
            label="paper, Qwen2.5-VL-3B: mean and std over tasks",
        )  # fmt: skip
        axes.axvline(summary["n"], color=GREY, lw=0.8, ls=":")
        axes.set_xlabel("n, examples in the mean gradient")
        axes.set_ylabel(f"cosine to the {summary['reference']}-example gradient")
        axes.set_title(
            f"Calibration size: {summary['mean_cosine']:.3f} with {summary['n']} examples"
        )
        axes.legend(loc="lower right")
    save(figure, folder / "figures", "calibration")
