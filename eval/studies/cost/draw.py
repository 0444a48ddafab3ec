"""cost: compute of every method on top of the gradients and the partition, and wall-clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merit.eval.report.style import BLUE, GREEN, GREY, ORANGE, VERMILION, new_figure, save, styled


def draw(result: dict[str, Any], folder: Path) -> None:
    rows, summary = result["tables"]["table15_wall_clock"], result["summary"]
    methods = [row for row in rows if row["branches"] is not None and row["seconds"] is not None]
    once = (
        ("gradients", summary["gradient_seconds"] or 0.0, ORANGE),
        ("partition", summary["partition_seconds"] or 0.0, GREY),
    )
    with styled():
        figure = new_figure(6.4, 0.9 + 0.62 * max(1, len(methods)))
        axes = figure.subplots()
        for i, row in enumerate(methods):
            start = 0.0
            is_joint = row["stage"].startswith(f"{summary['joint']}:")
            for label, seconds, color in () if is_joint else once:
                axes.barh(i - 0.19, seconds, 0.36, left=start, color=color, label=label)
                start += seconds
            axes.barh(
                i - 0.19, row["seconds"], 0.36, left=start, xerr=row["std"],
                color=VERMILION if is_joint else BLUE, error_kw={"lw": 0.8, "capsize": 2},
                label="joint training" if is_joint else "branches + merge, added up",
            )  # fmt: skip
            if not is_joint:
                axes.barh(
                    i + 0.19, start + row["wall_seconds"], 0.36, color=GREEN,
                    label="wall-clock on a machine a branch, all steps",
                )  # fmt: skip
        names = [row["stage"].partition(":")[0] for row in methods]
        axes.set_yticks(range(len(methods)), names)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("seconds (std over seeds where there are several)")
        axes.set_title("Compute and wall-clock time")
        handles, labels = axes.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        if unique:
            figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=3)
    save(figure, folder / "figures", "cost")
