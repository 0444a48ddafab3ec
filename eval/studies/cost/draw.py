"""cost: compute of every method on top of the gradients and the partition, and wall-clock."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from merit.eval.report.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILION,
    legend,
    name_rows,
    panels,
)


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    rows, summary = result["tables"]["table15_wall_clock"], result["summary"]
    methods = [row for row in rows if row["branches"] is not None and row["seconds"] is not None]
    once = (
        ("gradients", summary["gradient_seconds"] or 0.0, ORANGE),
        ("partition", summary["partition_seconds"] or 0.0, GREY),
    )
    figure, (axes,) = panels(1, 1, 0.9 + 0.45 * max(1, len(methods)))
    for i, row in enumerate(methods):
        start = 0.0
        is_joint = row["stage"].startswith(f"{summary['joint']}:")
        for label, seconds, color in () if is_joint else once:
            axes.barh(i - 0.19, seconds, 0.36, left=start, color=color, label=label)
            start += seconds
        axes.barh(
            i - 0.19, row["seconds"], 0.36, left=start, xerr=row["std"],
            color=VERMILION if is_joint else BLUE, error_kw={"lw": 0.8, "capsize": 2},
            label="joint training" if is_joint else "branches and merge",
        )  # fmt: skip
        if not is_joint:
            axes.barh(
                i + 0.19, start + row["wall_seconds"], 0.36, color=GREEN,
                label="all steps, one machine per branch",
            )  # fmt: skip
    name_rows(axes, [row["stage"].partition(":")[0] for row in methods])
    axes.set_xlabel("seconds (bars: std over seeds)")
    axes.set_title("Compute and wall-clock time")
    if methods:
        legend(figure, columns=5)
    return {"cost": figure}
