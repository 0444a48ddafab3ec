"""Where models lie, what they lose on the mixture, and whether barriers stand between them.

The four conditions of a merge-ready base follow from it (docs/method.md, merge-readiness).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from merit.errors import MeritError
from merit.eval.measuring.losses import Losses, LossEvaluator
from merit.eval.measuring.scores import Row
from merit.eval.studies.readiness.settings import Thresholds
from merit.io.progress import Progress
from merit.method.diagnostics import barrier

CONDITIONS = {
    "a": "no barrier: largest barrier, share of the mean loss at the path's ends",
    "b": "every branch learns: worst branch's loss on the mixture, share of the base's",
    "c": "joint training stays near: displacement, share of the base's norm",
    "d": "splitting at random costs little: random - joint, points on validation",
}


@dataclass(frozen=True)
class Split:
    """One random split's branches and their average, each a vector (P,) as in `LossEvaluator`."""

    name: str
    branches: list[torch.Tensor]
    merged: torch.Tensor


# --- losses, distances, barriers ----------------------------------------------------------------


def geometry(
    meter: LossEvaluator,
    base: torch.Tensor,
    joints: Mapping[str, torch.Tensor],
    splits: Sequence[Split],
    num_points: int,
) -> dict[str, list[Row]]:
    """{"models": a row a model, "paths": a row a path of the first split, "curves": its losses}.

    Paths run round the branches (0-1, 1-2, ..., back to 0) and from every branch to the average.
    """
    norm = float(base.double().norm())
    models: list[tuple[str, str, torch.Tensor]] = [("base", "base", base)]
    models += [("joint", name, theta) for name, theta in joints.items()]
    for split in splits:
        for k, theta in enumerate(split.branches):
            models.append(("branch", f"{split.name}-g{k}", theta))
        models.append(("merged", split.name, split.merged))
    first = splits[0]
    count = len(first.branches)
    ring = [(k, (k + 1) % count) for k in range(count if count > 2 else 1)]
    alphas = np.linspace(0.0, 1.0, num_points)
    total = len(models) + (len(ring) + count) * (num_points - 2)
    with Progress("readiness, losses", total) as progress:

        def losses(theta: torch.Tensor, what: str) -> Losses:
            progress.advance()
            found = meter.losses(theta)
            if not np.isfinite(found).all():
                raise MeritError(f"readiness: the loss of {what} on the mixture is not finite")
            return found

        known = {name: losses(theta, name) for _, name, theta in models}
        ends = [(f"{first.name}-g{k}", theta) for k, theta in enumerate(first.branches)]
        pairs = [(ends[a], ends[b]) for a, b in ring]
        pairs += [(end, (first.name, first.merged)) for end in ends]
        paths: list[Row] = []
        curves: list[Row] = []
        for (a, theta_a), (b, theta_b) in pairs:
            path = f"{a} to {b}"
            inner = [losses(torch.lerp(theta_a, theta_b, float(x)), path) for x in alphas[1:-1]]
            curve = np.array([meter.mean(x) for x in (known[a], *inner, known[b])])
            height = max(0.0, barrier(alphas, curve))
            curves.append({"path": path, "alpha": alphas.tolist(), "loss": curve.tolist()})
            paths.append(
                {
                    "path": path,
                    "loss_at_0": float(curve[0]),
                    "loss_max": float(curve.max()),
                    "loss_at_1": float(curve[-1]),
                    "barrier": height,
                    "barrier_share": height / float(curve[[0, -1]].mean()),
                }
            )
    rows = []
    for kind, name, theta in models:
        distance = float((theta.double() - base.double()).norm())
        rows.append(
            {
                "kind": kind,
                "model": name,
                "displacement": distance,
                "relative_displacement": distance / norm,
                "loss": meter.mean(known[name]),
                "loss_se": meter.standard_error(known[name]),
            }
        )
    return {"models": rows, "paths": paths, "curves": curves}


# --- the rule -----------------------------------------------------------------------------------


def conditions(
    found: Mapping[str, Sequence[Row]],
    behind: tuple[float, float, float],
    thresholds: Thresholds,
) -> list[Row]:
    """A row a condition: letter, what is measured, value, bound, whether it holds.

    Args: found: as `geometry` gives it; behind: random - joint on validation, with its interval.
    """
    base = of_kind(found, "base", "loss")[0]
    values = {
        "a": max(row["barrier_share"] for row in found["paths"]),
        "b": max(of_kind(found, "branch", "loss")) / base,
        "c": max(of_kind(found, "joint", "relative_displacement")),
        "d": behind[0],
    }
    holds = {
        "a": values["a"] <= thresholds.barrier_share,
        "b": values["b"] < 1.0,
        "c": values["c"] <= thresholds.joint_displacement,
        "d": values["d"] >= -thresholds.random_behind,
    }
    bounds = {
        "a": thresholds.barrier_share,
        "b": 1.0,
        "c": thresholds.joint_displacement,
        "d": -thresholds.random_behind,
    }
    return [
        {
            "condition": letter,
            "measured": text,
            "value": values[letter],
            "low": behind[1] if letter == "d" else None,
            "high": behind[2] if letter == "d" else None,
            "bound": bounds[letter],
            "holds": bool(holds[letter]),
        }
        for letter, text in CONDITIONS.items()
    ]


def of_kind(found: Mapping[str, Sequence[Row]], kind: str, key: str) -> list[float]:
    return [row[key] for row in found["models"] if row["kind"] == kind]
