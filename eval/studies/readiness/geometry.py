"""Where models lie, what they lose on the mixture, and whether barriers stand between them.

The four conditions of a merge-ready base follow from it (docs/method.md, merge-readiness).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from merit.eval.measuring.losses import LossEvaluator, barrier_columns, walk
from merit.eval.measuring.scores import Interval, Row
from merit.eval.studies.readiness import Thresholds

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
    points = {"base": base, **joints}
    kinds = {"base": "base"} | dict.fromkeys(joints, "joint")
    for split in splits:
        branches = {f"{split.name}-g{k}": theta for k, theta in enumerate(split.branches)}
        points |= {**branches, split.name: split.merged}
        kinds |= {**dict.fromkeys(branches, "branch"), split.name: "merged"}
    first, count = splits[0].name, len(splits[0].branches)
    ends = [f"{first}-g{k}" for k in range(count)]
    pairs = [(ends[k], ends[(k + 1) % count]) for k in range(count if count > 2 else 1)]
    pairs += [(end, first) for end in ends]
    alphas = np.linspace(0.0, 1.0, num_points)
    known, walked = walk(evaluator, points, pairs, alphas, "readiness, losses")
    paths: list[Row] = []
    curves: list[Row] = []
    for (a, b), points_between in walked.items():
        curve = np.array([evaluator.mean(x) for x in points_between])
        path = f"{a} to {b}"
        curves.append({"path": path, "alpha": alphas.tolist(), "loss": curve.tolist()})
        ends_and_top = {"loss_at_0": curve[0], "loss_max": curve.max(), "loss_at_1": curve[-1]}
        numbers = {key: float(value) for key, value in ends_and_top.items()}
        paths.append({"path": path, **numbers, **barrier_columns(alphas, curve)})
    norm, rows = float(base.double().norm()), []
    for name, theta in points.items():
        distance = float((theta.double() - base.double()).norm())
        rows.append(
            {
                "kind": kinds[name],
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
