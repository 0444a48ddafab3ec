"""connectivity: is the loss without a barrier between branches, and to their average? (table 5)

Linear mode connectivity, docs/method.md 12: the loss on the straight path between all pairs of
branches, and from every branch to the merged model.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import torch

from merit.config import Experiment
from merit.eval.measuring.losses import Losses, LossEvaluator, barrier_columns, open_evaluator, walk
from merit.eval.measuring.models import branch_folders, planned_model
from merit.eval.measuring.scores import Row
from merit.eval.studies.connectivity import Connectivity
from merit.io.artifacts import Artifacts

TABLE = "table05_linear_mode_connectivity"
TOLERANCE = 0.01  # a barrier below this share of the path's mean end-point loss counts as zero


def measure(experiment: Experiment, paths: Artifacts, settings: Connectivity) -> dict[str, Any]:
    """Table 5 for one method's branches; `curves` holds the losses along every path."""
    model = planned_model(experiment, "connectivity.method", settings.method, settings.seed, 2)
    evaluator = open_evaluator(experiment, paths, settings.num_examples)
    names = [*(f"b{k}" for k in range(len(model.branches))), "merged"]
    alphas = np.linspace(0, 1, settings.num_points)
    folders = [*branch_folders(paths, model), paths.model(model.id)]
    with evaluator.vectors(paths, folders) as vectors:
        curves = all_paths(evaluator, dict(zip(names, vectors, strict=True)), alphas)
    loss_base = evaluator.loss(evaluator.vector(paths, paths.base))
    rows = [path_row(evaluator, path, alphas, losses) for path, losses in curves.items()]
    return {
        "tables": {TABLE: rows},
        "summary": {
            **summarise(rows, loss_base),
            "model": model.id,
            "num_branches": len(model.branches),
            "num_points": settings.num_points,
            **evaluator.sample,
        },
        "alphas": alphas.tolist(),
        "curves": {path: [evaluator.mean(x) for x in points] for path, points in curves.items()},
    }


def all_paths(
    evaluator: LossEvaluator, points: dict[str, torch.Tensor], alphas: np.ndarray
) -> dict[str, list[Losses]]:
    """{"a-b": losses at (1 - alpha) a + alpha b} for every pair of points.

    In the paper's order: pairs of branches, then the branches' ways to the merged model.
    """
    pairs = sorted(combinations(points, 2), key=lambda pair: pair[1] == "merged")
    _, curves = walk(evaluator, points, pairs, alphas, "connectivity")
    return {f"{a}-{b}": curve for (a, b), curve in curves.items()}


def path_row(evaluator: LossEvaluator, path: str, alphas: np.ndarray, curve: list[Losses]) -> Row:
    """The paper's columns; the barrier also as a share of the mean end-point loss.

    `excess_se` is the standard error, over the sample's batches, of the largest inner excess over
    the chord (which, unlike the barrier, may be negative).
    """
    means = np.array([evaluator.mean(losses) for losses in curve])
    chord = [(1 - a) * curve[0] + a * curve[-1] for a in alphas]
    excess = [losses - line for losses, line in zip(curve, chord, strict=True)][1:-1]
    largest = max(excess, key=evaluator.mean)
    return {
        "path": path,
        "loss_at_0": float(means[0]),
        "loss_min": float(means.min()),
        "alpha_at_min": float(alphas[means.argmin()]),
        "loss_at_1": float(means[-1]),
        **barrier_columns(alphas, means),
        "largest_inner_excess": evaluator.mean(largest),
        "excess_se": evaluator.standard_error(largest),
    }


def summarise(rows: list[Row], loss_base: float) -> Row:
    """What claim C7 is decided by."""
    share, height = (max(row[key] for row in rows) for key in ("barrier_share", "barrier"))
    nearest = max(rows, key=lambda row: row["largest_inner_excess"])
    merged = [row for row in rows if row["path"].endswith("merged")]
    return {
        "num_pairs": len(rows) - len(merged),
        "num_paths": len(rows),
        "tolerance": TOLERANCE,
        "max_barrier": height,
        "max_barrier_share": share,
        "max_barrier_over_base_loss": height / loss_base,
        "max_inner_excess": nearest["largest_inner_excess"],
        "max_inner_excess_se": nearest["excess_se"],
        "max_inner_excess_path": nearest["path"],
        "num_zero": sum(row["barrier_share"] <= TOLERANCE for row in rows),
        "all_zero": share <= TOLERANCE,
        "loss_base": loss_base,
        "loss_merged": merged[0]["loss_at_1"] if merged else None,
    }
