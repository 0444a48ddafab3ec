"""Merge-readiness measures (docs/method.md 12): pure functions of tensors and numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats


def barrier(alphas: Sequence[float] | np.ndarray, losses: Sequence[float] | np.ndarray) -> float:
    """max_alpha [L(theta(alpha)) - ((1 - alpha) L(0) + alpha L(1))], at least 0 at the ends.

    Args: alphas ascending from 0 to 1; losses on the straight path between two models.
    """
    a, values = np.asarray(alphas, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if a[0] != 0 or a[-1] != 1 or len(a) != len(values):
        raise ValueError("alphas must run from 0 to 1, one loss each")
    return float(np.max(values - ((1 - a) * values[0] + a * values[-1])))


def flatness_auc(sigmas: Sequence[float], delta_losses: Sequence[float]) -> float:
    """Area under (sigma, mean loss increase) by the trapezoidal rule, from (0, 0)."""
    x = np.concatenate([[0.0], np.asarray(sigmas, dtype=np.float64)])
    y = np.concatenate([[0.0], np.asarray(delta_losses, dtype=np.float64)])
    if (np.diff(x) <= 0).any():
        raise ValueError("sigmas must be positive and ascending")
    return float(np.trapezoid(y, x))


def trimmed(values: np.ndarray, share: float) -> np.ndarray:
    """`values` (T,) ascending in float64, without the floor(T share) lowest and as many highest.

    The floor gives table 19's counts: of 136 norms 124 at 5 %, 110 at 10 %.
    Raises ValueError for a share outside [0, 0.5) or no values.
    """
    if not 0 <= share < 0.5 or len(values) == 0:
        raise ValueError(f"cannot cut a share of {share} off both ends of {len(values)} values")
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    cut = int(len(ordered) * share + 1e-9)  # 0.29 * 100 is 28.999...
    return ordered[cut : len(ordered) - cut]


def norm_concentration(norms: np.ndarray, trim: float = 0.0) -> dict[str, float]:
    """Table 19's measures of gradient norms, with a share `trim` cut off at either end.

    std is the sample standard deviation. Raises ValueError for a norm that is not positive.
    """
    if not (np.asarray(norms) > 0).all():
        raise ValueError("every gradient norm must be positive")
    kept = trimmed(norms, trim)
    std = float(kept.std(ddof=1)) if len(kept) > 1 else 0.0
    return {
        "datasets": len(kept),
        "mean": float(kept.mean()),
        "std": std,
        "coefficient_of_variation": std / float(kept.mean()),
        "max_over_min": float(kept[-1] / kept[0]),
    }


def matrix_fidelity(reference: np.ndarray, approximation: np.ndarray) -> dict[str, float]:
    """Table 16's measures between two symmetric matrices, over the entries above the diagonal."""
    upper = np.triu_indices(len(reference), k=1)
    a, b = reference[upper], approximation[upper]
    return {
        "pearson": float(stats.pearsonr(a, b).statistic),
        "spearman": float(stats.spearmanr(a, b).statistic),
        "mean_absolute_difference": float(np.abs(a - b).mean()),
        "rmse": float(np.sqrt(np.square(a - b).mean())),
    }
