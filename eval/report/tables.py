"""The results table: rows = methods in YAML order, columns = benchmarks and averages.

`<stem>.csv` is wide like the paper's table, `<stem>_tidy.csv` has one row per number with
everything that belongs to it (n, seeds, spread, interval, parameter hash), ours and the
paper's. `<stem>_paper_layout.csv` has our means in the paper's columns and rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from merit.eval.benchmarks import BENCHMARKS
from merit.eval.measuring.scores import sample_std
from merit.eval.paper import LABELS, PaperTable
from merit.eval.report.cells import AVERAGE, CLOSED, Cells, columns, resampled
from merit.eval.report.provenance import Provenance
from merit.eval.results import Results
from merit.eval.table_files import latex_table, markdown_table, write_csv
from merit.io.artifacts import atomic_write

DASH = "–"  # no such number: one seed has no spread, a method may be absent from the paper
HEADINGS = {AVERAGE: "avg", CLOSED: "avg without open-ended"}
TIDY = (
    *("source", "scale", "method", "benchmark", "stands_for", "mean", "spread", "ci_low"),
    *("ci_high", "num_seeds", "seeds", "num_questions", "parameter_hash"),
)
Rows = list[list[str]]


@dataclass(frozen=True)
class ShownTable:
    """A table as the page shows it: Markdown, "" where there is nothing to show.

    `rows` has our means in the paper's layout, header first; [] where benchmarks differ.
    """

    stem: str
    title: str
    ours: str
    laid_out: str
    beside: str
    published: str
    caption: str
    paper_caption: str
    rows: Rows


def write_table(
    title: str,
    label: str,
    results: Results,
    cells: Cells,
    paper: PaperTable,
    provenance: Provenance,
    out: Path,
) -> ShownTable:
    """Write the table's CSV and LaTeX files; returns its parts. Args: label: LaTeX's."""
    stem, laid_out = paper.stem, layout(results, cells, paper)
    write_csv(out / f"{stem}.csv", wide_table(results, cells, paper))
    write_csv(out / f"{stem}_tidy.csv", tidy_table(results, cells, paper, provenance))
    if laid_out:
        table = pd.DataFrame(laid_out[1:], columns=laid_out[0])
        write_csv(out / f"{stem}_paper_layout.csv", table)
    ours, words, beside = text_table(results, cells, paper), caption(results), beside_table(results)
    published = [list(row) for row in (paper.header, *paper.rows)] if paper.published else []
    theirs = paper_caption(paper, bool(laid_out))
    latex = latex_table(ours, f"{title}. {words}", label)
    if published:
        latex += "\n" + latex_table(published, theirs, f"{label}-paper")
    atomic_write(out / f"{stem}.tex", latex)
    tables = {"ours": ours, "laid_out": laid_out, "beside": beside, "published": published}
    shown = {name: markdown_table(rows) if rows else "" for name, rows in tables.items()}
    return ShownTable(stem, title, caption=words, paper_caption=theirs, rows=laid_out, **shown)


def tidy_table(
    results: Results, cells: Cells, paper: PaperTable, provenance: Provenance
) -> pd.DataFrame:
    """One row per number. Ours: mean and spread over seeds, and the bootstrap interval.

    The paper's rows have `source` "paper" and its model and data in `scale`; their cells are the
    strings of its CSV.
    """
    rows: list[dict[str, str]] = []
    for method, row in cells.items():
        seeds = results.seeds[method]
        named = {
            **{"source": "ours", "scale": "this experiment", "method": method},
            **{"num_seeds": str(max(1, len(seeds))), "seeds": " ".join(map(str, seeds))},
            "parameter_hash": provenance.parameter_hash,
        }
        rows += [
            {
                **named,
                "benchmark": column,
                "stands_for": stands_for([column]).get(column, ""),
                "mean": f"{cell.mean:.4f}",
                "spread": _number(cell.spread, 4),
                "ci_low": f"{cell.low:.4f}",
                "ci_high": f"{cell.high:.4f}",
                "num_questions": str(cell.num_questions),
            }
            for column, cell in row.items()
        ]
        for name, values in results.also.get(method, {}).items():  # no questions' mean
            numbers = {"mean": f"{values.mean():.4f}", "spread": _number(sample_std(values), 4)}
            rows.append({**named, "benchmark": name, **numbers})
    for line in paper.rows:
        cells_of = dict(zip(paper.header, line, strict=True))
        method = " ".join(text for head, text in cells_of.items() if head in LABELS)
        named = {"source": "paper", "scale": paper.scale, "method": method}
        scores = {head: text for head, text in cells_of.items() if head not in LABELS}
        rows += [{**named, "benchmark": head, "mean": text} for head, text in scores.items()]
    return pd.DataFrame(rows, columns=list(TIDY)).fillna("")


def stands_for(benchmarks: Sequence[str]) -> dict[str, str]:
    """Benchmark -> the column of the paper's table that it is or stands for, if it has one."""
    return {
        name: BENCHMARKS[name].paper_column
        for name in benchmarks
        if name in BENCHMARKS and BENCHMARKS[name].paper_column
    }


def wide_table(results: Results, cells: Cells, paper: PaperTable) -> pd.DataFrame:
    """One row per method: means, then the average's spread, interval, n, and the paper's average
    if one is published."""
    published = paper.averages()
    rows = []
    for method, row in cells.items():
        average = row[AVERAGE]
        found = {
            "method": method,
            **{column: f"{cell.mean:.2f}" for column, cell in row.items()},
            "avg_spread": _number(average.spread, 2),
            "avg_ci_low": f"{average.low:.2f}",
            "avg_ci_high": f"{average.high:.2f}",
            "num_seeds": str(max(1, len(results.seeds[method]))),
            "num_questions": str(average.num_questions),
        }
        theirs = {"paper_avg_other_scale": published.get(method, "")} if paper.published else {}
        rows.append(found | theirs)
    return pd.DataFrame(rows)


def text_table(results: Results, cells: Cells, paper: PaperTable) -> Rows:
    """The table as a reader sees it: header and rows of short strings.

    Scores as mean ± spread over seeds (only the mean with one seed), then the 95 % interval of
    the average, the number of seeds, and the paper's average if one is published.
    """
    published = paper.averages()
    scored = [HEADINGS.get(name, name) for name in columns(results)]
    rows = [["method", *scored, "95 % CI of avg", "seeds"]]
    rows[0] += ["paper's avg"] if paper.published else []
    for method, row in cells.items():
        scores = [_with_spread(cell.mean, cell.spread) for cell in row.values()]
        limits = f"[{row[AVERAGE].low:.1f}, {row[AVERAGE].high:.1f}]"
        num_seeds = str(len(results.seeds[method]) or DASH)
        theirs = [published.get(method, DASH)] if paper.published else []
        rows.append([method, *scores, limits, num_seeds, *theirs])
    return rows


def beside_table(results: Results) -> Rows:
    """What the engine reports beside its scores; [] where there is nothing."""
    names = list(dict.fromkeys(name for values in results.also.values() for name in values))
    rows = [["reported beside", *names]]
    for method, found in results.also.items():
        means = {name: _with_spread(x.mean(), sample_std(x)) for name, x in found.items()}
        rows.append([method, *(means.get(name, DASH) for name in names)])
    return rows if names else []


def layout(results: Results, cells: Cells, paper: PaperTable) -> Rows:
    """Header and rows of the paper's table with our means: its columns, methods and order.

    A cell that we have no number for is empty, and so is the average of a row that has such a cell
    among the benchmarks. [] where a benchmark is none of the paper's own.
    """
    records = [BENCHMARKS.get(name) for name in results.benchmarks]
    if not all(r and r.public and r.paper_column in paper.columns for r in records):
        return []
    ours = {BENCHMARKS[name].paper_column: name for name in results.benchmarks}
    beside = {name for values in results.also.values() for name in values}
    whole = set(paper.columns) <= {*ours, *beside}
    rows = []
    for method in paper.by_method():
        if method in cells:
            known = {"build": paper.build or "", "method": method}
            if whole:
                known["avg"] = f"{cells[method][AVERAGE].mean:.1f}"
            known |= {c: f"{cells[method][name].mean:.1f}" for c, name in ours.items()}
            known |= {c: f"{v.mean():.1f}" for c, v in results.also.get(method, {}).items()}
            rows.append([known.get(head, "") for head in paper.header])
    return [list(paper.header), *rows]


def caption(results: Results) -> str:
    """What the numbers of the table mean."""
    counts = results.num_questions.values()
    num = " to ".join(map(str, sorted({min(counts), max(counts)})))
    others = [n for n in results.benchmarks if n in BENCHMARKS and not BENCHMARKS[n].public]
    meant = [f"{name} ({other})" for name, other in stands_for(others).items()]
    text = (
        "Scores in percent: mean ± standard deviation over seeds; "
        f"{num} questions a benchmark; intervals by bootstrap {resampled(results)}."
    )
    if CLOSED in columns(results):
        text += f" Without open-ended: all but {', '.join(results.open_ended)}."
    if meant:
        text += f" Benchmarks and what they stand for: {', '.join(meant)}."
    return text


def paper_caption(paper: PaperTable, same: bool) -> str:
    """What the published numbers are of; "" where nothing is published.

    Args: same: whether they are of our benchmarks; else they are on another scale.
    """
    if not paper.published:
        return ""
    if same:
        return (
            f"Published numbers ({paper.scale}) of the same benchmarks: the paper states neither "
            "judge nor shots nor prompts, so small differences of level may be theirs."
        )
    return (
        f"Published numbers, **another scale** ({paper.scale}): compare the order and the signs "
        "of differences, not the values."
    )


def _with_spread(mean: float, deviation: float | None) -> str:
    return f"{mean:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
