"""Contrasts of methods in points, with the bootstrap's interval; the comparison of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from merit.config import Experiment
from merit.eval.report.cells import AVERAGE, CLOSED, columns
from merit.eval.results import Results
from merit.eval.statistics import Difference, contrast_bootstrap, gain_shares, holm

Comparison = Mapping[str, Difference]  # column of the results table -> difference in points


def contrast(
    bases: Sequence[Results], terms: Mapping[str, float], kept: Sequence[int] | None = None
) -> Difference:
    """sum of coefficient x average over the first one's benchmarks at positions `kept`, in points.

    The mean over those bases that have all of the methods, in the seeds that all of them have.
    Seeds are resampled together if all methods with several have the same ones.
    """
    own, *others = bases
    names = [own.benchmarks[b] for b in (range(len(own.benchmarks)) if kept is None else kept)]
    pool = [own, *(base for base in others if all(_shared(own, base, m) for m in terms))]
    seeds = {m: [s for s in own.seeds[m] if all(s in b.seeds[m] for b in pool)] for m in terms}
    _, found = contrast_bootstrap(
        *([(c, base.by_name(m, names, seeds[m])) for m, c in terms.items()] for base in pool),
        paired_seeds=len({tuple(s) for s in seeds.values() if len(s) > 1}) == 1,
    )
    percent = {key: 100 * getattr(found, key) for key in ("difference", "low", "high")}
    return found._replace(**percent)


def _shared(own: Results, other: Results, method: str) -> bool:
    """Whether both have the method, in a seed in common if it has seeds."""
    wanted, there = own.seeds[method], other.seeds.get(method)
    return there is not None and (not wanted or not set(wanted).isdisjoint(there))


def compare(
    results: Results, ours: str, theirs: str, kept: Sequence[int] | None = None
) -> Difference:
    """`ours` - `theirs` on this base only."""
    terms = {ours: 1.0, theirs: -1.0} if ours != theirs else {ours: 0.0}
    return contrast([results], terms, kept)


def comparisons(experiment: Experiment, bases: Sequence[Results]) -> dict[str, Comparison]:
    """Opponent -> the main method's difference to it in every column; {} without a main method."""
    main = experiment.report.partition
    if main is None:
        return {}
    return {
        other: {
            column: contrast(bases, {main: 1.0, other: -1.0}, kept)
            for column, kept in columns(bases[0]).items()
        }
        for names in opponents(experiment, main).values()
        for other in names
    }


def opponents(experiment: Experiment, main: str) -> dict[str, list[str]]:
    """The methods that the main one must be held against, by kind, in this order.

    Joint training for the same epochs, the base, random groups of the same number, and the
    distance-matched shrunken joint model (docs/method.md 9).
    """
    ours = experiment.methods[main]
    found: dict[str, list[str]] = {kind: [] for kind in ("joint", "base", "random", "shrunk")}
    for name, other in experiment.methods.items():
        if name != main and (
            other.partition == "base"
            or (other.partition == "joint" and other.epochs == ours.epochs)
            or (other.partition == "random" and other.num_groups == ours.num_groups)
            or (other.partition == "shrunk" and other.match == main)
        ):
            found[other.partition].append(name)
    return found


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
                "num_bases": cell.num_bases,
                "num_questions": cell.num_questions,
                "p_bootstrap": f"{cell.p_value:.4g}",
                "p_holm": f"{adjusted[name]:.4g}",
                "share_of_gain": "" if shares[name] is None else f"{shares[name]:.4f}",
            }
            for name, cell in cells.items()
        ]
    return pd.DataFrame(rows)
