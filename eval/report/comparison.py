"""Where a difference comes from: the main method against its opponents, benchmark by benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from merit.config import Experiment
from merit.eval.report.intervals import compare, opponents
from merit.eval.report.render import points, render
from merit.eval.report.tables import DASH
from merit.eval.results import Results
from merit.eval.statistics import McNemar, gain_shares, holm, mcnemar
from merit.eval.table_files import markdown_table
from merit.io.artifacts import atomic_write

MOST = 0.8  # of a gain: how many benchmarks carry so much is said in words


@dataclass(frozen=True)
class BenchmarkDifference:
    """`method` - `other` on one benchmark, in points, with the paired bootstrap's interval.

    `p_value` is the bootstrap's, one-sided, `p_holm` adjusted over the benchmarks. `test` is
    McNemar's on the first common seed, None where answers are graded or no seed is shared.
    `share` is the benchmark's part of the summed difference (None where that is 0).
    """

    method: str
    other: str
    benchmark: str
    difference: float
    low: float
    high: float
    num_questions: int
    p_value: float
    p_holm: float
    test: McNemar | None
    share: float | None


def by_benchmark(results: Results, method: str, other: str) -> list[BenchmarkDifference]:
    """One entry a benchmark, in their order."""
    found = {
        name: compare(results, method, other, [b]) for b, name in enumerate(results.benchmarks)
    }
    adjusted = holm({name: comparison.p_value for name, comparison in found.items()})
    means = [
        dict(zip(results.benchmarks, results.scores[m].mean(axis=0).tolist(), strict=True))
        for m in (method, other)
    ]
    shares = gain_shares(*means)
    return [
        BenchmarkDifference(
            method=method,
            other=other,
            benchmark=name,
            difference=c.difference,
            low=c.low,
            high=c.high,
            num_questions=results.num_questions[name],
            p_value=c.p_value,
            p_holm=adjusted[name],
            test=_mcnemar(results, method, other, b),
            share=shares[name],
        )
        for b, (name, c) in enumerate(found.items())
    ]


def _mcnemar(results: Results, method: str, other: str, benchmark: int) -> McNemar | None:
    """On the first common seed: several seeds' answers to one question are not independent."""
    seeds = [results.seeds[m] for m in (method, other)]
    common = [seed for seed in seeds[0] if seed in seeds[1]]
    if common:
        rows = [s.index(common[0]) for s in seeds]
    elif all(seeds):
        return None
    else:
        rows = [0, 0]  # the base has no seed
    ours, theirs = (
        results.answers[m][benchmark][row] for m, row in zip((method, other), rows, strict=True)
    )
    if not np.isin(np.concatenate([ours, theirs]), (0.0, 1.0)).all():
        return None
    return mcnemar(ours, theirs, results.benchmarks[benchmark])


def comparisons(experiment: Experiment, results: Results) -> dict[str, list[BenchmarkDifference]]:
    """Opponent -> the main method's difference to it on every benchmark.

    The base is left out: only what is trained, or derived from training, is compared so closely.
    """
    method = experiment.report.partition
    if method is None:
        return {}
    others = opponents(experiment, method)
    trained = [name for name in others if experiment.methods[name].partition != "base"]
    return {other: by_benchmark(results, method, other) for other in trained}


def carriers(rows: Sequence[BenchmarkDifference]) -> list[BenchmarkDifference]:
    """The fewest benchmarks that carry `MOST` of the summed difference, largest share first."""
    ranked = sorted(
        (row for row in rows if row.share is not None), key=lambda row: -(row.share or 0.0)
    )
    carried, total = [], 0.0
    for row in ranked:
        if total >= MOST:
            break
        carried.append(row)
        total += row.share or 0.0
    return carried


def carriers_sentence(rows: Sequence[BenchmarkDifference]) -> str:
    """ "Against joint-1ep, 2 of 8 benchmarks carry 83 % of the gain: ..." """
    carried = carriers(rows)
    return render(
        "carriers.md.j2",
        other=rows[0].other,
        num=len(rows),
        carried=[f"{row.benchmark} ({row.difference:+.1f})" for row in carried],
        share=sum(row.share or 0.0 for row in carried),
        average=sum(row.difference for row in rows) / len(rows),
    )


def glance(found: dict[str, list[BenchmarkDifference]]) -> list[str]:
    """Where each difference comes from: a sentence an opponent."""
    return [carriers_sentence(rows).rstrip() for rows in found.values()]


# --- files --------------------------------------------------------------------------------------


def frame(found: dict[str, list[BenchmarkDifference]]) -> pd.DataFrame:
    """One row a difference: what comparison.csv holds."""
    return pd.DataFrame(
        [
            {
                "method": row.method,
                "other": row.other,
                "benchmark": row.benchmark,
                "difference": f"{row.difference:.4f}",
                "ci_low": f"{row.low:.4f}",
                "ci_high": f"{row.high:.4f}",
                "num_questions": row.num_questions,
                "p_bootstrap": f"{row.p_value:.4g}",
                "p_holm": f"{row.p_holm:.4g}",
                "mcnemar_ours_only": "" if row.test is None else row.test.ours_only,
                "mcnemar_theirs_only": "" if row.test is None else row.test.theirs_only,
                "mcnemar_p": "" if row.test is None else f"{row.test.p_value:.4g}",
                "share_of_gain": "" if row.share is None else f"{row.share:.4f}",
            }
            for rows in found.values()
            for row in rows
        ]
    )


def comparison_part(found: dict[str, list[BenchmarkDifference]], level: str = "###") -> str:
    """Markdown: a table for each opponent, and which benchmarks carry the difference.

    "" without a main method. Args: level: the heading's marks.
    """
    tables = [markdown_table(_table(rows)) for rows in found.values()]
    if not tables:
        return ""
    return render("comparison.md.j2", level=level, glance=glance(found), tables=tables)


def _table(rows: Sequence[BenchmarkDifference]) -> list[list[str]]:
    head = [f"{rows[0].method} − {rows[0].other}", "difference", "p (Holm)"]
    return [
        [*head, "McNemar: only ours, only theirs right", "p", "share of the difference"],
        *(
            [
                row.benchmark,
                points(row.difference, row.low, row.high),
                f"{row.p_holm:.3f}",
                DASH if row.test is None else f"{row.test.ours_only}, {row.test.theirs_only}",
                DASH if row.test is None else f"{row.test.p_value:.3f}",
                DASH if row.share is None else f"{row.share:.0%}",
            ]
            for row in rows
        ),
    ]


def write_comparison(found: dict[str, list[BenchmarkDifference]], out: Path) -> None:
    """comparison.csv and comparison.md; nothing without a main method."""
    if found:
        atomic_write(out / "comparison.csv", frame(found).to_csv(index=False, lineterminator="\n"))
        atomic_write(out / "comparison.md", comparison_part(found, "#"))
