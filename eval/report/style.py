"""One look for all figures, the shapes they share, and files whose bytes only the data decide."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from merit.config import Method
from merit.io.artifacts import atomic_write
from merit.method.rules import RULES

STYLE: dict[str, Any] = {
    "savefig.dpi": 150,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.04,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "pdf.fonttype": 42,
    "svg.hashsalt": "merit",
}
WIDTH = 6.75  # inches, a page's text
NO_METADATA: dict[str, dict[str, Any]] = {  # no date or version: the same data, the same bytes
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}

# Okabe and Ito's palette: told apart with every common colour blindness
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#7F7F7F"
CYCLE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK, GREY)
MARKERS = ("o", "^", "s", "D", "v", ">", "p", "h")
MOST = len(CYCLE)  # curves or kinds that a panel tells apart

PARTITION_COLORS = {  # one for each way of assigning tasks to groups
    "base": GREY,
    "soup": PURPLE,
    "shrunk": BLACK,
    **{name: rule.color for name, rule in RULES.items()},
}


def method_color(method: Method) -> str:
    """One colour for each way of assigning tasks to groups."""
    return PARTITION_COLORS[method.partition]


def mark(index: int) -> dict[str, Any]:
    """Colour and marker of the index-th curve or kind; `MOST` differ."""
    return {"color": CYCLE[index % MOST], "marker": MARKERS[index % MOST]}


def panels(
    rows: int, columns: int, height: float, *, width: float = WIDTH, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure outside pyplot's global state, and its axes row by row; call inside `styled()`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def legend(figure: Figure, columns: int = 4, **options: Any) -> None:
    """One legend below all panels, each label once."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()), list(handles),
        loc="outside lower center", ncols=columns, **options,
    )  # fmt: skip


def error_bars(intervals: Iterable[Sequence[float]]) -> list[list[float]]:
    """matplotlib's `yerr` or `xerr` of (value, low, high): what lies below and above each value."""
    found = list(intervals)
    return [[value - low for value, low, _ in found], [high - value for value, _, high in found]]


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """A row per name, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def interval_row(axes: Axes, y: float, interval: Sequence[Any], **look: Any) -> None:
    """(value, low, high) as a dot with its bar, in row `y`; without a bar if its ends are None."""
    look = dict[str, Any](fmt="o", ms=3.5, elinewidth=1.1) | look
    bars = None if interval[1] is None else error_bars([interval])
    axes.errorbar(interval[0], y, xerr=bars, **look)


def band(
    axes: Axes, x: Any, curves: Sequence[Any], *, color: str, label: str, mean: Any = None
) -> None:
    """The mean of curves over the same `x`, and the range that they span."""
    if len(curves) > 1:
        axes.fill_between(
            x, np.min(curves, axis=0), np.max(curves, axis=0), color=color, alpha=0.2, lw=0
        )
    axes.plot(x, np.mean(curves, axis=0) if mean is None else mean, color=color, label=label)


def scatter(axes: Axes, points: NDArray[np.float64], kinds: Sequence[str]) -> None:
    """Points (num_points, 2) by kind; of more than `MOST` kinds the rarest are "other"."""
    counts = Counter(kinds)
    shown = sorted(
        kind for kind, _ in counts.most_common(MOST if len(counts) <= MOST else MOST - 1)
    )
    for i, kind in enumerate([*shown, "other"]):
        chosen = np.array([k == kind if kind in counts else k not in shown for k in kinds])
        if chosen.any():
            axes.plot(*points[chosen].T, ls="", ms=4.5, mec="white", mew=0.3, label=kind, **mark(i))


def styled() -> AbstractContextManager[None]:
    """Draw inside this block."""
    return matplotlib.rc_context(STYLE)  # type: ignore[arg-type]


def save(figures: Mapping[str, Figure], folder: Path, kind: str = "png") -> None:
    """<name>.<kind> of every figure."""
    with styled():
        for name, figure in figures.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata=NO_METADATA[kind])
            atomic_write(folder / f"{name}.{kind}", buffer.getvalue())
