"""Every number of a results table: mean and spread over seeds, and its bootstrap interval.

Intervals are over seeds and questions together where a method has several seeds, over questions
only where it has one (the base has none).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merit.eval.results import Results
from merit.eval.statistics import LEVEL, NUM_RESAMPLES, bootstrap_interval

AVERAGE = "avg"
CLOSED = "avg_closed"  # without the open-ended benchmarks


@dataclass(frozen=True)
class Cell:
    """In percent. `spread` is the standard deviation (n - 1), None with fewer than two seeds."""

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
    """Every cell, rows and columns in the order of the experiment's YAML."""
    return {
        method: {column: _cell(results, method, kept) for column, kept in columns(results).items()}
        for method in results.methods
    }


def _cell(results: Results, method: str, kept: list[int]) -> Cell:
    values = results.averages(method, kept)
    names = [results.benchmarks[b] for b in kept]
    low, high = bootstrap_interval(
        results.by_name(method, names), num_resamples=NUM_RESAMPLES, confidence=LEVEL
    )
    return Cell(
        mean=float(values.mean()),
        spread=spread(values),
        low=100 * low,
        high=100 * high,
        num_questions=sum(results.num_questions[name] for name in names),
    )


def spread(values: NDArray[np.float64]) -> float | None:
    """Standard deviation (n - 1) over seeds; None with fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def one_seed(results: Results) -> list[str]:
    """The methods whose intervals are over questions only; the base is not named."""
    return [method for method, seeds in results.seeds.items() if len(seeds) == 1]


def resampled(results: Results) -> str:
    """What the intervals are over, in words that follow "bootstrap"."""
    single = one_seed(results)
    if not any(len(seeds) > 1 for seeds in results.seeds.values()):
        return "over questions only: no method has several seeds, and others are not spoken of"
    words = "over seeds and questions together"
    if single:
        words += f" (over questions only for {', '.join(single)}: one seed each)"
    return words
