"""Where models lie, what they lose on the mixture, and whether barriers stand between them.

The four conditions of a merge-ready base follow from it (docs/method.md, merge-readiness).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from merit.errors import MeritError
from merit.eval.measuring.losses import Losses, LossEvaluator, barrier_columns, path_losses
from merit.eval.measuring.scores import Interval, Row
from merit.eval.studies.readiness.settings import Thresholds
from merit.io.progress import Progress

CONDITIONS = {
    "a": "no barrier: largest barrier, share of the mean loss at the path's ends",
    "b": "every branch learns: worst branch's loss on the mixture, share of the base's",
    "c": "joint training stays near: displacement, share of the base's norm",
    "d": "splitting at random costs little: random - joint, points on validation",
}


@dataclass(frozen=True)
class Split:
    """One random split's branches and their average, each a vector (P,)."""

    name: str
    branches: list[torch.Tensor]
    merged: torch.Tensor


def geometry(
    evaluator: LossEvaluator,
    base: torch.Tensor,
    joints: Mapping[str, torch.Tensor],
    splits: Sequence[Split],
    num_points: int,
) -> dict[str, list[Row]]:
    """{"models": a row per model, "paths": a row per path of the first split, "curves": losses}.

    Paths run round the branches (0-1, 1-2, ..., back to 0) and from every branch to the average.
    """
    models: list[tuple[str, str, torch.Tensor]] = [("base", "base", base)]
    models += [("joint", name, theta) for name, theta in joints.items()]
    for split in splits:
        for k, theta in enumerate(split.branches):
            models.append(("branch", f"{split.name}-g{k}", theta))
        models.append(("merged", split.name, split.merged))
    first = splits[0]
    count = len(first.branches)
    ends = [(f"{first.name}-g{k}", theta) for k, theta in enumerate(first.branches)]
    pairs = [(ends[k], ends[(k + 1) % count]) for k in range(count if count > 2 else 1)]
    pairs += [(end, (first.name, first.merged)) for end in ends]
    alphas = np.linspace(0.0, 1.0, num_points)
    with Progress("readiness, losses", len(models) + len(pairs) * (num_points - 2)) as progress:

        def losses(theta: torch.Tensor, what: str) -> Losses:
            progress.advance()
            found = evaluator.losses(theta)
            if not np.isfinite(found).all():
                raise MeritError(f"readiness: the loss of {what} on the mixture is not finite")
            return found

        known = {name: losses(theta, name) for _, name, theta in models}
        paths: list[Row] = []
        curves: list[Row] = []
        for (a, theta_a), (b, theta_b) in pairs:
            path = f"{a} to {b}"
            points = path_losses(
                lambda theta, path=path: losses(theta, path),  # type: ignore[misc]
                (theta_a, theta_b),
                (known[a], known[b]),
                alphas,
            )
            curve = np.array([evaluator.mean(x) for x in points])
            curves.append({"path": path, "alpha": alphas.tolist(), "loss": curve.tolist()})
            paths.append(
                {
                    "path": path,
                    "loss_at_0": float(curve[0]),
                    "loss_max": float(curve.max()),
                    "loss_at_1": float(curve[-1]),
                    **barrier_columns(alphas, curve),
                }
            )
    norm, rows = float(base.double().norm()), []
    for kind, name, theta in models:
        distance = float((theta.double() - base.double()).norm())
        rows.append(
            {
                "kind": kind,
                "model": name,
                "displacement": distance,
                "relative_displacement": distance / norm,
                "loss": evaluator.mean(known[name]),
                "loss_se": evaluator.standard_error(known[name]),
            }
        )
    return {"models": rows, "paths": paths, "curves": curves}


def conditions(
    found: Mapping[str, Sequence[Row]], behind: Interval | None, thresholds: Thresholds
) -> list[Row]:
    """A row per condition: letter, what is measured, value, bound, whether it holds.

    Args: found: as `geometry` gives it; behind: random - joint on validation, with its
    interval, or None where nothing was asked.
    """
    barrier = max(row["barrier_share"] for row in found["paths"])
    branch = max(of_kind(found, "branch", "loss")) / of_kind(found, "base", "loss")[0]
    joint = max(of_kind(found, "joint", "relative_displacement"))
    near, least = thresholds.joint_displacement, -thresholds.random_behind
    rows = {  # value, bound, whether it holds
        "a": (barrier, thresholds.barrier_share, barrier <= thresholds.barrier_share),
        "b": (branch, 1.0, branch < 1.0),
        "c": (joint, near, joint <= near),
        "d": (behind[0], least, behind[0] >= least) if behind else (None, least, None),
    }
    return [
        {
            "condition": letter,
            "measured": CONDITIONS[letter],
            "value": value,
            "low": behind[1] if behind and letter == "d" else None,
            "high": behind[2] if behind and letter == "d" else None,
            "bound": bound,
            "holds": None if holds is None else bool(holds),
        }
        for letter, (value, bound, holds) in rows.items()
    ]


def of_kind(found: Mapping[str, Sequence[Row]], kind: str, key: str) -> list[float]:
    return [row[key] for row in found["models"] if row["kind"] == kind]
