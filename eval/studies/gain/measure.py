"""gain: the merging gain that theorem 3.1 predicts beside the measured one.

    sum_k w_k L(theta_k) - L(merged)  against  1/2 sum_k w_k d_k^T H d_k,  d_k = theta_k - merged

L is the loss on a sample of the whole mixture. Branches are also shrunk towards the base,
theta0 + t (theta_k - theta0), to show at which distance the quadratic model stops holding: the
prediction is exact as t goes to 0, where both sides fall as t^2. Branches are memory-mapped: a few
vectors of P entries are in memory at a time, however many branches there are.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from merit.config import Experiment
from merit.eval.measuring.losses import LossEvaluator, open_evaluator
from merit.eval.measuring.models import branch_folders, merge_record, planned_model
from merit.eval.measuring.scores import Row
from merit.eval.studies.gain import Gain
from merit.io.artifacts import Artifacts
from merit.io.progress import Progress
from merit.io.rows import scratch_rows
from merit.method.average import weighted_average
from merit.method.merging_gain import measured_gain, merging_gain_from_products

BLOCK = 1 << 20  # entries of every branch that are averaged at a time
CLOSE = 0.1  # the quadratic model "holds" where the prediction is off by at most this share


def measure(experiment: Experiment, paths: Artifacts, settings: Gain) -> dict[str, Any]:
    """A row per method and shrinkage t; predictions by exact Hessian-vector products."""
    seed, shrinkages = settings.seed, settings.shrinkages
    models = [planned_model(experiment, "gain.methods", m, seed, 2) for m in settings.methods]
    evaluator = open_evaluator(experiment, paths, settings.num_examples, curvature=True)
    base = evaluator.vector(paths, paths.base)
    rows = []
    num_products = sum(len(model.branches) for model in models) * (1 + len(shrinkages))
    with Progress("gain", num_products) as progress:
        for model in models:
            weights, count = merge_record(paths, model.id)["merge_weights"], len(model.branches)
            with (
                evaluator.vectors(paths, branch_folders(paths, model)) as branches,
                scratch_rows(paths.folder, count, len(base)) as scratch,
            ):
                room = torch.from_numpy(scratch)
                found = gains(evaluator, base, branches, weights, shrinkages, progress, room)
            rows += [{"method": model.method, "num_branches": count} | row for row in found]
    summary = summarise(rows) | {"seed": seed, **evaluator.sample}
    return {"tables": {"gain": rows}, "summary": summary}


def gains(
    evaluator: LossEvaluator,
    base: torch.Tensor,
    branches: list[torch.Tensor],
    merge_weights: list[float],
    shrinkages: list[float],
    progress: Progress,
    room: torch.Tensor,
) -> list[Row]:
    """One row per shrinkage t, of K branches (P,), which may be memory-mapped, as may
    `room` (K, P).

    `predicted` takes H at the merged model: there the first-order terms cancel exactly, and the
    error is of third order in the d_k. `predicted_at_base` takes H at the base and grows as t^2.
    """

    def predicted_gain(at: torch.Tensor) -> float:
        """Theorem 3.1 with the Hessian at `at`, of displacements from any common origin."""

        def product(v: NDArray[np.float64]) -> NDArray[np.float64]:
            progress.advance()
            return evaluator.hessian_product(at, torch.from_numpy(v).to(at)).double().numpy()

        return merging_gain_from_products(room.numpy(), product, merge_weights)

    for row, branch in zip(room, branches, strict=True):
        torch.sub(branch, base, out=row)
    at_base = predicted_gain(base)
    rows = []
    for t in shrinkages:
        for row, branch in zip(room, branches, strict=True):
            row.copy_(torch.lerp(base, branch, t))
        blocks = room.split(BLOCK, dim=1)
        merged = torch.cat([weighted_average(list(block), merge_weights) for block in blocks])
        losses = [evaluator.losses(theta) for theta in [*room, merged]]
        # batch by batch, so that the error is that of the difference
        difference = np.tensordot(merge_weights, losses[:-1], axes=1) - losses[-1]
        *means, merged_mean = [evaluator.mean(values) for values in losses]
        measured = measured_gain(means, merged_mean, merge_weights)
        predicted = predicted_gain(merged)
        rows.append(
            {
                "t": t,
                "loss_branches": float(np.dot(merge_weights, means)),
                "loss_merged": merged_mean,
                "measured": measured,
                "measured_se": evaluator.standard_error(difference),
                "predicted": predicted,
                "predicted_at_base": t**2 * at_base,
                "predicted_over_measured": predicted / measured if measured else None,
            }
        )
    return rows


def summarise(rows: list[Row]) -> Row:
    """Signs of the measured gains, and prediction over measurement at every t."""
    ratios: dict[float, list[float | None]] = {t: [] for t in sorted({row["t"] for row in rows})}
    for row in rows:
        ratios[row["t"]].append(row["predicted_over_measured"])
    shrinkages = list(ratios)

    def close(t: float) -> bool:
        return all(ratio is not None and abs(ratio - 1) <= CLOSE for ratio in ratios[t])

    whole = [row for row in rows if row["t"] == shrinkages[-1]]
    columns = ("measured", "measured_se", "predicted", "predicted_at_base")
    return {
        "methods": [row["method"] for row in whole],
        "shrinkages": shrinkages,
        "num_rows": len(rows),
        "num_positive": sum(row["measured"] > 0 for row in rows),
        **{key: [row[key] for row in whole] for key in columns},
        "ratios": list(ratios.values()),
        "close": CLOSE,
        "largest_close_t": max(takewhile(close, shrinkages), default=None),
    }
