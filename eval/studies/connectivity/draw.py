"""Figure of the study `connectivity`: the loss along the straight paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merit.eval.report.style import GREY, group_mark, new_figure, save, styled

MOST_LABELS = 16  # paths that are named one by one


def draw(result: dict[str, Any], folder: Path) -> None:
    with styled():
        figure = new_figure(7.2, 3.8)
        panels = figure.subplots(1, 2, sharey=True)
        kinds: tuple[list[str], list[str]] = ([], [])
        for path in result["curves"]:
            kinds[path.endswith("merged")].append(path)
        titles = ("Between branches", "From a branch to the merged model")
        for axes, names, title in zip(panels, kinds, titles, strict=True):
            for i, path in enumerate(names):
                curve = result["curves"][path]
                color, marker = group_mark(i)
                axes.plot((0, 1), (curve[0], curve[-1]), color=color, lw=0.6, ls=":")
                label = path.replace("-", " to ") if len(names) <= MOST_LABELS else None
                axes.plot(
                    result["alphas"], curve, color=color, marker=marker, ms=2.5, lw=1, label=label
                )
            axes.axhline(result["summary"]["loss_base"], color=GREY, lw=0.8, ls="--", label="base")
            axes.set_title(title)
            axes.set_xlabel("alpha (0: first model, 1: second model)")
            axes.set_xlim(-0.02, 1.02)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3)
        panels[0].set_ylabel("loss on the mixture (dotted: no barrier)")
        save(figure, folder / "figures", "connectivity")
