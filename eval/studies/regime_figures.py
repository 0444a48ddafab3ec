"""Figures of the regime study: heat maps of differences, and the shrinkage paths."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.report import style
from eval.studies.compare import Interval, verdict


def draw_maps(
    result: dict[str, Any], folder: Path, pairs: Sequence[tuple[str, str]], titles: dict[str, str]
) -> None:
    """A row a base, a column a difference; * where the interval excludes 0."""
    rates, epochs, strengths = (result[k] for k in ("learning_rates", "epochs", "strengths"))
    cells = {
        (c["base"], c["learning_rate"], c["epochs"]): c["differences"] for c in result["cells"]
    }
    values = [abs(v) for found in cells.values() if found for v, _, _ in found.values()]
    limit = max([1.0, *values])
    with style.styled():
        height = 0.75 + len(strengths) * (0.45 + 0.52 * len(rates))
        figure = style.new_figure(1.2 + len(pairs) * max(1.6, 0.85 * len(epochs)), height)
        grid = figure.subplots(len(strengths), len(pairs), squeeze=False, sharex=True, sharey=True)
        for (row, strength), (column, (a, b)) in itertools.product(
            enumerate(strengths), enumerate(pairs)
        ):
            axes = grid[row][column]
            found: list[list[Interval | None]] = [
                [(cells[strength, rate, e] or {}).get(f"{a}-{b}") for e in epochs] for rate in rates
            ]
            shades = [[np.nan if cell is None else cell[0] for cell in line] for line in found]
            axes.set_facecolor("#bbbbbb")
            image = axes.imshow(shades, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
            for (i, line), (j, _) in itertools.product(enumerate(found), enumerate(epochs)):
                color = "white" if abs(shades[i][j]) > 0.6 * limit else "black"
                axes.text(j, i, _cell_text(line[j]), ha="center", va="center", fontsize=6.5,
                          color=color)  # fmt: skip
            axes.grid(visible=False)
            axes.set_xticks(range(len(epochs)), [f"{e:g}" for e in epochs])
            axes.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
            if row == 0:
                axes.set_title(f"{titles[a]} − {titles[b]}")
            if row == len(strengths) - 1:
                axes.set_xlabel("epochs")
            if column == 0:
                axes.set_ylabel(f"{strength}\nlearning rate")
        figure.colorbar(image, ax=grid, label="points", shrink=0.9, aspect=25)
        style.save(figure, folder, "regime")


def _cell_text(found: Interval | None) -> str:
    if found is None:
        return "not\nfinite"
    value, low, high = found
    mark = "" if verdict(found) == "undecided" else " *"
    return f"{value:+.1f}{mark}\n[{low:+.1f}, {high:+.1f}]"


def draw_paths(result: dict[str, Any], folder: Path, titles: dict[str, str]) -> None:
    """Average over the distance from the base; the joint path as a line, merged models as marks."""
    rates, epochs, strengths = (result[k] for k in ("learning_rates", "epochs", "strengths"))
    cells = {(c["base"], c["learning_rate"], c["epochs"]): c for c in result["cells"]}
    columns = list(itertools.product(strengths, epochs))
    with style.styled():
        figure = style.new_figure(0.8 + 1.7 * len(columns), 0.5 + 1.45 * len(rates))
        grid = figure.subplots(len(rates), len(columns), squeeze=False, sharey=True)
        for (i, rate), (j, (strength, e)) in itertools.product(
            enumerate(rates), enumerate(columns)
        ):
            axes, entry = grid[i][j], cells[strength, rate, e]
            axes.set_title(f"{strength}, {rate:g}, {e:g} ep", fontsize=7.5)
            if entry["averages"] is None:
                axes.text(0.5, 0.5, "not finite", transform=axes.transAxes, ha="center")
                continue
            reach = entry["distances"]["joint"]
            path = [*entry["path"], (entry["alpha"], entry["averages"]["shrunk"][0])]
            alphas, values = zip(*sorted(map(tuple, path)), strict=True)
            axes.plot([a * reach for a in alphas], values, color=style.VERMILION, marker=".", ms=3,
                      lw=1, label="base → joint")  # fmt: skip
            for kind, marker, color in (("random", "^", style.BLUE), ("merit", "s", style.GREEN)):
                value, low, high = entry["averages"][kind]
                axes.errorbar(entry["distances"][kind], value, [[value - low], [high - value]],
                              color=color, marker=marker, ms=4, lw=0.8, ls="none",
                              label=titles[kind])  # fmt: skip
            if j == 0:
                axes.set_ylabel("average (%)")
            if i == len(rates) - 1:
                axes.set_xlabel("distance from the base")
        handles, labels = next(
            (axes.get_legend_handles_labels() for line in grid for axes in line if axes.lines),
            ([], []),
        )
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
        style.save(figure, folder, "regime_paths")
