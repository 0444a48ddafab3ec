"""sgd: the average over the learning rate, a line per method, with the base's."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from merit.eval.measuring.scores import interval, rate_label
from merit.eval.report.style import GREY, error_bars, legend, mark, panels


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    figure, (axes,) = panels(1, 1, 3.0, width=5.0)
    for i, method in enumerate(result["methods"]):
        rows = [row for row in result["tables"]["sgd_sweep"] if row["method"] == method]
        rows = [row for row in rows if row["avg"] is not None]
        # a little apart, so that the bars of two methods stay readable
        rates = [row["learning_rate"] * 1.04 ** (i - len(result["methods"]) / 2) for row in rows]
        bars = error_bars(interval(row, "avg") for row in rows)
        axes.errorbar(
            rates, [row["avg"] for row in rows], bars, elinewidth=0.7, label=method, **mark(i)
        )
    axes.axhline(result["base"][0], color=GREY, ls="--", lw=1, label="base")
    axes.set_xscale("log")
    axes.set_xticks(result["learning_rates"], map(rate_label, result["learning_rates"]))
    axes.minorticks_off()
    axes.set(xlabel="learning rate (SGD)", ylabel="average score (%), 95 % interval")
    legend(figure, columns=5)
    return {"sgd": figure}
