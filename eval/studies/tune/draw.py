"""The grid of the study `tune`: joint training's validation average at every setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merit.eval.report import style


def draw(result: dict[str, Any], folder: Path) -> None:
    """A bar a setting; open where the base is not merge-ready there."""
    rows = result["tables"]["tune"]
    with style.styled():
        figure = style.new_figure(4.8, 0.6 + 0.3 * len(rows))
        axes = figure.subplots()
        for i, row in enumerate(reversed(rows)):
            fill = style.BLUE if row["merge_ready"] else "none"
            axes.barh(i, row["joint_avg"], color=fill, edgecolor=style.BLUE)
        axes.set_yticks(range(len(rows)), [row["setting"] for row in reversed(rows)])
        axes.set_xlabel("joint training, validation average (%); filled: merge-ready")
        style.save(figure, folder / "figures", "tune")
