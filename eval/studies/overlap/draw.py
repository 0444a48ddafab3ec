"""overlap: questions, images and near images of each benchmark, in percent."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from merit.eval.report.style import BLUE, GREY, VERMILION, legend, name_rows, panels

SHARES = (("same_question", BLUE), ("same_image", VERMILION), ("near_image", GREY))


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    rows = result["tables"]["overlap"]
    figure, (axes,) = panels(1, 1, 1.2 + 0.4 * len(rows))
    name_rows(axes, [row["benchmark"] for row in rows])
    for offset, (key, color) in zip((-0.25, 0, 0.25), SHARES, strict=True):
        shares = [100 * row[key] / row["num_questions"] for row in rows]
        places = [i + offset for i in range(len(rows))]
        axes.barh(places, shares, 0.24, color=color, label=key.replace("_", " "))
    axes.set(xlabel="% of the benchmark's questions", title="Benchmarks in the training data")
    legend(figure)
    return {"overlap": figure}
