"""Figures of the partition: similarity heat map, PCA scatter with split lines, t-SNE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from merit.config import Experiment
from merit.config.branches import plan
from merit.errors import MeritError
from merit.eval.measuring.models import models_of
from merit.eval.report.style import BLACK, WIDTH, legend, panels, scatter
from merit.io.artifacts import Artifacts, read_json


@dataclass(frozen=True)
class PartitionView:
    """The partition that `report.partition` names; rows of all arrays in the order of `tasks`."""

    method: str
    tasks: list[str]
    families: list[str]
    groups: NDArray[np.int64]  # (T,)
    similarity: NDArray[np.float64]  # (T, T)
    embedding: NDArray[np.float64]  # (T, at least 2); a missing second axis is 0
    splits: list[dict[str, Any]]  # {"path", "axis", "threshold"}; none for random groups

    @property
    def order(self) -> NDArray[np.int64]:
        """Tasks by group, then along the first PCA axis."""
        return np.lexsort((self.embedding[:, 0], self.groups))


def load_partition(experiment: Experiment, artifacts: Artifacts, method: str) -> PartitionView:
    """Groups of the method's first seed. Raises MeritError where files disagree on the tasks."""
    model = models_of(experiment)[method][0]
    if not model.branches:
        raise MeritError(f"report.partition: {method!r} trains no branches, so it has no groups")
    key = plan(experiment).branches[model.branches[0]].partition
    entries = read_json(artifacts.mixture / "tasks.json")
    tasks = [entry["task"] for entry in entries]
    path = artifacts.partition / "partitions.json"
    assignment = read_json(path).get(key)
    if assignment is None:
        raise MeritError(f"{path}: no partition {key!r}; run the partition stage again")
    if set(assignment) != set(tasks):
        raise MeritError(f"{path}: {key}: other tasks than data/tasks.json; run it again")
    similarity, embedding = (_array(artifacts, n, len(tasks)) for n in ("similarity", "embedding"))
    if embedding.shape[1] < 2:
        embedding = np.pad(embedding, ((0, 0), (0, 2 - embedding.shape[1])))
    return PartitionView(
        method=method,
        tasks=tasks,
        families=[entry["family"] for entry in entries],
        groups=np.array([assignment[task] for task in tasks], dtype=np.int64),
        similarity=similarity,
        embedding=embedding,
        splits=read_json(artifacts.partition / "splits.json").get(key, []),
    )


def _array(artifacts: Artifacts, name: str, num_tasks: int) -> NDArray[np.float64]:
    path = artifacts.partition / f"{name}.npy"
    try:
        found = np.asarray(np.load(path, allow_pickle=False), dtype=np.float64)
    except (OSError, ValueError) as error:
        raise MeritError(f"{path}: not readable ({error}); run the partition stage again") from None
    if len(found) != num_tasks:
        raise MeritError(f"{path}: {len(found)} rows for {num_tasks} tasks; run it again")
    return found


def draw_similarity(view: PartitionView) -> Figure:
    """Cosine similarity of the mean task gradients, ordered by group, with the groups' borders."""
    order = view.order
    matrix = view.similarity[np.ix_(order, order)]
    off = matrix[~np.eye(len(matrix), dtype=bool)]
    if off.min() < 0:  # conflict: centre the colours on 0
        limit = float(np.quantile(np.abs(off), 0.99))
        colors: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    else:
        low, high = np.quantile(off, [0.01, 0.99])
        colors = {"cmap": "cividis", "vmin": float(low), "vmax": float(high)}
    figure, (axes,) = panels(1, 1, 4.4, width=5.2)
    axes.grid(False)
    image = axes.imshow(matrix, interpolation="nearest", **colors)
    groups, counts = np.unique(view.groups, return_counts=True)
    borders = np.cumsum(counts)
    for border in borders[:-1]:
        axes.axhline(border - 0.5, color="black", lw=0.7)
        axes.axvline(border - 0.5, color="black", lw=0.7)
    centres = borders - counts / 2 - 0.5
    axes.set_yticks(centres, [f"group {g} ({n})" for g, n in zip(groups, counts, strict=True)])
    axes.set_xticks(centres, [str(g) for g in groups])
    axes.tick_params(length=0)
    axes.set_xlabel("group (tasks ordered along PC1 inside each)")
    same = view.groups[:, None] == view.groups[None, :]
    inside = view.similarity[same & ~np.eye(len(same), dtype=bool)]
    between = view.similarity[~same]
    parts = (("within groups", inside), ("between groups", between))
    means = [f"{where} {values.mean():.3f}" for where, values in parts if values.size]
    axes.set_title(
        f"{len(view.tasks)} tasks in the groups of {view.method}\nmean cosine {', '.join(means)}"
    )
    bar = figure.colorbar(image, ax=axes, shrink=0.8, extend="both")
    bar.set_label("cosine similarity (colours end at the extreme 1 %)")
    bar.outline.set_visible(False)
    return figure


def draw_scatter(view: PartitionView) -> Figure:
    """Tasks in the PC1-PC2 plane with the split lines, families by colour and marker.

    A second panel shows PC1 and PC3 if the partition splits there. The tasks at the ends of the
    axes are numbered.
    """
    verticals = (1, 2) if any(split["axis"] == 2 for split in view.splits) else (1,)
    figure, grid = panels(1, len(verticals), 4.4, width=WIDTH if len(verticals) > 1 else 5.0)
    columns = view.embedding.T[: 1 + len(verticals)]
    ends = dict.fromkeys(int(i) for c in columns for i in (c.argmin(), c.argmax()))
    for axes, vertical in zip(grid, verticals, strict=True):
        points = view.embedding[:, [0, vertical]]
        scatter(axes, points, view.families)
        for number, task in enumerate(ends, 1):
            place = points[task : task + 1].T
            axes.plot(*place, "o", ms=8, mfc="white", mec=BLACK, mew=0.6)
            digit: dict[str, Any] = {"marker": f"${number}$", "ms": 4, "mew": 0.2, "color": BLACK}
            axes.plot(*place, ls="", label=view.tasks[task], **digit)
        _split_lines(axes, view.splits, vertical)
        axes.set(xlabel="PC1 score", ylabel=f"PC{vertical + 1} score")
    grid[0].set_title(f"{len(view.tasks)} tasks, splits of {view.method}")
    legend(figure, columns=4)
    return figure


def draw_tsne(view: PartitionView) -> Figure:
    """t-SNE of the task gradients on cosine distances, by family and by group."""
    points = tsne(view.similarity)
    figure, grid = panels(1, 2, 3.9, sharex=True, sharey=True)
    groups = [f"group {g}" for g in view.groups]
    titles = {"t-SNE, by family": view.families, f"By group of {view.method}": groups}
    for axes, (title, kinds) in zip(grid, titles.items(), strict=True):
        scatter(axes, points, kinds)
        axes.set(title=title, xticks=[], yticks=[])
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3)
    return figure


def tsne(similarity: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T, 2) t-SNE of the distances 1 - C; exact, on one thread, so that it is repeatable."""
    from sklearn.manifold import TSNE  # slow to import, and only needed here
    from threadpoolctl import threadpool_limits

    distance = np.clip(1.0 - similarity, 0.0, None)
    np.fill_diagonal(distance, 0.0)
    model = TSNE(
        metric="precomputed",
        init="random",
        method="exact",
        perplexity=min(30.0, (len(distance) - 1) / 3),
        random_state=0,
    )
    with threadpool_limits(limits=1):
        return np.asarray(model.fit_transform(distance), dtype=np.float64)


def _split_lines(axes: Axes, splits: list[dict[str, Any]], vertical: int) -> None:
    """The first axis' threshold, and those of axis `vertical` on their side of it.

    A path's digit j says on which side of the split along axis j a group lies: 0 at or below the
    threshold, 1 above. In the PC1-PC3 plane each side has two thresholds, one for either side of
    PC2; they differ by their dashes.
    """
    roots = [split["threshold"] for split in splits if split["axis"] == 0]
    if not roots:
        return
    axes.axvline(roots[0], color="black", lw=0.9)
    left, right = axes.get_xlim()
    for split in splits:
        if split["axis"] == vertical:
            path, label = split["path"], None
            ends = (left, roots[0]) if path[0] == "0" else (roots[0], right)
            if vertical == 2 and path[0] == "0":  # the other side has the same two
                label = f"PC3 split, tasks {'above' if path[1] == '1' else 'below'} that of PC2"
            dashes = "-" if vertical == 1 else {"0": "--", "1": ":"}[path[1]]
            axes.plot(ends, [split["threshold"]] * 2, color="black", lw=0.9, ls=dashes, label=label)
    axes.set_xlim(left, right)
