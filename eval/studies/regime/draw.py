"""regime: averages and displacements over the learning rate. regime_differences: a heat map."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from merit.eval.measuring.scores import Interval, rate_label, verdict
from merit.eval.report import style

LOOKS: dict[str, dict[str, Any]] = {
    "joint": {"color": style.VERMILION, "marker": "s", "ls": "-"},
    "random": {"color": style.SKY, "marker": "^", "ls": "-"},
    "merit": {"color": style.GREEN, "marker": "o", "ls": "-"},
    "shrunk": {"color": style.BLACK, "marker": "D", "ls": (0, (4, 2))},
}
APART = 1.03  # lines lie side by side by this factor of the rate, so that bars stay readable
NOT_TRAINED, OWN_RATE = "base, not fine-tuned", "learning rate of the main results"
TITLES = {"merit": "MERIT", "random": "random", "joint": "joint", "shrunk": "shrunk"}


def draw(result: dict[str, Any], folder: Path) -> None:
    _draw_regime(result, folder / "figures")
    _draw_differences(result, folder / "figures")


def _draw_regime(result: dict[str, Any], folder: Path) -> None:
    """A column a base: averages over the learning rate, and below how far the models moved."""
    bases, limit = result["bases"], result["thresholds"]["joint_displacement"]
    names, threshold = _names(result), f"merge-ready: joint training below {100 * limit:g} %"
    with style.styled():
        figure = style.new_figure(1.2 + 2.9 * len(bases), 5.0)
        grid = figure.subplots(
            2, len(bases), squeeze=False, sharex=True, sharey="row", height_ratios=[2.2, 1]
        )
        for (scores, moves), base in zip(grid.T, bases, strict=True):
            cells = [c for c in result["cells"] if c["base"] == base["base"] and c["averages"]]
            scores.set_title(_title(base), fontsize=8.5)
            if cells:
                level = cells[0]["averages"]["base"][0]
                scores.axhline(level, color=style.GREY, ls="--", lw=1, label=NOT_TRAINED)
            for i, (kind, look) in enumerate(LOOKS.items()):
                aside = APART ** (i - 1.5)
                _line(scores, cells, kind, aside, look | {"label": names[kind]})
                if kind != "shrunk":  # it lies at MERIT's distance
                    rates = [c["learning_rate"] * aside for c in cells]
                    moved = [100 * c["relative_displacements"][kind] for c in cells]
                    moves.plot(rates, moved, ms=3.5, lw=1.1, **look)
            moves.axhline(100 * limit, color=style.PURPLE, ls=":", lw=1.2, label=threshold)
            moves.set_xlabel("learning rate")
            for axes in (scores, moves):
                rate = result["own_learning_rate"]
                axes.axvline(rate, color=style.GREY, lw=0.6, label=OWN_RATE)
            _mark_failures(scores, result, base)
        _scale(grid, result, limit)
        handles = {
            label: handle
            for axes in grid.flat
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        order = [NOT_TRAINED, *names.values(), OWN_RATE, threshold]
        shown = [label for label in order if label in handles]
        figure.legend(
            [handles[label] for label in shown], shown,
            loc="outside upper center", ncols=len(bases),
        )  # fmt: skip
        style.save(figure, folder, "regime")


def _names(result: dict[str, Any]) -> dict[str, str]:
    """What the legend says, for a reader who knows no method's name."""
    methods, draws = result["methods"], result["num_random"]
    mean = f", mean of {draws} draws" if draws > 1 else ""
    return {
        "joint": f"joint training on all tasks ({methods['joint']})",
        "random": f"tasks split at random, merged ({methods['random']}{mean})",
        "merit": f"MERIT: tasks split by conflict, merged ({methods['merit']})",
        "shrunk": "control: joint training shrunk to MERIT's distance",
    }


def _title(base: dict[str, Any]) -> str:
    known = base["known_skills"]
    count = "" if known is None else f" (knows {known} of {base['num_skills']})"
    return f"The base {base['base']}{count}"


def _mark_failures(axes: Axes, result: dict[str, Any], base: dict[str, Any]) -> None:
    for cell in result["cells"]:
        if cell["base"] == base["base"] and cell["averages"] is None:
            place = axes.get_xaxis_transform()
            axes.text(cell["learning_rate"], 0.02, "training\nnot finite", transform=place,
                      ha="center", fontsize=6.5)  # fmt: skip


def _line(
    axes: Axes, cells: Sequence[dict[str, Any]], kind: str, aside: float, look: dict[str, Any]
) -> None:
    found = [cell["averages"][kind] for cell in cells]
    axes.errorbar(
        [cell["learning_rate"] * aside for cell in cells],
        [value for value, _, _ in found],
        yerr=style.error_bars(found),
        ms=3.5,
        lw=1.2,
        elinewidth=0.7,
        **look,
    )


def _scale(grid: np.ndarray, result: dict[str, Any], limit: float) -> None:
    """Axes, ticks and their words; the panels of a row share their scale."""
    rates = result["learning_rates"]
    first = grid[1][0]
    for axes in grid.flat:
        axes.set_xscale("log")
        axes.set_xlim(rates[0] / 1.35, rates[-1] * 1.35)
        axes.set_xticks(rates, [rate_label(rate) for rate in rates])
        axes.minorticks_off()
    grid[0][0].set_ylabel(f"average of {result['num_benchmarks']} benchmarks (%),\n95 % interval")
    moved = [
        100 * value
        for cell in result["cells"]
        for kind, value in (cell["relative_displacements"] or {}).items()
        if kind in ("joint", "random", "merit") and value > 0
    ]
    low, high = min([100 * limit, *moved]) / 1.4, max([100 * limit, *moved]) * 1.6
    first.set_yscale("log")
    first.set_ylim(low, high)
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= tick <= high]
    first.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    first.minorticks_off()
    first.set_ylabel("distance from the\nbase (% of its norm)")


def _draw_differences(result: dict[str, Any], folder: Path) -> None:
    """A block of rows a base, a row a learning rate, a panel a difference.

    * where the interval excludes 0.
    """
    rates, bases = result["learning_rates"], result["bases"]
    rows = result["tables"]["regime_differences"]
    pairs = list(dict.fromkeys((row["ours"], row["theirs"]) for row in rows))
    cells = {(c["base"], c["learning_rate"]): c["differences"] for c in result["cells"]}
    values = [abs(v) for found in cells.values() if found for v, _, _ in found.values()]
    limit = max([1.0, *values])
    with style.styled():
        height = 0.55 + len(bases) * (0.25 + 0.36 * len(rates))
        figure = style.new_figure(1.6 + len(pairs) * 1.1, height)
        grid = figure.subplots(len(bases), len(pairs), squeeze=False, sharex=True, sharey=True)
        for (row, base), (column, (a, b)) in itertools.product(enumerate(bases), enumerate(pairs)):
            axes = grid[row][column]
            found: list[Interval | None] = [
                (cells[base["base"], rate] or {}).get(f"{a}-{b}") for rate in rates
            ]
            shades = [[np.nan if cell is None else cell[0]] for cell in found]
            axes.set_facecolor("#bbbbbb")
            image = axes.imshow(shades, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
            for i, cell in enumerate(found):
                color = "white" if abs(shades[i][0]) > 0.6 * limit else "black"
                axes.text(0, i, _cell_text(cell), ha="center", va="center", fontsize=6.5,
                          color=color)  # fmt: skip
            axes.grid(visible=False)
            axes.set_xticks([])
            axes.set_yticks(range(len(rates)), [rate_label(rate) for rate in rates])
            if row == 0:
                axes.set_title(f"{TITLES[a]} − {TITLES[b]}", fontsize=7)
            if column == 0:
                axes.set_ylabel(f"base {base['base']}\nlearning rate", fontsize=7)
        figure.colorbar(image, ax=grid, label="points (* decided)", shrink=0.9, aspect=25)
        style.save(figure, folder, "regime_differences")


def _cell_text(found: Interval | None) -> str:
    if found is None:
        return "not\nfinite"
    value, low, high = found
    mark = "" if verdict(found) == "undecided" else " *"
    return f"{value:+.1f}{mark}\n[{low:+.1f}, {high:+.1f}]"
