"""Names beside the points of a scatter, as many as fit without overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

# directions in the order of preference: right, left, above, below, diagonals
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8))
_NEAR = (4.0, 8.0)  # distances from the point, in printer's points
_FAR = (4.0, 8.0, 14.0, 22.0, 32.0, 44.0, 58.0, 74.0)  # for names that must appear: with a line
_LINE_FROM = 10.0
_LINE = {"arrowstyle": "-", "lw": 0.4, "color": "#888888", "shrinkA": 0, "shrinkB": 1}


def place_labels(
    axes: Axes,
    points: NDArray[np.float64],
    names: Sequence[str],
    order: Sequence[int],
    required: frozenset[int] = frozenset(),
    **style: Any,
) -> list[int]:
    """Write the names of `points` (num_points, 2) in the given order; returns those written.

    A name is skipped where it would cover a point, a line, another name or the frame; `required`
    ones may stand farther off, joined to their point by a thin line. The layout is frozen first,
    since what fits depends on it.
    """
    figure = axes.figure
    canvas = FigureCanvasAgg(figure)  # type: ignore[arg-type]
    canvas.draw()
    figure.set_layout_engine("none")  # type: ignore[union-attr]
    renderer = canvas.get_renderer()
    scale = figure.dpi / 72
    pixels = axes.transData.transform(points)
    taken = [Bbox.from_bounds(x - 2, y - 2, 4, 4).padded(scale) for x, y in pixels]
    taken += [artist.get_window_extent(renderer) for artist in (*axes.lines, *axes.texts)]
    frame = axes.get_window_extent(renderer)
    written = []
    for index in order:
        probe = axes.annotate(names[index], (0, 0), **style)
        size = np.array(Text.get_window_extent(probe, renderer).size)
        probe.remove()
        for distance in _FAR if index in required else _NEAR:
            found = _place(pixels[index], size, distance * scale, taken, frame)
            if found is None:
                continue
            (dx, dy), box = found
            axes.annotate(
                names[index],
                (float(points[index][0]), float(points[index][1])),
                xytext=(dx * distance, dy * distance),
                textcoords="offset points",
                ha=_align(dx, "left", "center", "right"),
                va=_align(dy, "bottom", "center", "top"),
                arrowprops=_LINE if distance > _LINE_FROM else None,
                **style,
            )
            taken.append(box)
            written.append(index)
            break
    return written


def _place(
    point: NDArray[np.float64],
    size: NDArray[np.float64],
    distance: float,
    taken: list[Bbox],
    frame: Bbox,
) -> tuple[tuple[float, float], Bbox] | None:
    """The first free direction at this distance, and the name's box there; all in pixels."""
    for dx, dy in _DIRECTIONS:
        x = point[0] + dx * distance - size[0] * _align(dx, 0.0, 0.5, 1.0)
        y = point[1] + dy * distance - size[1] * _align(dy, 0.0, 0.5, 1.0)
        box = Bbox.from_bounds(x, y, size[0], size[1])
        inside = frame.x0 <= x and box.x1 <= frame.x1 and frame.y0 <= y and box.y1 <= frame.y1
        if inside and not any(box.overlaps(other) for other in taken):
            return (dx, dy), box
    return None


T = TypeVar("T")


def _align(direction: float, positive: T, zero: T, negative: T) -> T:
    return positive if direction > 0 else negative if direction < 0 else zero
