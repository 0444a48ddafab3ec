"""calibration: the mean with its spread over units, and the paper's curve."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from merit.eval.paper import load_paper_table
from merit.eval.report.style import BLUE, GREY, VERMILION, legend, panels
from merit.io.artifacts import REPORTS_DIR

TABLE = "table11_calibration"  # ours and the paper's


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    rows, summary = result["tables"][TABLE], result["summary"]
    mean = np.array([row["mean_cosine"] for row in rows])
    std = np.array([row["std"] or 0.0 for row in rows])
    paper = np.array(load_paper_table(TABLE, REPORTS_DIR).rows, dtype=np.float64)
    units = f"{len(result['units'])} {'tasks' if summary['unit'] == 'task' else 'families'}"
    figure, (axes,) = panels(1, 1, 3.2, width=5.0)
    look: dict[str, Any] = {"elinewidth": 0.7, "capsize": 2}
    axes.errorbar(
        result["sizes"], mean, [std, np.minimum(std, 1 - mean)], fmt="o-", color=BLUE,
        label=f"ours, mean and std over {units}", **look,
    )  # fmt: skip
    axes.errorbar(
        paper[:, 0],
        paper[:, 1],
        paper[:, 2],
        fmt="s--",
        color=VERMILION,
        label="paper, Qwen2.5-VL-3B, over tasks",
        **look,
    )
    axes.axvline(summary["n"], color=GREY, lw=0.8, ls=":", label=f"n in use, {summary['n']}")
    axes.set_xlabel("n, examples in the mean gradient")
    axes.set_ylabel("cosine to the reference gradient")
    axes.set_title(f"Calibration size (reference: {summary['reference']} examples)")
    legend(figure, columns=2)
    return {"calibration": figure}
