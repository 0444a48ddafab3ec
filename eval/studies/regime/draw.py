"""regime: averages and displacements over the learning rate; regime_differences: intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from merit.eval.measuring.scores import rate_label
from merit.eval.report.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    error_bars,
    interval_row,
    legend,
    name_rows,
    panels,
)

LOOKS: dict[str, dict[str, Any]] = {
    "joint": {"color": VERMILION, "marker": "s", "label": "joint training"},
    "random": {"color": SKY, "marker": "^", "label": "split at random, merged"},
    "merit": {"color": GREEN, "marker": "o", "label": "MERIT: split by conflict, merged"},
    "shrunk": {
        **{"color": BLACK, "marker": "D", "ls": "--"},
        "label": "joint training at MERIT's distance",
    },
}
APART = 1.03  # lines lie side by side by this factor of the rate, so that bars stay readable
TITLES = {"merit": "MERIT", "random": "random", "joint": "joint", "shrunk": "shrunk"}


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    return {"regime": _draw_regime(result), "regime_differences": _draw_differences(result)}


def _draw_regime(result: dict[str, Any]) -> Figure:
    """A column per base: averages over the learning rate, and below how far the models moved."""
    bases, rates = result["bases"], result["learning_rates"]
    limit = 100 * result["thresholds"]["joint_displacement"]
    figure, grid = panels(2, len(bases), 4.4, sharex=True, sharey="row", height_ratios=[2.2, 1])
    for i, base in enumerate(bases):
        scores, moves = grid[i], grid[i + len(bases)]
        scores.set_title(_title(base))
        _draw_base(scores, moves, result, base["base"])
        moves.axhline(limit, color=PURPLE, ls=":", label=f"merge-ready: joint below {limit:g} %")
        moves.set_xlabel("learning rate")
        for axes in (scores, moves):
            own = result["own_learning_rate"]
            axes.axvline(own, color=GREY, lw=0.6, label="learning rate of the main results")
    scores.set_xscale("log")
    scores.set_xlim(rates[0] / 1.35, rates[-1] * 1.35)
    scores.set_xticks(rates, [rate_label(rate) for rate in rates])
    scores.minorticks_off()
    moves.set_yscale("log")
    moves.yaxis.set_major_formatter("{x:g}")
    grid[0].set_ylabel(f"average of {result['num_benchmarks']} benchmarks (%)")
    grid[len(bases)].set_ylabel("distance from the\nbase (% of its norm)")
    legend(figure, columns=3)
    return figure


def _draw_base(scores: Axes, moves: Axes, result: dict[str, Any], base: str) -> None:
    cells = [c for c in result["cells"] if c["base"] == base]
    done = [c for c in cells if c["averages"]]
    if done:
        level = done[0]["averages"]["base"][0]
        scores.axhline(level, color=GREY, ls="--", lw=1, label="base, not fine-tuned")
    for i, (kind, look) in enumerate(LOOKS.items()):
        rates = np.array([c["learning_rate"] for c in done]) * APART ** (i - 1.5)
        found = [c["averages"][kind] for c in done]
        values, bars = [value for value, _, _ in found], error_bars(found)
        if kind == "random" and (draws := result["num_random"]) > 1:
            look = look | {"label": f"{look['label']}, mean of {draws} draws"}
        scores.errorbar(rates, values, bars, elinewidth=0.7, **look)
        if kind != "shrunk":  # it lies at MERIT's distance
            moves.plot(rates, [100 * c["relative_displacements"][kind] for c in done], **look)
    failed = [c["learning_rate"] for c in cells if not c["averages"]]
    place = scores.get_xaxis_transform()
    if failed:
        scores.plot(
            failed, [0.03] * len(failed), "x", color=BLACK, transform=place, label="not finite"
        )


def _title(base: dict[str, Any]) -> str:
    known = base["known_skills"]
    count = "" if known is None else f" (knows {known} of {base['num_skills']})"
    return f"The base {base['base']}{count}"


def _draw_differences(result: dict[str, Any]) -> Figure:
    """A panel per difference; a row per base and learning rate."""
    rows = result["tables"]["regime_differences"]
    pairs = list(dict.fromkeys((row["ours"], row["theirs"]) for row in rows))
    order = {base["base"]: i for i, base in enumerate(result["bases"])}
    cells = sorted(result["cells"], key=lambda c: (order[c["base"]], c["learning_rate"]))
    figure, grid = panels(1, len(pairs), 0.9 + 0.2 * len(cells), sharex=True, sharey=True)
    for axes, (a, b) in zip(grid, pairs, strict=True):
        name_rows(axes, [rate_label(c["learning_rate"]) for c in cells])
        for y, cell in enumerate(cells):
            color = (BLUE, ORANGE)[order[cell["base"]] % 2]
            label = f"the base {cell['base']}"
            if found := (cell["differences"] or {}).get(f"{a}-{b}"):
                interval_row(axes, y, found, color=color, label=label)
        axes.axvline(0, color=GREY, ls="--", lw=0.8)
        axes.set_title(f"{TITLES[a]} - {TITLES[b]}")
    grid[0].set_ylabel("learning rate")
    grid[len(pairs) // 2].set_xlabel("points, 95 % interval")
    legend(figure)
    return figure
