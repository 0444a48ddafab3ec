"""Figure of the study `mergers`: scores over the scale, and at the default and the chosen one."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from merit.eval.report.style import GREY, interval_row, legend, mark, name_rows, panels


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    scales, mergers = result["scales"], list(result["curves"])
    figure, (left, right) = panels(1, 2, 3.2, width_ratios=[3, 2])
    name_rows(right, mergers)
    for i, (merger, points) in enumerate(result["curves"].items()):
        values, look = [point[0] for point in points], mark(i)
        left.plot(scales, values, lw=1.1, label=merger, **look)
        chosen = scales.index(result["best"][merger])
        left.plot(scales[chosen], values[chosen], "o", ms=9, mfc="none", color=look["color"])
        for row in result["tables"]["table12_posthoc_merging_7b"]:
            if row["merge"] == merger:
                found, best = (row["mean"], row["low"], row["high"]), row["tuning"] == "best"
                y, fill = (i + 0.16, look["color"]) if best else (i - 0.16, "white")
                interval_row(right, y, found, color=look["color"], fmt=look["marker"], mfc=fill)
    left.axhline(result["base"]["validation"][0], color=GREY, ls="--", lw=1, label="base")
    right.axvline(result["base"]["test"][0], color=GREY, ls="--", lw=1)
    left.set_xscale("log", base=2)
    left.set_xticks(scales, [f"{scale:g}" for scale in scales])
    left.minorticks_off()
    left.set_xlabel("scale of the merged displacement (1: default)")
    left.set_ylabel("average score, validation (%)")
    left.set_title("Score over scale; circle: chosen")
    right.set_xlabel("average score, test (%), 95 % interval")
    right.set_title("Default (open), chosen (filled)")
    legend(figure, columns=8)
    return {"mergers": figure}
