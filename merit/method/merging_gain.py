"""What averaging gains: sum_k w_k L(theta_k) - L(merged), predicted and measured (theorem 3.1).

K branches theta_k = theta0 + delta_k are averaged with merge weights w (non-negative, sum 1).
If all share one quadratic loss with Hessian H, the gain is the curvature-weighted variance of
the branches, never negative, and independent of where the optimum and theta0 lie.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_BLOCK = 1 << 20  # entries of every displacement that are widened to float64 at a time


def merging_gain_from_products(
    displacements: ArrayLike,
    hessian_product: Callable[[Array], Array],
    merge_weights: ArrayLike,
) -> float:
    """Theorem F.1 without H: 1/2 sum_k w_k (delta_k - mean)^T H (delta_k - mean).

    Args: displacements (K, d) of any float type, memory-mapped or not, from any common origin;
    merge_weights (K,); `hessian_product` maps v (d,) to H v (d,), one call per branch. A few
    vectors (d,) are in memory at a time.
    Raises ValueError for displacements of another shape or weights that are no distribution.
    """
    delta = np.asarray(displacements)
    if delta.ndim != 2:
        raise ValueError(f"expected one row per branch, found shape {delta.shape}")
    weights = _distribution(merge_weights, len(delta))
    mean = np.concatenate(
        [
            weights @ delta[:, start : start + _BLOCK].astype(np.float64)
            for start in range(0, delta.shape[1], _BLOCK)
        ]
    )
    centred = (row.astype(np.float64) - mean for row in delta)
    curvatures = np.array([v @ np.asarray(hessian_product(v)) for v in centred])
    return float(0.5 * weights @ curvatures)


def measured_gain(branch_losses: ArrayLike, merged_loss: float, merge_weights: ArrayLike) -> float:
    """Theorem 3.1's left side from measured losses (K,): sum_k w_k L(theta_k) - L(merged).

    Raises ValueError for weights that are no distribution over the K branches.
    """
    losses = np.asarray(branch_losses, dtype=np.float64)
    return float(_distribution(merge_weights, len(losses)) @ losses - merged_loss)


def _distribution(merge_weights: ArrayLike, num_branches: int) -> Array:
    weights = np.asarray(merge_weights, dtype=np.float64)
    if weights.shape != (num_branches,):
        raise ValueError(f"expected {num_branches} merge weights, found shape {weights.shape}")
    if (weights < 0).any() or abs(weights.sum() - 1) > 1e-9:
        raise ValueError("merge weights must be non-negative and sum to 1")
    return weights
