"""Uncertainty of every reported number: intervals, and where a gain comes from.

A *score* is one question's part of the reported one, in 0..1 but for the benchmarks whose number is
no plain accuracy (MME, LLaVA-Bench), where it may be more. Score arrays are (num_seeds,
num_questions), one row a model of the method, or (num_questions,) for one model. An *average* is
the plain mean over benchmarks, whatever their sizes (docs/method.md 15). All methods answer the
same questions in the same order.

The bootstrap is hierarchical: it resamples seeds and questions together, so that an interval speaks
of other seeds and of other questions. Both are crossed, since every seed's model answers the same
questions: one resample draws the questions of each benchmark once for all seeds, and the seeds once
for all benchmarks. Of a method with one model only the questions are resampled: its interval says
nothing about other seeds. Bases, if there are several, are crossed with both: on every base a seed
is the same order of the data and the same draw of groups. Resampling is deterministic, and
each benchmark has a random stream of its own, so its result does not depend on which other
benchmarks are present. Data that cannot be compared raise MeritError.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from merit.errors import MeritError
from merit.eval.verdict import Direction, direction

Array = NDArray[np.float64]
NUM_RESAMPLES = 2000  # of every bootstrap that is reported
LEVEL = 0.95  # of every interval that is reported
Scores = Mapping[str, ArrayLike]  # benchmark -> (num_seeds, num_questions) or (num_questions,)
Terms = Sequence[tuple[float, Scores]]  # of a contrast: coefficients and scores
RESAMPLE_BLOCK = 2**22  # counts that are held in memory at once
SEED = 0  # of every resampling
SEED_STREAM = 0x5EED  # of the seeds' draws: three numbers, so that no benchmark has the same key
MARGIN = 1e-9  # by which rounding may put a score outside its limits
# no question's score is more (of MME's some 5), and a percentage would be
LARGEST = 20.0
TIE = 1e-12  # below it a resampled value is 0: rounding must not break a tie


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


class Difference(NamedTuple):
    """A contrast of methods with its percentile interval; `p_value` one-sided, for > 0."""

    difference: float
    low: float
    high: float
    p_value: float
    num_questions: int
    num_bases: int = 1

    @property
    def direction(self) -> Direction:
        """Where the interval lies: "ahead", "behind" or "undecided"."""
        return direction(self.low, self.high)


# --- over seeds and questions -----------------------------------------------------------------


def contrast_bootstrap(
    *bases: Terms, paired_seeds: bool = True, num_resamples: int = NUM_RESAMPLES
) -> tuple[dict[str, Difference], Difference]:
    """sum_i c_i (mean score of i), terms (c_i, scores of i): for each benchmark and the average.

    Of several bases, each with the same terms, seeds and questions, it is the mean over bases.

    Questions are resampled within each benchmark (stratified), all terms together and seeds
    averaged. To that a resample adds the deviations of seeds that were drawn for all benchmarks
    together; the terms that have several share one draw if `paired_seeds` and they are equally
    many, otherwise each has its own. A term of one seed is resampled over questions only. The
    deviations of bases from their mean are added likewise; seeds' are means over bases.

    A seed that was drawn count_s times among n has the weight

        w_s = 1/n + sqrt(n / (n - 1)) (count_s / n - 1/n),

    with which the resampled mean's variance over seeds is s^2 / n, s^2 the sample variance (n - 1).
    Plain resampling, w_s = count_s / n, would have (n - 1) / n of it: two thirds with three seeds.
    Bases have such weights, too. Two limits. The noise of single answers counts twice, in the
    seeds' sampling and in the questions' (three times with several bases): where seeds and
    questions matter little beside it, an interval is up to sqrt(2) times too wide. Where seeds or
    bases dominate and are few, percentiles lie nearer together than Student's t would have them.

    The average of a resample is the plain mean over its benchmarks. The p-value is the share of
    resamples <= 0, (1 + count) / (1 + num_resamples), so never 0.
    """
    checked = iter(_checked([values for terms in bases for _, values in terms]))
    scores = [[(c, next(checked)) for c, _ in terms] for terms in bases]
    num_seeds = [[len(next(iter(term.values()))) for _, term in terms] for terms in scores]
    if num_seeds.count(num_seeds[0]) < len(bases):
        raise MeritError(f"the bases have different seeds, {num_seeds} of them: give each the same")
    groups = _seed_groups(num_seeds[0], paired_seeds)
    sizes = [num_seeds[0][group[0]] for group in groups]
    if len(bases) > 1:
        sizes.append(len(bases))
    weights = _column_weights(sizes, num_resamples)
    per_benchmark: dict[str, Difference] = {}
    means: list[float] = []
    resampled: list[Array] = []
    for name in scores[0][0][1]:
        by_base = np.stack(
            [_columns([c * term[name] for c, term in terms], groups) for terms in scores]
        )
        columns = by_base.mean(axis=0)
        if len(bases) > 1:
            columns = np.hstack([columns, (by_base[:, :, 0] - columns[:, 0]).T])
        by_question = _resampled_means(columns[:, :1], name, num_resamples)[:, 0]
        draws: Array = by_question + weights @ columns[:, 1:].mean(axis=0)
        means.append(float(columns[:, 0].mean()))
        found = _difference(means[-1], draws, len(columns))
        per_benchmark[name] = found._replace(num_bases=len(bases))
        resampled.append(draws)
    num_questions = sum(found.num_questions for found in per_benchmark.values())
    average = _difference(float(np.mean(means)), np.mean(resampled, axis=0), num_questions)
    return per_benchmark, average._replace(num_bases=len(bases))


def paired_bootstrap(
    ours: Scores, theirs: Scores, *, paired_seeds: bool = True, num_resamples: int = NUM_RESAMPLES
) -> tuple[dict[str, Difference], Difference]:
    """`contrast_bootstrap` of ours - theirs.

    Args: paired_seeds: whether equally many seeds are the same seeds on both sides.
    """
    terms = [(1.0, ours), (-1.0, theirs)]
    return contrast_bootstrap(terms, paired_seeds=paired_seeds, num_resamples=num_resamples)


def bootstrap_interval(scores: Scores, *, num_resamples: int = NUM_RESAMPLES) -> Interval:
    """Interval of one method's average over benchmarks (of one benchmark: give only that one).

    Cut to 0..1, the weights of `contrast_bootstrap` may reach beyond; without an upper limit where
    a question's score does.
    """
    _, found = contrast_bootstrap([(1.0, scores)], num_resamples=num_resamples)
    most = 1.0 if all(np.max(values) <= 1 + MARGIN for values in scores.values()) else math.inf
    return Interval(max(0.0, found.low), min(most, found.high))


def _checked(terms: Sequence[Scores]) -> list[dict[str, Array]]:
    """Every term's scores as (num_seeds, num_questions), on the same benchmarks and questions."""
    for other in terms:
        _same_benchmarks(terms[0], other)
    found = [{name: _matrix(values[name], name) for name in terms[0]} for values in terms]
    for term in found:
        num_seeds = len(next(iter(term.values())))
        for name, array in term.items():
            if len(array) != num_seeds:
                raise MeritError(
                    f"{name}: {len(array)} seeds, the first benchmark has {num_seeds}: a method's "
                    "seeds answer all benchmarks"
                )
            if array.shape[1] != found[0][name].shape[1]:
                raise MeritError(
                    f"{name}: {found[0][name].shape[1]} scores against {array.shape[1]}: not the "
                    "same questions"
                )
    return found


def _matrix(values: ArrayLike, name: str) -> Array:
    found = np.asarray(values, dtype=np.float64)
    array = found[None] if found.ndim == 1 else found
    if array.ndim != 2 or not array.size:
        raise MeritError(f"{name}: expected a list of numbers, found shape {found.shape}")
    fits = np.isfinite(array) & (array >= -MARGIN) & (array <= LARGEST + MARGIN)
    if not fits.all():
        bad = array[~fits][0]
        raise MeritError(f"{name}: found {bad}, expected finite numbers in 0..{LARGEST:g}")
    array = np.clip(array, 0, LARGEST)
    # an average of ones may have come out as 1 + 1e-16
    return np.where((array > 1) & (array <= 1 + MARGIN), 1.0, array)


def _seed_groups(num_seeds: Sequence[int], paired: bool) -> list[list[int]]:
    """Positions of the terms with several seeds: those that share a draw stand together."""
    several = [i for i, n in enumerate(num_seeds) if n > 1]
    if paired and len({num_seeds[i] for i in several}) == 1:
        return [several]
    return [[i] for i in several]


def _columns(terms: Sequence[Array], groups: Sequence[Sequence[int]]) -> Array:
    """(num_questions, 1 + number of seeds that are drawn): the contrast with the mean over seeds,
    then each drawn seed's deviation from it. As deviations, seeds that agree leave exact zeros."""
    columns = [np.sum([term.mean(axis=0) for term in terms], axis=0)]
    for group in groups:
        by_seed = np.sum([terms[i] for i in group], axis=0)
        columns += list(by_seed - by_seed.mean(axis=0))
    return np.stack(columns, axis=1)


def _column_weights(num_seeds: Sequence[int], num_resamples: int) -> Array:
    """Each drawn seed's w_s - 1/n, group by group: (num_resamples, number of seeds drawn)."""
    weights: list[Array] = [np.zeros((num_resamples, 0))]
    for group, n in enumerate(num_seeds):
        generator = np.random.default_rng([SEED, SEED_STREAM, group])
        counts = generator.multinomial(n, np.full(n, 1 / n), size=num_resamples)
        weights.append(np.asarray(math.sqrt(n / (n - 1)) / n * (counts - 1), dtype=np.float64))
    return np.concatenate(weights, axis=1)


# --- where a gain comes from, and how many were looked at --------------------------------------


def gain_shares(differences: Mapping[str, float]) -> dict[str, float | None]:
    """Each benchmark's share of the average's gain, docs/method.md, eq. (50).

    Shares sum to 1; a benchmark that moved against the total has a negative one, and others may
    then exceed 1. None where the total gain is zero.
    """
    total = math.fsum(differences.values())
    return {name: d / total if abs(total) > 1e-12 else None for name, d in differences.items()}


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment: controls the chance of any false positive among m tests.

    The i-th smallest p (i from 0) becomes max over j <= i of (m - j) p_j, at most 1.
    """
    ordered = sorted(p_values, key=p_values.__getitem__)
    factors = range(len(ordered), 0, -1)
    products = [m * p_values[name] for m, name in zip(factors, ordered, strict=True)]
    adjusted = dict(zip(ordered, itertools.accumulate(products, max), strict=True))
    return {name: min(1.0, adjusted[name]) for name in p_values}


# --- shared ----------------------------------------------------------------------------------


def _resampled_means(columns: Array, name: str, num_resamples: int) -> Array:
    """Means over bootstrap samples of the questions: (num_resamples, number of columns).

    A resample is a multinomial draw of how often each distinct row occurs: the same distribution
    as drawing questions with replacement, and cheap as scores take few values.
    """
    generator = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    # sums in another order may differ in the last bits, and are one score all the same
    distinct, counts = np.unique(np.round(columns, 12), axis=0, return_counts=True)
    num_questions = len(columns)
    block = max(1, RESAMPLE_BLOCK // len(distinct))
    sizes = [min(block, num_resamples - done) for done in range(0, num_resamples, block)]
    shares = counts / num_questions
    draws = [generator.multinomial(num_questions, shares, size=n) @ distinct for n in sizes]
    return np.concatenate(draws) / num_questions


def _difference(mean: float, draws: Array, num_questions: int) -> Difference:
    draws = np.where(np.abs(draws) <= TIE, 0.0, draws)
    low, high = _percentile(draws)
    p_value = (1 + int((draws <= 0).sum())) / (1 + len(draws))
    return Difference(mean, low, high, p_value, num_questions)


def _percentile(draws: Array) -> Interval:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def _same_benchmarks(ours: Mapping[str, object], theirs: Mapping[str, object]) -> None:
    if not ours:
        raise MeritError("no benchmark to compare")
    different = sorted(set(ours) ^ set(theirs))
    if different:
        raise MeritError(f"the methods were scored on different benchmarks: {different}")
