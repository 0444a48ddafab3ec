"""overlap: questions, images and near images of each benchmark, in percent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merit.eval.report.style import BLUE, GREY, VERMILION, new_figure, save, styled

SHARES = (("same_question", BLUE), ("same_image", VERMILION), ("near_image", GREY))


def draw(result: dict[str, Any], folder: Path) -> None:
    rows = result["tables"]["overlap"]
    with styled():
        figure = new_figure(6.4, 1.2 + 0.4 * len(rows))
        axes = figure.subplots()
        for offset, (key, color) in zip((-0.25, 0, 0.25), SHARES, strict=True):
            shares = [100 * row[key] / row["num_questions"] for row in rows]
            places = [i + offset for i in range(len(rows))]
            axes.barh(places, shares, 0.24, color=color, label=key.replace("_", " "))
        axes.set_yticks(range(len(rows)), [row["benchmark"] for row in rows])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("% of the benchmark's questions")
        axes.set_title("Benchmarks in the training data")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    save(figure, folder / "figures", "overlap")
