"""Means over few units or seeds: their spread, and Student's t interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats


def sample_std(values: Sequence[float] | NDArray[np.float64]) -> float | None:
    """The standard deviation with n - 1; None for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def mean_interval(
    values: Sequence[float] | NDArray[np.float64],
) -> tuple[float, float | None, float | None]:
    """(mean, low, high): mean -+ t(0.975, n - 1) std / sqrt(n); no limits for one value."""
    mean, std = float(np.mean(values)), sample_std(values)
    if std is None:
        return mean, None, None
    half = float(stats.t.ppf(0.975, len(values) - 1)) * std / math.sqrt(len(values))
    return mean, mean - half, mean + half
