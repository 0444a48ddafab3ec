"""retention: a row a model: left the loss on the base's answers, right the words of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merit.eval.report import style


def draw(result: dict[str, Any], folder: Path) -> None:
    rows = result["tables"]["retention"]
    names = [row["model"] for row in rows]
    with style.styled():
        figure = style.new_figure(6.4, 1.0 + 0.22 * len(rows))
        panels = figure.subplots(1, 2, sharey=True)
        for axes, key, label in (
            (panels[0], "loss", "loss per token on the base's answers (nats)"),
            (panels[1], "words", "words of an own answer"),
        ):
            axes.barh(range(len(rows)), [row[key] for row in rows], color=style.CYCLE[0])
            axes.set_xlabel(label)
        panels[0].set_yticks(range(len(rows)), names)
        panels[0].invert_yaxis()
    style.save(figure, folder / "figures", "retention")
