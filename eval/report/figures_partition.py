"""Figures of the partition: similarity heat map, PCA scatter with split lines, t-SNE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from merit.config import Experiment
from merit.config.branches import plan
from merit.errors import MeritError
from merit.eval.report.point_labels import place_labels
from merit.eval.report.style import LARGER, group_mark, new_figure
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
    todo = plan(experiment)
    model = next(model for model in todo.models.values() if model.method == method)
    if not model.branches:
        raise MeritError(f"report.partition: {method!r} trains no branches, so it has no groups")
    key = todo.branches[model.branches[0]].partition
    entries = read_json(artifacts.mixture / "tasks.json")
    tasks = [entry["task"] for entry in entries]
    path = artifacts.partition / "partitions.json"
    assignment = read_json(path).get(key)
    if assignment is None:
        raise MeritError(f"{path}: no partition {key!r}; run the partition stage again")
    if set(assignment) != set(tasks):
        raise MeritError(f"{path}: {key}: other tasks than data/tasks.json; run it again")
    similarity = _array(artifacts, "similarity")
    embedding = _array(artifacts, "embedding")
    for name, array in (("similarity", similarity), ("embedding", embedding)):
        if len(array) != len(tasks):
            file = artifacts.partition / f"{name}.npy"
            raise MeritError(f"{file}: {len(array)} rows for {len(tasks)} tasks; run it again")
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


def _array(artifacts: Artifacts, name: str) -> NDArray[np.float64]:
    path = artifacts.partition / f"{name}.npy"
    try:
        return np.asarray(np.load(path, allow_pickle=False), dtype=np.float64)
    except (OSError, ValueError) as error:
        raise MeritError(f"{path}: not readable ({error}); run the partition stage again") from None


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
    figure = new_figure(5.6, 5.0)
    axes = figure.subplots()
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
        f"Cosine similarity of {len(view.tasks)} task gradients, groups of {view.method}\n"
        f"mean cosine {', '.join(means)}"
    )
    bar = figure.colorbar(image, ax=axes, shrink=0.8, extend="both")
    bar.set_label("cosine similarity (colours end at the extreme 1 % off the diagonal)")
    bar.outline.set_visible(False)
    return figure


def draw_scatter(view: PartitionView) -> Figure:
    """PCA scores of the tasks with the split lines; families by colour and marker.

    The first panel shows PC1 and PC2, a second one PC1 and PC3 where the partition splits there.
    Names: the farthest task of every family, then as many others, from the outside in, as fit.
    """
    third = any(split["axis"] == 2 for split in view.splits)
    figure = new_figure(8.6, 11.4 if third else 6.4)
    panels = figure.subplots(2 if third else 1, 1, squeeze=False)[:, 0]
    for axes, vertical in zip(panels, (1, 2), strict=False):
        _scatter(axes, view.embedding[:, [0, vertical]], view.families)
        axes.margins(0.06)
        _split_lines(axes, view.splits, vertical)
        axes.set_xlabel("PC1 score")
        axes.set_ylabel(f"PC{vertical + 1} score")
    panels[0].set_title(f"Tasks in the PC1-PC2 plane of the cosine matrix, splits of {view.method}")
    if third:
        panels[1].set_title("The same tasks in the PC1-PC3 plane")
    _legend(figure, panels[0])
    for axes, vertical in zip(panels, (1, 2), strict=False):
        points = view.embedding[:, [0, vertical]]
        first = _farthest_by_family(points, view.families)
        distance = _distance(points)
        others = [i for i in np.argsort(-distance, kind="stable") if i not in first]
        names = [str(task) for task in view.tasks]
        place_labels(axes, points, names, [*first, *others], frozenset(first), fontsize=5.5)
    return figure


def draw_tsne(view: PartitionView, seed: int = 0) -> Figure:
    """t-SNE of the task gradients on cosine distances, by family and by group with KDE contours."""
    points = tsne(view.similarity, seed)
    figure = new_figure(9.4, 4.6)
    left, right = figure.subplots(1, 2)
    _scatter(left, points, view.families)
    groups = [f"group {g}" for g in view.groups]
    _contours(right, points, groups)
    _scatter(right, points, groups)
    left.set_title("t-SNE of the task gradients (cosine distance), by family")
    right.set_title(
        f"The same points by group of {view.method}\n"
        "kernel density contours around half and nine tenths of a group"
    )
    for axes in (left, right):
        axes.set(xlim=right.get_xlim(), ylim=right.get_ylim())
        axes.set_xticks([])
        axes.set_yticks([])
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=4, handletextpad=0.1)
    return figure


def tsne(similarity: NDArray[np.float64], seed: int = 0) -> NDArray[np.float64]:
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
        random_state=seed,
    )
    with threadpool_limits(limits=1):
        return np.asarray(model.fit_transform(distance), dtype=np.float64)


def _scatter(axes: Axes, points: NDArray[np.float64], kinds: Sequence[str]) -> None:
    for index, kind in enumerate(sorted(set(kinds))):
        color, marker = group_mark(index)
        chosen = points[[k == kind for k in kinds]]
        axes.scatter(
            chosen[:, 0],
            chosen[:, 1],
            s=16 * LARGER.get(marker, 1.0),
            c=color,
            marker=marker,
            lw=0.3,
            ec="white",
            label=kind,
        )


def _contours(axes: Axes, points: NDArray[np.float64], kinds: Sequence[str]) -> None:
    """The level lines of every kind's Gaussian kernel density, in the colours of `_scatter`.

    A kind of fewer than 4 tasks, or of tasks on one line, has no density to speak of.
    """
    from scipy.stats import gaussian_kde  # half a second to import, and only needed here

    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.2 * (high - low)
    x, y = np.meshgrid(*np.linspace(low - margin, high + margin, 90).T)
    for index, kind in enumerate(sorted(set(kinds))):
        chosen = points[[k == kind for k in kinds]]
        if len(chosen) < 4 or np.linalg.matrix_rank(chosen - chosen.mean(axis=0)) < 2:
            continue
        density = gaussian_kde(chosen.T)
        levels = np.quantile(density(chosen.T), [0.1, 0.5])
        if levels[0] < levels[1]:
            heights = density(np.stack([x.ravel(), y.ravel()])).reshape(x.shape)
            color = group_mark(index)[0]
            axes.contour(x, y, heights, levels=levels, colors=color, linewidths=(0.6, 1.1))


def _legend(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=6, handletextpad=0.1)


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
        if split["axis"] != vertical:
            continue
        path = split["path"]
        start, end = (left, roots[0]) if path[0] == "0" else (roots[0], right)
        dashes = "-" if vertical == 1 else ("--" if path[1] == "0" else ":")
        axes.plot((start, end), [split["threshold"]] * 2, color="black", lw=0.9, ls=dashes)
        if vertical == 2:
            twins = [s for s in splits if s["axis"] == 2 and s["path"][0] == path[0]]
            upper = split["threshold"] == max(s["threshold"] for s in twins)
            side = "at or below" if path[1] == "0" else "above"
            axes.annotate(
                f"PC2 {side} its split",
                ((end if path[0] == "1" else start), split["threshold"]),
                xytext=(-3 if path[0] == "1" else 3, 2 if upper else -2),
                textcoords="offset points",
                ha="right" if path[0] == "1" else "left",
                va="bottom" if upper else "top",
                fontsize=6,
                color="#444444",
            )
    axes.set_xlim(left, right)


def _distance(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance from the centre in units of each axis' spread."""
    scale = points.std(axis=0)
    return np.asarray(
        np.linalg.norm((points - points.mean(axis=0)) / np.where(scale, scale, 1), axis=1)
    )


def _farthest_by_family(points: NDArray[np.float64], families: Sequence[str]) -> list[int]:
    distance = _distance(points)
    return [
        max((i for i, f in enumerate(families) if f == family), key=lambda i: distance[i])
        for family in sorted(set(families))
    ]
