"""The results table: rows = methods in YAML order, columns = benchmarks and averages.

`<stem>.csv` is wide like the paper's table, `<stem>_tidy.csv` has one row a number with everything
that belongs to it (n, seeds, spread, interval, commit, parameter hash), ours and the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from eval.benchmarks import BENCHMARKS
from eval.paper import PaperTable
from eval.report.intervals import AVERAGE, CLOSED, Cells, columns, resampled
from eval.report.provenance import Provenance
from eval.report.render import render
from eval.results import Results
from eval.table_files import latex_table, markdown_table
from merit.config import Experiment
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
        for column, cell in row.items():
            rows.append(
                {
                    "source": "ours",
                    "scale": "this experiment",
                    "method": method,
                    "benchmark": column,
                    "stands_for": stands_for([column]).get(column, ""),
                    "mean": f"{cell.mean:.4f}",
                    "spread": _number(cell.spread, 4),
                    "ci_low": f"{cell.low:.4f}",
                    "ci_high": f"{cell.high:.4f}",
                    "num_seeds": str(max(1, len(results.seeds[method]))),
                    "seeds": " ".join(map(str, results.seeds[method])),
                    "num_questions": str(cell.num_questions),
                    "commit": provenance.commit,
                    "parameter_hash": provenance.parameter_hash,
                }
            )
    for line in paper.rows:
        labels = [c for c, head in zip(line, paper.header, strict=True) if head in _LABELS]
        for head, text in zip(paper.header, line, strict=True):
            if head not in _LABELS:
                rows.append(
                    {
                        "source": "paper",
                        "scale": paper.scale,
                        "method": " ".join(labels),
                        "benchmark": head,
                        "mean": text,
                    }
                )
    return pd.DataFrame(rows).fillna("")


_LABELS = ("build", "method", "train_examples", "run")  # the paper's columns that are not scores


def stands_for(benchmarks: Sequence[str]) -> dict[str, str]:
    """Benchmark -> the column of the paper's table that it stands for, where it has one."""
    return {name: BENCHMARKS[name].paper_column for name in benchmarks if name in BENCHMARKS}


def wide_table(results: Results, cells: Cells, paper: PaperTable) -> pd.DataFrame:
    """One row a method: means, then the average's spread, interval, n and the paper's average."""
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
                "paper_avg_other_scale": published.get(method, ""),
            }
        )
    return pd.DataFrame(rows)


def text_table(results: Results, cells: Cells, paper: PaperTable) -> list[list[str]]:
    """The table as a reader sees it: header and rows of short strings.

    Scores as mean ± spread over seeds (the mean alone with one seed), then the 95 % interval of
    the average, the number of seeds, and the paper's average.
    """
    published = paper.averages()
    scored = [HEADINGS.get(name, name) for name in columns(results)]
    rows = [["method", *scored, "95 % CI of avg", "seeds", "paper's avg"]]
    for method, row in cells.items():
        scores = [
            f"{c.mean:.1f}" + ("" if c.spread is None else f" ± {c.spread:.1f}")
            for c in row.values()
        ]
        limits = f"[{row[AVERAGE].low:.1f}, {row[AVERAGE].high:.1f}]"
        num_seeds = str(len(results.seeds[method]) or DASH)
        rows.append([method, *scores, limits, num_seeds, published.get(method, DASH)])
    return rows


HEADINGS = {AVERAGE: "avg", CLOSED: "avg without open-ended"}


def caption(results: Results) -> str:
    """What the numbers of the table mean."""
    counts = results.num_questions.values()
    return render(
        "caption.md.j2",
        counts=sorted({min(counts), max(counts)}),
        resampled=resampled(results),
        open_ended=results.open_ended if CLOSED in columns(results) else (),
        stands_for=[f"{name} ({other})" for name, other in stands_for(results.benchmarks).items()],
    ).rstrip()


def paper_caption(paper: PaperTable) -> str:
    """Marks the published numbers as another scale."""
    return render("paper_caption.md.j2", scale=paper.scale).rstrip()


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
    """<stem>.csv, <stem>_tidy.csv, <stem>.md, <stem>.tex, metrics.json, provenance.json."""
    stem, title = paper.stem, experiment.report.title
    wide = wide_table(results, cells, paper)
    atomic_write(out / f"{stem}.csv", wide.to_csv(index=False, lineterminator="\n"))
    tidy = tidy_table(results, cells, paper, provenance)
    atomic_write(out / f"{stem}_tidy.csv", tidy.to_csv(index=False, lineterminator="\n"))
    ours, published = text_table(results, cells, paper), published_rows(paper)
    page = render(
        "table.md.j2",
        title=title,
        caption=caption(results),
        ours=markdown_table(ours),
        paper_caption=paper_caption(paper),
        published=markdown_table(published),
    )
    atomic_write(out / f"{stem}.md", page)
    atomic_write(
        out / f"{stem}.tex",
        latex_table(ours, f"{title}. {caption(results)}", f"tab:{experiment.name}")
        + "\n"
        + latex_table(published, paper_caption(paper), f"tab:{experiment.name}-paper"),
    )
    averages = {method: round(row[AVERAGE].mean, 4) for method, row in cells.items()}
    write_json(out / "metrics.json", averages)
    write_json(out / "provenance.json", provenance.record(results))


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
