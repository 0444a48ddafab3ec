"""One look for all figures, and files whose bytes depend on the data alone."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from merit.config import Method
from merit.io.artifacts import atomic_write
from merit.method.rules import RULES

STYLE: dict[str, Any] = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "merit",
}

LARGE_PNG = 250_000  # bytes; the committed pictures stay below 300 kB

# Okabe and Ito's palette: told apart with every common colour blindness
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE, GREY = "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#7F7F7F"
CYCLE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK, GREY)
LARGER = {"*": 2.0, "P": 1.5, "X": 1.4}  # markers that cover less than their box
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")

PARTITION_COLORS = {  # one for each way of assigning tasks to groups
    "base": GREY,
    "soup": PURPLE,
    "shrunk": BLACK,
    **{name: rule.color for name, rule in RULES.items()},
}


def method_color(method: Method) -> str:
    """One colour for each way of assigning tasks to groups."""
    return PARTITION_COLORS[method.partition]


def group_mark(index: int) -> tuple[str, str]:
    """Colour and marker of the index-th family or group; 64 pairs, colours first."""
    return CYCLE[index % len(CYCLE)], MARKERS[(index // len(CYCLE) + index) % len(MARKERS)]


def error_bars(intervals: Iterable[Sequence[float]]) -> list[list[float]]:
    """matplotlib's `yerr` or `xerr` of (value, low, high): what lies below and above each value."""
    found = list(intervals)
    return [[value - low for value, low, _ in found], [high - value for value, _, high in found]]


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, outside pyplot's global state; call inside `styled()`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def styled() -> AbstractContextManager[None]:
    """Draw and save inside this block."""
    return matplotlib.rc_context(STYLE)  # type: ignore[arg-type]


def save(figure: Figure, folder: Path, name: str) -> None:
    """<name>.png and <name>.pdf without dates or versions: the same data give the same bytes."""
    with styled():
        for suffix, metadata in (
            ("png", {"Software": None}),
            ("pdf", {"CreationDate": None, "Creator": None, "Producer": None}),
        ):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, metadata=metadata)
            figure.set_layout_engine("none")  # laid out once: both files are alike
            content = _palette(buffer) if suffix == "png" else buffer.getvalue()
            atomic_write(folder / f"{name}.{suffix}", content)


def _palette(png: io.BytesIO) -> bytes:
    """The picture as it is, or with 256 colours (a third of the size) where it is a large one."""
    if len(png.getvalue()) <= LARGE_PNG:
        return png.getvalue()
    small = io.BytesIO()
    picture = Image.open(png).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(small, format="png", optimize=True)
    return small.getvalue()
