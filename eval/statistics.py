"""Uncertainty of every reported number: intervals, paired tests, where a gain comes from.

A *score* is one question's, in 0..1. Score arrays are (num_questions,), or (num_seeds,
num_questions) for several models of one method, whose seeds are averaged question by question
before anything else: the interval then speaks of questions, and `spread` and `wilcoxon` of seeds.
An *average* is the plain mean over benchmarks, whatever their sizes (METHOD.md section 5). "ours"
and "theirs" answer the same questions in the same order. Resampling is deterministic in its seed
and each benchmark has a random stream of its own, so its result does not depend on which other
benchmarks are present. Data that cannot be compared raise MeritError.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from merit.errors import MeritError

Array = NDArray[np.float64]
RESAMPLE_BLOCK = 2**22  # counts that are held in memory at once


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


class Spread(NamedTuple):
    """Mean and sample standard deviation (n - 1; None for one seed), with the extremes."""

    mean: float
    std: float | None
    low: float
    high: float
    num_seeds: int


class Wilcoxon(NamedTuple):
    """`statistic` = sum of the ranks of positive differences; `num_pairs` without zero ones."""

    statistic: float
    p_value: float
    num_pairs: int


class Difference(NamedTuple):
    """ours - theirs with a percentile interval; `p_value` one-sided, for ours > theirs."""

    difference: float
    low: float
    high: float
    p_value: float
    num_questions: int


class McNemar(NamedTuple):
    """Questions that only one side got right, and the two-sided exact p-value."""

    ours_only: int
    theirs_only: int
    p_value: float


# --- over seeds ------------------------------------------------------------------------------


def spread(values: ArrayLike) -> Spread:
    """Mean and spread of one number a seed."""
    array = _vector(values, "values over seeds")
    std = float(array.std(ddof=1)) if len(array) > 1 else None
    return Spread(float(array.mean()), std, float(array.min()), float(array.max()), len(array))


def wilcoxon(ours: ArrayLike, theirs: ArrayLike) -> Wilcoxon:
    """Paired one-sided Wilcoxon signed-rank test that ours > theirs, one number a seed; exact.

    Zero differences are dropped (Wilcoxon's rule) and tied magnitudes share their mean rank; the
    p-value is P(W+ >= observed) over all 2^n signs of the ranks at hand, so it is exact with ties
    too. Five of five seeds better: p = 1/32 = 0.03125. No difference at all: p = 1.
    """
    a, b = _vector(ours, "our values"), _vector(theirs, "their values")
    if len(a) != len(b):
        raise MeritError(f"a paired test needs equally many seeds: {len(a)} against {len(b)}")
    # scores come from sums in another order: equal differences may differ in the last bits
    differences = np.round(a - b, 12)
    differences = differences[differences != 0]
    doubled = np.rint(2 * stats.rankdata(np.abs(differences))).astype(int)  # mean ranks are halves
    observed = int(doubled[differences > 0].sum())
    probability = np.zeros(int(doubled.sum()) + 1)  # of every value of 2 W+ under the null
    probability[0] = 1.0
    for rank in doubled:
        shifted = np.concatenate([np.zeros(rank), probability[:-rank]])
        probability = (probability + shifted) / 2
    p_value = min(1.0, float(probability[observed:].sum()))
    return Wilcoxon(observed / 2, p_value, len(differences))


# --- over questions: one method --------------------------------------------------------------


def normal_interval(scores: ArrayLike, confidence: float = 0.95) -> Interval:
    """mean +- z s / sqrt(n), s the sample standard deviation, cut to 0..1."""
    array = seed_average(scores)
    z = _quantile(confidence)
    half = z * float(array.std(ddof=1)) / math.sqrt(len(array)) if len(array) > 1 else math.inf
    mean = float(array.mean())
    return Interval(max(0.0, mean - half), min(1.0, mean + half))


def wilson_interval(scores: ArrayLike, confidence: float = 0.95) -> Interval:
    """Wilson's interval of a proportion: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

    Exact in its intent for binary answers (sensible at 0 and 1, where the normal one has no
    width). For graded scores it is conservative: no variable in 0..1 of mean p varies more.
    """
    array = seed_average(scores)
    z, n, p = _quantile(confidence), len(array), float(array.mean())
    centre = p + z**2 / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    return Interval(max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))


def bootstrap_interval(
    scores: Mapping[str, ArrayLike],
    *,
    num_resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Percentile interval of the average over benchmarks (of one benchmark: give that one alone).

    Questions are resampled within each benchmark (stratified), seeds averaged before.
    """
    _not_empty(scores)
    resampled = [
        _resampled_means(seed_average(values, name), name, num_resamples, seed)
        for name, values in scores.items()
    ]
    return _percentile(np.mean(resampled, axis=0), confidence)


# --- over questions: two methods -------------------------------------------------------------


def paired_bootstrap(
    ours: Mapping[str, ArrayLike],
    theirs: Mapping[str, ArrayLike],
    *,
    num_resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[dict[str, Difference], Difference]:
    """Paired bootstrap over questions: a Difference for every benchmark, and for the average.

    Resamples questions within each benchmark, both methods together. The average of a resample is
    the plain mean over the benchmarks' resampled differences. The p-value is the share of
    resamples with a difference <= 0, (1 + count) / (1 + num_resamples), so never 0.
    """
    _same_benchmarks(ours, theirs)
    per_benchmark, means, resampled, num_questions = {}, [], [], 0
    for name in ours:
        difference = _paired(ours[name], theirs[name], name)
        draws = _resampled_means(difference, name, num_resamples, seed)
        mean = float(difference.mean())
        per_benchmark[name] = _difference(mean, draws, confidence, len(difference))
        means.append(mean)
        resampled.append(draws)
        num_questions += len(difference)
    average = np.mean(resampled, axis=0)
    return per_benchmark, _difference(float(np.mean(means)), average, confidence, num_questions)


def mcnemar(ours: ArrayLike, theirs: ArrayLike, name: str = "answers") -> McNemar:
    """McNemar's exact test on binary answers (0 or 1) of two models to the same questions.

    Of the questions that exactly one side got right, each side is as likely under the null:
    two-sided binomial test. No such question: p = 1.
    """
    a, b = _vector(ours, name), _vector(theirs, name)
    if len(a) != len(b):
        raise MeritError(f"{name}: {len(a)} answers against {len(b)}: not the same questions")
    if not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        raise MeritError(
            f"{name}: McNemar's test needs answers scored 0 or 1; use paired_bootstrap"
        )
    ours_only, theirs_only = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    if ours_only + theirs_only == 0:
        return McNemar(0, 0, 1.0)
    p_value = stats.binomtest(ours_only, ours_only + theirs_only, 0.5).pvalue
    return McNemar(ours_only, theirs_only, float(p_value))


# --- where a gain comes from, and how many were looked at --------------------------------------


def leave_one_out(scores: Mapping[str, float]) -> dict[str, float]:
    """The average over the other benchmarks, for each benchmark left out (at least two)."""
    if len(scores) < 2:
        raise MeritError(f"leaving one out needs two benchmarks, found {len(scores)}")
    return {
        left_out: math.fsum(score for name, score in scores.items() if name != left_out)
        / (len(scores) - 1)
        for left_out in scores
    }


def gain_shares(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float | None]:
    """Each benchmark's share of the average's gain: (ours_b - theirs_b) / sum of differences.

    Shares sum to 1; a benchmark that moved against the total has a negative one, and others may
    then exceed 1. None where the total gain is zero.
    """
    _same_benchmarks(ours, theirs)
    gains = {name: ours[name] - theirs[name] for name in ours}
    total = math.fsum(gains.values())
    return {name: gain / total if abs(total) > 1e-12 else None for name, gain in gains.items()}


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment: controls the chance of any false positive among m tests.

    The i-th smallest p (i from 0) becomes max over j <= i of (m - j) p_j, at most 1.
    """
    adjusted: dict[str, float] = {}
    running = 0.0
    for i, name in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        running = max(running, (len(p_values) - i) * p_values[name])
        adjusted[name] = min(1.0, running)
    return {name: adjusted[name] for name in p_values}


# --- shared ----------------------------------------------------------------------------------


def seed_average(scores: ArrayLike, name: str = "scores") -> Array:
    """(num_questions,) scores, averaged over seeds where they are (num_seeds, num_questions)."""
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim == 2 and len(array):
        array = array.mean(axis=0)
    return _vector(array, name, low=0, high=1)


def _paired(ours: ArrayLike, theirs: ArrayLike, name: str) -> Array:
    a, b = seed_average(ours, name), seed_average(theirs, name)
    if len(a) != len(b):
        raise MeritError(f"{name}: {len(a)} scores against {len(b)}: not the same questions")
    return a - b


def _vector(values: ArrayLike, name: str, low: float = -math.inf, high: float = math.inf) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise MeritError(f"{name}: expected a list of numbers, found shape {array.shape}")
    # the margin lets an average of ones come out as 1 + 1e-16
    if not np.isfinite(array).all() or array.min() < low - 1e-9 or array.max() > high + 1e-9:
        bad = array[~(np.isfinite(array) & (array >= low - 1e-9) & (array <= high + 1e-9))][0]
        raise MeritError(f"{name}: found {bad}, expected finite numbers in {low:g}..{high:g}")
    return np.clip(array, low, high)


def _resampled_means(values: Array, name: str, num_resamples: int, seed: int) -> Array:
    """Means of `num_resamples` bootstrap samples: (num_resamples,).

    A resample is a multinomial draw of how often each distinct value occurs: the same
    distribution as drawing questions with replacement, and cheap as scores take few values.
    """
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    distinct, counts = np.unique(values, return_counts=True)
    block = max(1, RESAMPLE_BLOCK // len(distinct))
    sizes = [min(block, num_resamples - done) for done in range(0, num_resamples, block)]
    shares = counts / len(values)
    draws = [generator.multinomial(len(values), shares, size=n) @ distinct for n in sizes]
    return np.concatenate(draws) / len(values)


def _difference(mean: float, draws: Array, confidence: float, num_questions: int) -> Difference:
    low, high = _percentile(draws, confidence)
    # a tie that rounding has lifted off zero is still a tie
    p_value = (1 + int((draws <= 1e-12).sum())) / (1 + len(draws))
    return Difference(mean, low, high, p_value, num_questions)


def _percentile(draws: Array, confidence: float) -> Interval:
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def _quantile(confidence: float) -> float:
    return float(stats.norm.ppf((1 + confidence) / 2))


def _same_benchmarks(ours: Mapping[str, object], theirs: Mapping[str, object]) -> None:
    _not_empty(ours)
    different = sorted(set(ours) ^ set(theirs))
    if different:
        raise MeritError(f"the two methods were scored on different benchmarks: {different}")


def _not_empty(scores: Mapping[str, object]) -> None:
    if not scores:
        raise MeritError("no benchmark to compare")
