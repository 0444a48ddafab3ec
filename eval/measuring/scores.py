"""Scores of several models against each other, in percent, and means over few units or seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from merit.eval.statistics import bootstrap_interval, paired_bootstrap
from merit.eval.verdict import Direction, direction

Scores = Mapping[str, Sequence[float]]  # benchmark -> every question's score in 0..1, in file order
Interval = tuple[float, float, float]  # value, low, high
Row = dict[str, Any]


def average(models: Sequence[Scores]) -> Interval:
    """The average over benchmarks of one method's models (several: seeds), with its interval."""
    stacked = _stacked(models)
    low, high = bootstrap_interval(stacked)
    value = float(np.mean([array.mean() for array in stacked.values()]))
    return 100 * value, 100 * low, 100 * high


def difference(ours: Sequence[Scores], theirs: Sequence[Scores]) -> Interval:
    """Average of ours minus theirs, with the paired bootstrap's interval over questions."""
    _, found = paired_bootstrap(_stacked(ours), _stacked(theirs))
    return 100 * found.difference, 100 * found.low, 100 * found.high


def verdict(found: Interval) -> Direction:
    """Where the interval leaves 0: "ahead", "behind" or "undecided"."""
    _, low, high = found
    return direction(low, high)


def columns(key: str, found: Sequence[float | None] | None) -> Row:
    """A value and its interval as columns `key`, `key`_low, `key`_high; of None three Nones."""
    names = (key, f"{key}_low", f"{key}_high")
    return dict(zip(names, found or (None, None, None), strict=True))


def interval(row: Mapping[str, Any], key: str) -> Interval:
    """The value and its interval that `columns` wrote."""
    return row[key], row[f"{key}_low"], row[f"{key}_high"]


def mean(models: Sequence[Scores]) -> float:
    """The average over benchmarks of one method's models, without an interval."""
    return 100 * float(np.mean([array.mean() for array in _stacked(models).values()]))


def only(models: Sequence[Scores], benchmarks: Sequence[str]) -> list[Scores]:
    """The models' scores on only these benchmarks."""
    return [{name: model[name] for name in benchmarks} for model in models]


def num_questions(scores: Scores) -> int:
    return sum(len(values) for values in scores.values())


def _stacked(models: Sequence[Scores]) -> dict[str, np.ndarray]:
    return {name: np.array([model[name] for model in models]) for name in models[0]}


def rate_label(rate: float) -> str:
    """The paper's way of writing rates: 0.00008 is "8e-5"."""
    mantissa, exponent = f"{rate:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


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
