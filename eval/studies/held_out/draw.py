"""held_out: a row a task, sorted by the base's loss; a mark a model, of its method's first seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merit.eval.report import style


def draw(result: dict[str, Any], folder: Path) -> None:
    models = result["tables"]["held_out"]
    first = {row["method"]: row["model"] for row in reversed(models)}
    order = first.get("base", models[0]["model"])
    rows = sorted(result["tables"]["held_out_tasks"], key=lambda row: float(row[order]))
    with style.styled():
        figure = style.new_figure(6.4, 1.2 + 0.18 * len(rows))
        axes = figure.subplots()
        for i, model in enumerate(reversed(first.values())):
            axes.plot(
                [row[model] for row in rows],
                range(len(rows)),
                style.MARKERS[i % len(style.MARKERS)],
                color=style.CYCLE[i % len(style.CYCLE)],
                ms=3.5,
                label=model,
            )
        axes.set_yticks(range(len(rows)), [row["task"] for row in rows])
        axes.set_xlabel("loss per token on held-out examples (nats)")
        figure.legend(loc="outside lower center", ncols=3)
    style.save(figure, folder / "figures", "held_out")
