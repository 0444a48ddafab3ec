"""readiness: loss on the mixture against the distance from the base; the paths of one split."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from merit.eval.report.style import BLACK, BLUE, GREEN, GREY, VERMILION, band, legend, panels


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    models, random = result["tables"]["readiness_models"], result["summary"]["random"]
    looks = {
        "base": ("base", GREY, "D"),
        "joint": ("joint training", VERMILION, "s"),
        "branch": (f"branches of {random}", BLUE, "o"),
        "merged": (f"{random}, merged", GREEN, "^"),
    }
    figure, (left, right) = panels(1, 2, 3.0)
    for kind, (label, color, marker) in looks.items():
        rows = [row for row in models if row["kind"] == kind]
        distances = [100 * row["relative_displacement"] for row in rows]
        losses = [row["loss"] for row in rows]
        left.plot(distances, losses, marker, color=color, label=label, mec="white", mew=0.3, ms=5)
    left.axhline(result["summary"]["loss_base"], color=GREY, lw=0.7, ls="--")
    left.set_title("Where the models are")
    left.set_xlabel("distance from the base (% of its norm)")
    left.set_ylabel("loss on the whole mixture")
    merged = {row["model"] for row in models if row["kind"] == "merged"}
    rises: dict[bool, list[Any]] = {False: [], True: []}
    for row in result["curves"]:
        line = np.interp(row["alpha"], (0, 1), (row["loss"][0], row["loss"][-1]))
        rises[row["path"].partition(" to ")[2] in merged].append(row["loss"] - line)
    labels = {False: "between branches, with range", True: "from a branch to the average"}
    for to_merged, curves in rises.items():
        if curves:
            color = GREEN if to_merged else BLUE
            band(right, result["curves"][0]["alpha"], curves, color=color, label=labels[to_merged])
    right.axhline(0, color=BLACK, lw=0.8)
    right.set_xticks((0, 0.5, 1), ("one model", "half", "the other"))
    right.set(title="Barriers: none where below 0", ylabel="loss above the straight line")
    legend(figure, columns=3)
    return {"readiness": figure}
