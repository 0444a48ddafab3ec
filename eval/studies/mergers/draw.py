"""Figure of the study `mergers`: scores over the scale, and at the default and the chosen one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merit.eval.report import style


def draw(result: dict[str, Any], folder: Path) -> None:
    scales, best = result["scales"], result["best"]
    rows = result["tables"]["table12_posthoc_merging_7b"]
    with style.styled():
        figure = style.new_figure(7.2, 3.0)
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        for i, (merger, points) in enumerate(result["curves"].items()):
            color, marker = style.group_mark(i)
            values = [point[0] for point in points]
            left.plot(scales, values, color=color, marker=marker, ms=3.5, lw=1.1, label=merger)
            chosen = scales.index(best[merger])
            left.plot(scales[chosen], values[chosen], "o", ms=9, mfc="none", mec=color, mew=1.0)
        left.axhline(result["base"]["validation"][0], color=style.GREY, ls="--", lw=1, label="base")
        left.set_xscale("log", base=2)
        left.set_xticks(scales, [f"{scale:g}" for scale in scales])
        left.minorticks_off()
        left.set_xlabel("scale of the merged displacement (1: default)")
        left.set_ylabel("average score, validation (%)")
        left.set_title("Score over scale; circle: chosen")
        for tuning, shift, fill in (("default", 0.16, "none"), ("best", -0.16, None)):
            for row in rows:
                if row["tuning"] != tuning:
                    continue
                i = list(result["curves"]).index(row["merge"])
                color, marker = style.group_mark(i)
                right.errorbar(
                    row["mean"],
                    len(result["curves"]) - 1 - i + shift,
                    xerr=style.error_bars([(row["mean"], row["low"], row["high"])]),
                    fmt=marker,
                    ms=4,
                    lw=0.9,
                    color=color,
                    mfc=fill or color,
                )
        right.axvline(result["base"]["test"][0], color=style.GREY, ls="--", lw=1)
        right.set_yticks(range(len(best)), list(reversed(result["curves"])))
        right.set_xlabel("average score, test (%), 95 % interval")
        right.set_title("Default (open), chosen (filled)")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=8)
        style.save(figure, folder / "figures", "mergers")
