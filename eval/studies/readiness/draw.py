"""readiness: loss on the mixture against the distance from the base; the paths of one split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merit.eval.report import style


def draw(result: dict[str, Any], folder: Path) -> None:
    models = result["tables"]["readiness_models"]
    marks = {
        "base": (style.GREY, "D"),
        "joint": (style.VERMILION, "o"),
        "branch": (style.BLUE, "."),
        "merged": (style.GREEN, "s"),
    }
    labels = {
        "base": "base",
        "joint": "joint training",
        "branch": f"branches of {result['summary']['random']}",
        "merged": f"{result['summary']['random']}, merged",
    }
    with style.styled():
        figure = style.new_figure(7.2, 3.2)
        left, right = figure.subplots(1, 2, sharey=True)
        for kind, (color, marker) in marks.items():
            rows = [row for row in models if row["kind"] == kind]
            x = [100 * row["relative_displacement"] for row in rows]
            y = [row["loss"] for row in rows]
            left.plot(x, y, marker, color=color, label=labels[kind], ms=5)
        left.axhline(result["summary"]["loss_base"], color=style.GREY, lw=0.7, ls="--")
        left.set_xlabel("distance from the base (% of its norm)")
        left.set_ylabel("loss on the whole mixture")
        left.legend(loc="best")
        merged = {row["model"] for row in models if row["kind"] == "merged"}
        for row in result["curves"]:
            to_merged = row["path"].partition(" to ")[2] in merged
            color = style.GREEN if to_merged else style.BLUE
            right.plot(row["alpha"], row["loss"], color=color, lw=0.9, marker=".", ms=3)
            ends = (row["loss"][0], row["loss"][-1])
            right.plot((0, 1), ends, color=color, lw=0.5, ls=":")
        right.set_xticks((0, 1), ("one model", "the other"))
        right.set_title("Between branches, and to their average\n(dotted: no barrier)")
        style.save(figure, folder / "figures", "readiness")
