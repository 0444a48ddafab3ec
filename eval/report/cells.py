"""Every number of a results table: mean and spread over seeds, and its bootstrap interval.

Intervals are over seeds and questions together where a method has several seeds, over questions
only where it has one (the base has none).
"""

from __future__ import annotations

from dataclasses import dataclass

from merit.eval.measuring.scores import sample_std
from merit.eval.results import Results
from merit.eval.statistics import bootstrap_interval

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
    values, names = results.averages(method, kept), [results.benchmarks[b] for b in kept]
    answers = results.by_name(method, names)
    low, high = bootstrap_interval(answers)
    num_questions = sum(results.num_questions[name] for name in names)
    return Cell(float(values.mean()), sample_std(values), 100 * low, 100 * high, num_questions)


def one_seed(results: Results) -> list[str]:
    """The methods whose intervals are over questions only; the base is not named."""
    return [method for method, seeds in results.seeds.items() if len(seeds) == 1]


def resampled(results: Results) -> str:
    """What the intervals are over, in words that follow "bootstrap"."""
    if not any(len(seeds) > 1 for seeds in results.seeds.values()):
        return "over questions only: no method has several seeds, and others are not spoken of"
    single = ", ".join(one_seed(results))
    words = "over seeds and questions together"
    return words + (f" (over questions only for {single}: one seed each)" if single else "")
