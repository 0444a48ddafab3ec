"""Figures of the scores: every benchmark, and the average against the base."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from merit.config import Experiment
from merit.eval.benchmarks import BENCHMARKS
from merit.eval.report.cells import Cells
from merit.eval.report.comparison import compare
from merit.eval.report.style import GREY, method_color, new_figure
from merit.eval.results import Results


def draw_benchmarks(experiment: Experiment, results: Results, cells: Cells) -> Figure:
    """A panel a benchmark: one dot a method (mean over seeds) with its bootstrap interval."""
    num_columns = min(4, len(results.benchmarks))
    num_rows = math.ceil(len(results.benchmarks) / num_columns)
    height = num_rows * (0.7 + 0.16 * len(results.methods)) + 0.4
    figure = new_figure(2.4 * num_columns + 1.0, height)
    grid = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False)
    base = _base(experiment)
    for b, name in enumerate(results.benchmarks):
        axes = grid[b // num_columns][b % num_columns]
        for y, method in enumerate(results.methods):
            cell = cells[method][name]
            color = method_color(experiment.methods[method])
            _dot(axes, y, cell.mean, (cell.low, cell.high), color)
        if base:
            axes.axvline(cells[base][name].mean, color=GREY, ls="--", lw=0.8)
        category = f"{BENCHMARKS[name].category}, " if name in BENCHMARKS else ""
        title = f"{name}\n{category}n = {results.num_questions[name]}"
        axes.set_title(title, fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _method_ticks(axes, results)
    for spare in range(len(results.benchmarks), num_rows * num_columns):
        grid[spare // num_columns][spare % num_columns].set_visible(False)
    dashed = "; dashed: the base" if base else ""
    figure.supxlabel(
        f"score in percent (mean over seeds; bars: 95 % bootstrap interval{dashed})",
        fontsize=8,
    )
    return figure


def draw_average(experiment: Experiment, results: Results) -> Figure | None:
    """Average minus the base's, with paired intervals and seeds; None without a base method."""
    base = _base(experiment)
    if base is None:
        return None
    panels = {"Average of all benchmarks": list(range(len(results.benchmarks)))}
    if 0 < len(results.closed) < len(results.benchmarks):
        panels["Average without open-ended benchmarks"] = results.closed
    figure = new_figure(3.7 * len(panels) + 1.0, 1.2 + 0.2 * len(results.methods))
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, kept) in zip(grid, panels.items(), strict=True):
        reference = float(results.averages(base, kept).mean())
        for y, method in enumerate(results.methods):
            color = method_color(experiment.methods[method])
            if method == base:
                axes.plot([0.0], [y], "o", color=color, ms=4)
            else:
                found = compare(results, method, base, kept)
                _dot(axes, y, found.difference, (found.low, found.high), color)
            if len(results.seeds[method]) > 1:
                values = results.averages(method, kept) - reference
                axes.plot(
                    values, [y + 0.28] * len(values), "o", ms=2.6, mfc="none", mec=color, mew=0.6
                )
        axes.axvline(0.0, color=GREY, ls="--", lw=0.8)
        axes.set_title(f"{title}\nbase = {reference:.1f}")
        _method_ticks(axes, results)
    figure.supxlabel(
        "points above or below the base\n"
        "(bars: 95 % paired bootstrap interval; circles: single seeds)",
        fontsize=8,
    )
    return figure


def _base(experiment: Experiment) -> str | None:
    bases = [name for name, m in experiment.methods.items() if m.partition == "base"]
    return bases[0] if bases else None


def _dot(axes: Axes, y: float, mean: float, limits: tuple[float, float], color: str) -> None:
    axes.plot(limits, (y, y), color=color, lw=1.3, solid_capstyle="butt")
    axes.plot([mean], [y], "o", color=color, ms=4)


def _method_ticks(axes: Axes, results: Results) -> None:
    axes.set_yticks(range(len(results.methods)), results.methods)
    axes.set_ylim(len(results.methods) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
