"""sgd: the average over the learning rate, a line a method, with the base's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merit.eval.measuring.scores import interval, rate_label
from merit.eval.report import style


def draw(result: dict[str, Any], folder: Path) -> None:
    with style.styled():
        figure = style.new_figure(4.2, 2.9)
        axes = figure.subplots()
        for i, method in enumerate(result["methods"]):
            rows = [
                row
                for row in result["tables"]["sgd_sweep"]
                if row["method"] == method and row["avg"] is not None
            ]
            axes.errorbar(
                # a little apart, so that the bars of two methods stay readable
                [row["learning_rate"] * 1.04 ** (i - len(result["methods"]) / 2) for row in rows],
                [row["avg"] for row in rows],
                yerr=style.error_bars(interval(row, "avg") for row in rows),
                color=style.CYCLE[i],
                marker=style.MARKERS[i],
                ms=3.5,
                lw=1.1,
                elinewidth=0.7,
                label=method,
            )
        axes.axhline(result["base"][0], color=style.GREY, ls="--", lw=1, label="base")
        axes.set_xscale("log")
        rates = result["learning_rates"]
        axes.set_xticks(rates, [rate_label(rate) for rate in rates])
        axes.minorticks_off()
        axes.set_xlabel("learning rate (SGD)")
        axes.set_ylabel("average score (%), 95 % interval")
        figure.legend(loc="outside upper center", ncols=3)
        style.save(figure, folder / "figures", "sgd")
