"""surface: the loss on the plane through base, joint and merged model (figure 2).

Coordinates are distances in parameter space: the base lies at (0, 0), the joint model on the
first axis, the merged model in the upper half plane.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from merit.config import Experiment
from merit.errors import MeritError
from merit.eval.measuring.losses import LossEvaluator, open_evaluator
from merit.eval.measuring.models import branch_folders, planned_model
from merit.eval.measuring.scores import Row
from merit.eval.studies.surface import Surface
from merit.io.artifacts import Artifacts
from merit.io.progress import Progress

MARGIN = 0.25  # of the points' extent, on every side
LEAST_ANGLE = 1e-3  # sine of the angle between joint and merged below which there is no plane
Array = NDArray[np.float64]


def measure(experiment: Experiment, paths: Artifacts, settings: Surface) -> dict[str, Any]:
    """Losses on the grid and at the points; `tables.surface` lists the points."""
    joint = planned_model(experiment, "surface.joint", settings.joint, settings.seed)
    merged = planned_model(experiment, "surface.method", settings.method, settings.seed, 2)
    evaluator = open_evaluator(experiment, paths, settings.num_examples)
    base = evaluator.vector(paths, paths.base)
    folders = [paths.model(joint.id), paths.model(merged.id), *branch_folders(paths, merged)]
    names = ["joint", "merged", *(f"b{k}" for k in range(len(merged.branches)))]
    with evaluator.vectors(paths, folders) as vectors:
        axes = plane(vectors[0] - base, vectors[1] - base)
        points = {"base": base, **dict(zip(names, vectors, strict=True))}
        rows = [point_row(evaluator, name, theta, base, axes) for name, theta in points.items()]
    x, y = grid(np.array([[row["x"], row["y"]] for row in rows]), settings.resolution)
    losses = grid_losses(evaluator, base, axes, x, y)
    models = {"joint": joint.id, "merged": merged.id}
    return {
        "tables": {"surface": rows},
        "summary": summarise(rows, x, y, losses) | models | evaluator.sample,
        "x": x.tolist(),
        "y": y.tolist(),
        "losses": losses.tolist(),
    }


def plane(joint: torch.Tensor, merged: torch.Tensor) -> torch.Tensor:
    """Orthonormal (2, P): along the joint displacement, and the rest of the merged one.

    Raises MeritError where the two displacements span no plane.
    """
    first = joint.double() / joint.double().norm().clamp_min(1e-300)
    rest = merged.double()
    for _ in range(2):  # twice: the second pass removes what rounding left
        rest = rest - (rest @ first) * first
    if not rest.norm() > LEAST_ANGLE * merged.double().norm() or not joint.any():
        raise MeritError(
            "the displacements of the joint and the merged model are parallel or zero: they span "
            "no plane; compare a method that trains more than one branch"
        )
    return torch.stack([first, rest / rest.norm()]).float()


def point_row(
    evaluator: LossEvaluator, name: str, theta: torch.Tensor, base: torch.Tensor, axes: torch.Tensor
) -> Row:
    """A point's own loss, its projection, and how much of its squared displacement that holds."""
    delta = (theta - base).double()
    x, y = (float(axis.double() @ delta) for axis in axes)
    length, losses = float(delta.norm()), evaluator.losses(theta)
    return {
        "point": name,
        "x": x,
        "y": y,
        "displacement": length,
        "share_in_plane": min(1.0, (x * x + y * y) / length**2) if length else 1.0,
        "loss": evaluator.mean(losses),
        "loss_se": evaluator.standard_error(losses),
    }


def grid(points: Array, resolution: int) -> tuple[Array, Array]:
    """Coordinates (resolution,) of either axis: the points' box and a margin around it."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = MARGIN * float((high - low).max())
    x, y = np.linspace(low - margin, high + margin, resolution).T
    return x, y


def grid_losses(
    evaluator: LossEvaluator, base: torch.Tensor, axes: torch.Tensor, x: Array, y: Array
) -> Array:
    """L(base + x e1 + y e2): float64 (len(y), len(x)), as contour plots want it."""
    losses = np.empty((len(y), len(x)))
    with Progress("surface", losses.size) as progress:
        for row, column in np.ndindex(losses.shape):
            theta = base + float(x[column]) * axes[0] + float(y[row]) * axes[1]
            losses[row, column] = evaluator.loss(theta)
            progress.advance()
    return losses


def summarise(rows: list[Row], x: Array, y: Array, losses: Array) -> Row:
    """Losses and distances of the three points, and where the grid is lowest."""
    base, joint, merged, *branches = rows
    row, column = np.unravel_index(losses.argmin(), losses.shape)
    return {
        "loss_base": base["loss"],
        "loss_joint": joint["loss"],
        "loss_merged": merged["loss"],
        "loss_branches_mean": float(np.mean([b["loss"] for b in branches])),
        "displacement_joint": joint["displacement"],
        "displacement_merged": merged["displacement"],
        "cosine_joint_merged": merged["x"] / merged["displacement"],
        "share_in_plane_branches": float(np.mean([b["share_in_plane"] for b in branches])),
        "grid_min_loss": float(losses.min()),
        "grid_min_at": [float(x[column]), float(y[row])],
        "grid_min_to_joint": float(np.hypot(x[column] - joint["x"], y[row] - joint["y"])),
        "grid_min_to_merged": float(np.hypot(x[column] - merged["x"], y[row] - merged["y"])),
    }
