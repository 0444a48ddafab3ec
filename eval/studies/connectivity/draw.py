"""connectivity: how far the loss rises above the straight line between a path's ends."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from merit.eval.report.style import BLACK, MOST, mark, panels


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    alphas = np.array(result["alphas"])
    rises = {
        path.replace("-", " to "): curve - np.interp(alphas, (0, 1), (curve[0], curve[-1]))
        for path, curve in ((path, np.array(c)) for path, c in result["curves"].items())
    }
    kinds = {
        "Between branches": [path for path in rises if not path.endswith("merged")],
        "From a branch to the merged model": [path for path in rises if path.endswith("merged")],
    }
    figure, grid = panels(1, 2, 3.2, sharex=True, sharey=True)
    for axes, (title, paths) in zip(grid, kinds.items(), strict=True):
        shown = sorted(paths, key=lambda path: -rises[path].max())[:MOST]
        for i, path in enumerate(sorted(shown, key=paths.index)):
            axes.plot(alphas, rises[path], ms=2.5, lw=1, label=path, **mark(i))
        axes.axhline(0, color=BLACK, lw=0.8)
        few = "" if len(shown) == len(paths) else f", highest {len(shown)} of {len(paths)}"
        axes.set(title=title + few, xlabel="alpha (0: first model, 1: second model)")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
    grid[0].set_ylabel("loss above the straight line\n(a barrier is above 0)")
    return {"connectivity": figure}
