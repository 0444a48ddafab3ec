"""Figures of the scores: every benchmark, and the average against the base."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from merit.config import Experiment
from merit.eval.report.cells import Cells
from merit.eval.report.comparison import compare
from merit.eval.report.style import GREY, interval_row, method_color, name_rows, panels
from merit.eval.results import Results


def draw_benchmarks(experiment: Experiment, results: Results, cells: Cells) -> Figure:
    """A panel per benchmark: each method's mean over seeds with its bootstrap interval."""
    names, base = results.benchmarks, _base(experiment)
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    height = 0.4 + rows * (0.4 + 0.13 * len(results.methods))
    figure, grid = panels(rows, columns, height, sharex=True, sharey=True)
    for axes, name in zip(grid, names, strict=False):
        name_rows(axes, results.methods)
        for y, method in enumerate(results.methods):
            cell, color = cells[method][name], method_color(experiment.methods[method])
            interval_row(axes, y, (cell.mean, cell.low, cell.high), color=color, ms=2.5)
        if base:
            axes.axvline(cells[base][name].mean, color=GREY, ls="--", lw=0.8)
        axes.set_title(f"{name}, n = {results.num_questions[name]}", fontsize=7)
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    dashed = "; dashed: the base" if base else ""
    figure.supxlabel(f"score (%), mean over seeds with 95 % bootstrap interval{dashed}", fontsize=7)
    return figure


def draw_average(experiment: Experiment, results: Results) -> Figure | None:
    """Average minus the base's, with paired intervals and seeds; None without a base method."""
    base = _base(experiment)
    if base is None:
        return None
    parts = {"All benchmarks": list(range(len(results.benchmarks)))}
    if 0 < len(results.closed) < len(results.benchmarks):
        parts["Closed benchmarks"] = results.closed
    height = 0.9 + 0.17 * len(results.methods)
    figure, grid = panels(1, len(parts), height, sharex=True, sharey=True)
    for axes, (title, kept) in zip(grid, parts.items(), strict=True):
        reference = float(results.averages(base, kept).mean())
        name_rows(axes, results.methods)
        for y, method in enumerate(results.methods):
            color = method_color(experiment.methods[method])
            found = compare(results, method, base, kept)
            interval_row(axes, y, (found.difference, found.low, found.high), color=color)
            if len(results.seeds[method]) > 1:
                values = results.averages(method, kept) - reference
                axes.plot(values, [y + 0.3] * len(values), "o", ms=2.2, mfc="none", color=color)
        axes.axvline(0.0, color=GREY, ls="--", lw=0.8)
        axes.set_title(f"{title}: base {reference:.1f} %")
    repeated = any(len(seeds) > 1 for seeds in results.seeds.values())
    circles = "; circles: seeds" if repeated else ""
    label = f"points above or below the base, 95 % paired bootstrap interval{circles}"
    figure.supxlabel(label, fontsize=7.5)
    return figure


def _base(experiment: Experiment) -> str | None:
    return next((name for name, m in experiment.methods.items() if m.partition == "base"), None)
