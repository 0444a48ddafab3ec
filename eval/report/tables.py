"""The results table: rows = methods in YAML order, columns = benchmarks and averages.

`<stem>.csv` is wide like the paper's table, `<stem>_tidy.csv` has one row a number with everything
that belongs to it (n, seeds, spread, interval, commit, parameter hash), ours and the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from merit.config import Experiment
from merit.eval.benchmarks import BENCHMARKS
from merit.eval.paper import LABELS, PaperTable
from merit.eval.report.intervals import AVERAGE, CLOSED, Cells, columns, resampled
from merit.eval.report.provenance import Provenance
from merit.eval.report.render import render
from merit.eval.results import Results
from merit.eval.table_files import latex_table, markdown_table
from merit.io.artifacts import atomic_write, write_json

DASH = "–"  # no such number: one seed has no spread, a method may be absent from the paper


def tidy_table(
    results: Results, cells: Cells, paper: PaperTable, provenance: Provenance
) -> pd.DataFrame:
    """One row a number. Ours: mean and spread over seeds, and the bootstrap interval.

    The paper's rows have `source` "paper" and its model and data in `scale`; their cells are the
    strings of its CSV.
    """
    rows: list[dict[str, str]] = []
    for method, row in cells.items():
        known = {
            "num_seeds": str(max(1, len(results.seeds[method]))),
            "seeds": " ".join(map(str, results.seeds[method])),
            "commit": provenance.commit,
            "parameter_hash": provenance.parameter_hash,
        }
        named = {"source": "ours", "scale": "this experiment", "method": method}
        for column, cell in row.items():
            rows.append(
                named
                | {
                    "benchmark": column,
                    "stands_for": stands_for([column]).get(column, ""),
                    "mean": f"{cell.mean:.4f}",
                    "spread": _number(cell.spread, 4),
                    "ci_low": f"{cell.low:.4f}",
                    "ci_high": f"{cell.high:.4f}",
                    "num_questions": str(cell.num_questions),
                }
                | known
            )
        for name, values in results.also.get(method, {}).items():  # no questions' mean
            numbers = {"mean": f"{values.mean():.4f}", "spread": _number(spread(values), 4)}
            rows.append(named | {"benchmark": name} | numbers | known)
    for line in paper.rows:
        labels = [c for c, head in zip(line, paper.header, strict=True) if head in LABELS]
        for head, text in zip(paper.header, line, strict=True):
            if head not in LABELS:
                rows.append(
                    {
                        "source": "paper",
                        "scale": paper.scale,
                        "method": " ".join(labels),
                        "benchmark": head,
                        "mean": text,
                    }
                )
    return pd.DataFrame(rows, columns=list(TIDY)).fillna("")


TIDY = (
    *("source", "scale", "method", "benchmark", "stands_for", "mean", "spread", "ci_low"),
    *("ci_high", "num_seeds", "seeds", "num_questions", "commit", "parameter_hash"),
)


def stands_for(benchmarks: Sequence[str]) -> dict[str, str]:
    """Benchmark -> the column of the paper's table that it is or stands for, where it has one."""
    return {
        name: BENCHMARKS[name].paper_column
        for name in benchmarks
        if name in BENCHMARKS and BENCHMARKS[name].paper_column
    }


def same_benchmarks(results: Results, paper: PaperTable) -> bool:
    """Whether the numbers are of the benchmarks of the paper's table, and not of others."""
    return all(
        name in BENCHMARKS and BENCHMARKS[name].public and column in paper.columns
        for name in results.benchmarks
        for column in [stands_for([name]).get(name, "")]
    )


def wide_table(results: Results, cells: Cells, paper: PaperTable) -> pd.DataFrame:
    """One row a method: means, then the average's spread, interval, n, and the paper's average
    where one is published."""
    published = paper.averages()
    rows = []
    for method, row in cells.items():
        average = row[AVERAGE]
        rows.append(
            {"method": method}
            | {column: f"{cell.mean:.2f}" for column, cell in row.items()}
            | {
                "avg_spread": _number(average.spread, 2),
                "avg_ci_low": f"{average.low:.2f}",
                "avg_ci_high": f"{average.high:.2f}",
                "num_seeds": str(max(1, len(results.seeds[method]))),
                "num_questions": str(average.num_questions),
            }
            | ({"paper_avg_other_scale": published.get(method, "")} if paper.published else {})
        )
    return pd.DataFrame(rows)


def text_table(results: Results, cells: Cells, paper: PaperTable) -> list[list[str]]:
    """The table as a reader sees it: header and rows of short strings.

    Scores as mean ± spread over seeds (the mean alone with one seed), then the 95 % interval of
    the average, the number of seeds, and the paper's average where one is published.
    """
    published = paper.averages()
    scored = [HEADINGS.get(name, name) for name in columns(results)]
    theirs = ["paper's avg"] if paper.published else []
    rows = [["method", *scored, "95 % CI of avg", "seeds", *theirs]]
    for method, row in cells.items():
        scores = [
            f"{c.mean:.1f}" + ("" if c.spread is None else f" ± {c.spread:.1f}")
            for c in row.values()
        ]
        limits = f"[{row[AVERAGE].low:.1f}, {row[AVERAGE].high:.1f}]"
        num_seeds = str(len(results.seeds[method]) or DASH)
        theirs = [published.get(method, DASH)] if paper.published else []
        rows.append([method, *scores, limits, num_seeds, *theirs])
    return rows


def beside_table(results: Results) -> str:
    """What the engine reports beside its scores, as Markdown; "" where there is nothing."""
    names = list(dict.fromkeys(name for values in results.also.values() for name in values))
    rows = [["reported beside", *names]]
    for method, found in results.also.items():
        means = {
            name: f"{values.mean():.1f}" + ("" if len(values) < 2 else f" ± {spread(values):.1f}")
            for name, values in found.items()
        }
        rows.append([method, *(means.get(name, DASH) for name in names)])
    return markdown_table(rows) if names else ""


def spread(values: NDArray[np.float64]) -> float | None:
    """Standard deviation (n - 1) over seeds; None with fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


HEADINGS = {AVERAGE: "avg", CLOSED: "avg without open-ended"}


def caption(results: Results) -> str:
    """What the numbers of the table mean."""
    counts = results.num_questions.values()
    others = [n for n in results.benchmarks if n in BENCHMARKS and not BENCHMARKS[n].public]
    return render(
        "caption.md.j2",
        counts=sorted({min(counts), max(counts)}),
        resampled=resampled(results),
        open_ended=results.open_ended if CLOSED in columns(results) else (),
        stands_for=[f"{name} ({other})" for name, other in stands_for(others).items()],
    ).rstrip()


def paper_caption(paper: PaperTable, same: bool = False) -> str:
    """What the published numbers are of; other benchmarks than ours unless `same`: another scale.

    "" where nothing is published.
    """
    if not paper.published:
        return ""
    return render("paper_caption.md.j2", scale=paper.scale, same=same).rstrip()


def published_part(paper: PaperTable) -> str:
    """The paper's table as Markdown; "" where nothing is published."""
    return markdown_table(published_rows(paper)) if paper.published else ""


def published_rows(paper: PaperTable) -> list[list[str]]:
    """The paper's table: header and rows."""
    return [list(paper.header), *map(list, paper.rows)]


def write_tables(
    experiment: Experiment,
    results: Results,
    cells: Cells,
    paper: PaperTable,
    provenance: Provenance,
    out: Path,
) -> None:
    """The report's own table (`write_table`), metrics.json, provenance.json."""
    title = experiment.report.title
    write_table(title, f"tab:{experiment.name}", results, cells, paper, provenance, out)
    averages = {method: round(row[AVERAGE].mean, 4) for method, row in cells.items()}
    write_json(out / "metrics.json", averages)
    write_json(out / "provenance.json", provenance.record(results))


def write_table(
    title: str,
    label: str,
    results: Results,
    cells: Cells,
    paper: PaperTable,
    provenance: Provenance,
    out: Path,
) -> None:
    """<stem>.csv, <stem>_tidy.csv, <stem>.md, <stem>.tex. Args: label: LaTeX's."""
    stem = paper.stem
    wide = wide_table(results, cells, paper)
    atomic_write(out / f"{stem}.csv", wide.to_csv(index=False, lineterminator="\n"))
    tidy = tidy_table(results, cells, paper, provenance)
    atomic_write(out / f"{stem}_tidy.csv", tidy.to_csv(index=False, lineterminator="\n"))
    ours, words = text_table(results, cells, paper), caption(results)
    theirs = paper_caption(paper, same_benchmarks(results, paper))
    page = render(
        "table.md.j2",
        title=title,
        caption=words,
        ours=markdown_table(ours),
        beside=beside_table(results),
        paper_caption=theirs,
        published=published_part(paper),
    )
    atomic_write(out / f"{stem}.md", page)
    latex = latex_table(ours, f"{title}. {words}", label)
    if paper.published:
        latex += "\n" + latex_table(published_rows(paper), theirs, f"{label}-paper")
    atomic_write(out / f"{stem}.tex", latex)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
