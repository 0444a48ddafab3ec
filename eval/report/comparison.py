"""The comparison: one method minus another, in points, with the paired bootstrap's interval.

Seeds are resampled in pairs where both methods have the very same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from merit.config import Experiment
from merit.eval.report.cells import AVERAGE, CLOSED, columns
from merit.eval.results import Results
from merit.eval.statistics import (
    LEVEL,
    NUM_RESAMPLES,
    Difference,
    gain_shares,
    holm,
    paired_bootstrap,
)

Comparison = Mapping[str, Difference]  # column of the results table -> difference in points


def compare(
    results: Results, ours: str, theirs: str, kept: Sequence[int] | None = None
) -> Difference:
    """`ours` - `theirs` on the mean of the benchmarks at positions `kept` (all by default)."""
    kept = list(range(len(results.benchmarks)) if kept is None else kept)
    _, found = paired_bootstrap(
        results.answers_by_name(ours, kept),
        results.answers_by_name(theirs, kept),
        paired_seeds=results.seeds[ours] == results.seeds[theirs],
        num_resamples=NUM_RESAMPLES,
        confidence=LEVEL,
    )
    value = results.averages(ours, kept).mean() - results.averages(theirs, kept).mean()
    return found._replace(difference=float(value), low=100 * found.low, high=100 * found.high)


def comparisons(experiment: Experiment, results: Results) -> dict[str, Comparison]:
    """Opponent -> the main method's difference to it in every column; {} without a main method."""
    main = experiment.report.partition
    if main is None:
        return {}
    return {
        other: {
            column: compare(results, main, other, kept) for column, kept in columns(results).items()
        }
        for other in opponents(experiment, main)
    }


def opponents(experiment: Experiment, main: str) -> list[str]:
    """The methods that the main one must be held against, in this order.

    Joint training for the same epochs, the base, random groups of the same number, and the
    distance-matched shrunken joint model (docs/method.md 9).
    """
    ours = experiment.methods[main]
    found: dict[str, list[str]] = {kind: [] for kind in ("joint", "base", "random", "shrunk")}
    for name, other in experiment.methods.items():
        if (
            other.partition == "base"
            or (other.partition == "joint" and other.epochs == ours.epochs)
            or (other.partition == "random" and other.num_groups == ours.num_groups)
            or (other.partition == "shrunk" and other.match == main)
        ):
            found[other.partition].append(name)
    return [name for names in found.values() for name in names if name != main]


def frame(main: str, found: Mapping[str, Comparison]) -> pd.DataFrame:
    """One row per opponent and benchmark: what comparison.csv holds.

    `p_holm` is adjusted over the benchmarks; `share_of_gain` is the benchmark's part of the summed
    difference, empty where that is 0.
    """
    rows = []
    for other, columns_ in found.items():
        cells = {name: d for name, d in columns_.items() if name not in (AVERAGE, CLOSED)}
        adjusted = holm({name: cell.p_value for name, cell in cells.items()})
        shares = gain_shares({name: cell.difference for name, cell in cells.items()})
        rows += [
            {
                "method": main,
                "other": other,
                "benchmark": name,
                "difference": f"{cell.difference:.4f}",
                "ci_low": f"{cell.low:.4f}",
                "ci_high": f"{cell.high:.4f}",
                "num_questions": cell.num_questions,
                "p_bootstrap": f"{cell.p_value:.4g}",
                "p_holm": f"{adjusted[name]:.4g}",
                "share_of_gain": "" if (share := shares[name]) is None else f"{share:.4f}",
            }
            for name, cell in cells.items()
        ]
    return pd.DataFrame(rows)
