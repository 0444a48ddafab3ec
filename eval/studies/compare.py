"""Scores of several models against each other, in percent: averages and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from eval.report.intervals import LEVEL, NUM_RESAMPLES
from eval.statistics import bootstrap_interval, paired_bootstrap

Scores = Mapping[str, Sequence[float]]  # benchmark -> every question's score in 0..1, in file order
Interval = tuple[float, float, float]  # value, low, high


def average(models: Sequence[Scores]) -> Interval:
    """The average over benchmarks of one method's models (several: seeds), with its interval."""
    stacked = _stacked(models)
    low, high = bootstrap_interval(stacked, num_resamples=NUM_RESAMPLES, confidence=LEVEL)
    value = float(np.mean([array.mean() for array in stacked.values()]))
    return 100 * value, 100 * low, 100 * high


def difference(ours: Sequence[Scores], theirs: Sequence[Scores]) -> Interval:
    """Average of ours minus theirs, with the paired bootstrap's interval over questions."""
    _, found = paired_bootstrap(
        _stacked(ours), _stacked(theirs), num_resamples=NUM_RESAMPLES, confidence=LEVEL
    )
    return 100 * found.difference, 100 * found.low, 100 * found.high


def verdict(found: Interval) -> str:
    """ "positive", "negative" or "undecided": where the interval leaves 0."""
    _, low, high = found
    if low > 0:
        return "positive"
    return "negative" if high < 0 else "undecided"


def mean(models: Sequence[Scores]) -> float:
    """The average over benchmarks of one method's models, without an interval."""
    return 100 * float(np.mean([array.mean() for array in _stacked(models).values()]))


def only(models: Sequence[Scores], benchmarks: Sequence[str]) -> list[Scores]:
    """The models' scores on these benchmarks alone."""
    return [{name: model[name] for name in benchmarks} for model in models]


def num_questions(scores: Scores) -> int:
    return sum(len(values) for values in scores.values())


def _stacked(models: Sequence[Scores]) -> dict[str, np.ndarray]:
    return {name: np.array([model[name] for model in models]) for name in models[0]}
