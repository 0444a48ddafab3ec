"""What the scores allow to say: intervals of every cell, and methods against each other.

All intervals are merit.eval.statistics' hierarchical bootstrap: over seeds and questions together where a
method has several seeds, over questions alone where it has one (the base has none).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merit.config import Experiment
from merit.eval.results import Results
from merit.eval.statistics import (
    LEVEL,
    NUM_RESAMPLES,
    Interval,
    bootstrap_interval,
    holm,
    paired_bootstrap,
    wilcoxon,
)

AVERAGE = "avg"
CLOSED = "avg_closed"  # without the open-ended benchmarks


@dataclass(frozen=True)
class Cell:
    """One number of the table: mean and spread over seeds, bootstrap interval, in percent.

    `spread` is the standard deviation (n - 1), None with fewer than two seeds.
    """

    mean: float
    spread: float | None
    low: float
    high: float
    num_questions: int


Cells = dict[str, dict[str, Cell]]  # method -> column -> cell


def columns(results: Results) -> dict[str, list[int]]:
    """Column -> positions of the benchmarks it averages; `avg_closed` only where it differs."""
    kept = {name: [i] for i, name in enumerate(results.benchmarks)}
    kept[AVERAGE] = list(range(len(results.benchmarks)))
    if 0 < len(results.closed) < len(results.benchmarks):
        kept[CLOSED] = results.closed
    return kept


def table_cells(results: Results) -> Cells:
    """Every cell of the results table, rows and columns in the order of the experiment's YAML."""
    return {
        method: {column: _cell(results, method, kept) for column, kept in columns(results).items()}
        for method in results.methods
    }


def one_seed(results: Results) -> list[str]:
    """The methods whose intervals are over questions alone; the base is not named."""
    return [method for method, seeds in results.seeds.items() if len(seeds) == 1]


def resampled(results: Results) -> str:
    """What the intervals are over, in words that follow "bootstrap"."""
    single = one_seed(results)
    if not any(len(seeds) > 1 for seeds in results.seeds.values()):
        return "over questions alone: no method has several seeds, and others are not spoken of"
    words = "over seeds and questions together"
    if single:
        words += f" (over questions alone for {', '.join(single)}: one seed each)"
    return words


def _cell(results: Results, method: str, kept: list[int]) -> Cell:
    values = results.averages(method, kept)
    found: Interval = bootstrap_interval(
        results.answers_by_name(method, kept), num_resamples=NUM_RESAMPLES, confidence=LEVEL
    )
    return Cell(
        mean=float(values.mean()),
        spread=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        low=100 * found.low,
        high=100 * found.high,
        num_questions=sum(results.num_questions[results.benchmarks[i]] for i in kept),
    )


@dataclass(frozen=True)
class Comparison:
    """`method` minus `other` on the mean of some benchmarks, in points, with a paired interval.

    `p_value` is the bootstrap's, one-sided. `seeds_ahead` of `num_seeds` common seeds have a
    difference above 0 (the base has no seed: it stands against every seed of the other);
    `seeds_p_value` is the one-sided Wilcoxon test over them, None without common seeds.
    """

    method: str
    other: str
    difference: float
    low: float
    high: float
    p_value: float
    seeds_ahead: int
    num_seeds: int
    seeds_p_value: float | None

    @property
    def verdict(self) -> str:
        """ "better", "worse" or "undecided": no more than the interval allows."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "undecided"


def compare(
    results: Results, method: str, other: str, benchmarks: Sequence[int] | None = None
) -> Comparison:
    """Difference of the averages over `benchmarks` (positions; all by default).

    Seeds are resampled in pairs where both methods have the very same ones.
    """
    kept = list(range(len(results.benchmarks)) if benchmarks is None else benchmarks)
    ours, theirs = results.averages(method, kept), results.averages(other, kept)
    _, found = paired_bootstrap(
        results.answers_by_name(method, kept),
        results.answers_by_name(other, kept),
        paired_seeds=results.seeds[method] == results.seeds[other],
        num_resamples=NUM_RESAMPLES,
        confidence=LEVEL,
    )
    pairs = _paired(results.seeds[method], results.seeds[other], ours, theirs)
    return Comparison(
        method=method,
        other=other,
        difference=float(ours.mean() - theirs.mean()),
        low=100 * found.low,
        high=100 * found.high,
        p_value=found.p_value,
        seeds_ahead=sum(a > b for a, b in pairs),
        num_seeds=len(pairs),
        seeds_p_value=wilcoxon(*zip(*pairs, strict=True)).p_value if pairs else None,
    )


def _paired(
    seeds: tuple[int, ...],
    other_seeds: tuple[int, ...],
    ours: NDArray[np.float64],
    theirs: NDArray[np.float64],
) -> list[tuple[float, float]]:
    if not seeds or not other_seeds:
        return [(float(a), float(b)) for a in ours for b in theirs]
    return [
        (float(ours[seeds.index(seed)]), float(theirs[other_seeds.index(seed)]))
        for seed in seeds
        if seed in other_seeds
    ]


def leave_one_out(results: Results, method: str, other: str) -> dict[str, Comparison]:
    """The comparison without each benchmark in turn: {left-out benchmark: comparison}."""
    everything = range(len(results.benchmarks))
    return {
        name: compare(results, method, other, [i for i in everything if i != left_out])
        for left_out, name in enumerate(results.benchmarks)
        if len(results.benchmarks) > 1
    }


def holm_p_values(found: Sequence[Comparison]) -> dict[str, float]:
    """The comparisons' p-values, adjusted for their number: {other method: p}."""
    return holm({comparison.other: comparison.p_value for comparison in found})


def opponents(experiment: Experiment, method: str) -> list[str]:
    """The methods that a MERIT method must be held against, in this order.

    Joint training for the same epochs, the base, random groups of the same number, and the
    distance-matched shrunken joint model (docs/method.md 9).
    """
    ours = experiment.methods[method]
    if ours.partition != "merit":
        return [name for name in experiment.methods if name != method]
    joint, base, random, shrunk = [], [], [], []
    for name, other in experiment.methods.items():
        if other.partition == "joint" and other.epochs == ours.epochs:
            joint.append(name)
        elif other.partition == "base":
            base.append(name)
        elif other.partition == "random" and other.num_groups == ours.num_groups:
            random.append(name)
        elif other.partition == "shrunk" and other.match == method:
            shrunk.append(name)
    return joint + base + random + shrunk
