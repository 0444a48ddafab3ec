"""Our numbers as the paper lays its tables out, and our base beside the paper's.

Both only where the benchmarks are the paper's own: the minis' numbers are of other questions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from merit.config import Base, Experiment, Origin
from merit.eval.benchmarks import BENCHMARKS
from merit.eval.paper import PaperTable, load_paper_table
from merit.eval.report.intervals import AVERAGE, Cells, table_cells
from merit.eval.report.provenance import Provenance
from merit.eval.report.render import render
from merit.eval.report.tables import (
    beside_table,
    caption,
    markdown_table,
    paper_caption,
    published_rows,
    same_benchmarks,
    text_table,
    write_table,
)
from merit.eval.results import Results, load_results
from merit.io.artifacts import Artifacts, atomic_write

APART = 5.0  # points between two bases from which on they are called different
Rows = list[list[str]]


def layout(results: Results, cells: Cells, paper: PaperTable) -> Rows:
    """Header and rows of the paper's table with our means: its columns, methods and order.

    A cell that we have no number for is empty, and so is the average of a row that has such a cell
    among the benchmarks. [] where a benchmark is none of the paper's own.
    """
    if not same_benchmarks(results, paper):
        return []
    ours = {BENCHMARKS[name].paper_column: name for name in results.benchmarks}
    scored = [head for head in paper.header if any(head in row for row in (ours, _beside(results)))]
    whole = set(scored) == set(paper.columns)
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


def _beside(results: Results) -> set[str]:
    return {name for values in results.also.values() for name in values}


def write_layout(rows: Rows, paper: PaperTable, out: Path) -> None:
    """<stem>_paper_layout.csv; nothing without rows."""
    if rows:
        table = pd.DataFrame(rows[1:], columns=rows[0])
        text = table.to_csv(index=False, lineterminator="\n")
        atomic_write(out / f"{paper.stem}_paper_layout.csv", text)


# --- the base -----------------------------------------------------------------------------------


def base_part(experiment: Experiment, results: Results, cells: Cells, paper: PaperTable) -> str:
    """Which base was used, and its row beside the paper's; "" for a generated world."""
    if experiment.data.source.startswith("mini_"):
        return ""
    rows = base_rows(experiment, results, cells, paper)
    far = [f"{name} ({ours - theirs:+.1f})" for name, ours, theirs in rows if _far(ours, theirs)]
    table = [
        ["benchmark", "our base", "paper's base", "difference"],
        *([n, f"{a:.1f}", f"{b:.1f}", f"{a - b:+.1f}"] for n, a, b in rows),
    ]
    return render(
        "base.md.j2",
        used=described(experiment.base),
        table=markdown_table(table) if rows else "",
        far=far,
        apart=APART,
    )


def _far(ours: float, theirs: float) -> bool:
    return round(abs(ours - theirs), 1) > APART


def base_rows(
    experiment: Experiment, results: Results, cells: Cells, paper: PaperTable
) -> list[tuple[str, float, float]]:
    """(benchmark or "avg", ours, the paper's); [] where the paper has no such row."""
    lines = layout(results, cells, paper)
    base = [name for name, method in experiment.methods.items() if method.partition == "base"]
    theirs = paper.by_method().get(base[0], {}) if base and lines else {}
    ours = dict(zip(lines[0], _row(lines, base[0]), strict=True)) if theirs else {}
    return [
        (head, float(ours[head]), float(theirs[head]))
        for head in (*paper.columns, "avg")
        if ours.get(head) and theirs.get(head)
    ]


def _row(lines: Rows, method: str) -> list[str]:
    column = lines[0].index("method")
    return next((line for line in lines[1:] if line[column] == method), [""] * len(lines[0]))


def described(base: Base) -> str:
    """Where a base comes from, in words: the hub at a commit, a folder or parts, and phases."""
    if base.assemble is not None:
        words = (
            f"assembled of the vision encoder of {_origin(base.assemble.vision)}, the decoder of "
            f"{_origin(base.assemble.decoder)} and a fresh projector"
        )
    elif base.architecture is not None:
        words = "built from scratch"
    else:
        place = Origin(checkpoint=base.checkpoint, hub=base.hub, revision=base.revision)
        words = _origin(place) + (", as released" if base.hub and not base.phases else "")
    phases = [f"{phase.name} ({phase.num_steps} steps)" for phase in base.phases]
    return f"{words}, then trained: {', '.join(phases)}" if phases else words


def _origin(origin: Origin) -> str:
    return f"`{origin.hub}@{origin.revision}`" if origin.hub else f"`{origin.checkpoint}`"


# --- further tables -----------------------------------------------------------------------------


@dataclass(frozen=True)
class FurtherTable:
    """A table of the paper besides the report's own, as the pages show it: Markdown."""

    stem: str
    title: str
    ours: str
    caption: str
    beside: str
    published: str
    paper_caption: str
    laid_out: bool


def further_tables(
    experiment: Experiment,
    artifacts: Artifacts,
    reports_dir: Path,
    provenance: Provenance,
    out: Path,
) -> list[FurtherTable]:
    """Those of `report.also_tables`: their files are written, their parts of the page returned.

    Raises MeritError as load_paper_table and load_results do.
    """
    found = []
    for name, benchmarks in experiment.report.also_tables.items():
        paper = load_paper_table(name, reports_dir)
        results = load_results(experiment, artifacts, benchmarks)
        cells = table_cells(results)
        title = f"The paper's table {int(paper.stem[len('table') :])}"
        label = f"tab:{experiment.name}-{paper.stem}"
        heading = f"{title}: {experiment.report.title}"
        write_table(heading, label, results, cells, paper, provenance, out)
        rows = layout(results, cells, paper)
        write_layout(rows, paper, out)
        found.append(
            FurtherTable(
                stem=paper.stem,
                title=title,
                ours=markdown_table(rows or text_table(results, cells, paper)),
                caption=caption(results),
                beside=beside_table(results),
                published=markdown_table(published_rows(paper)),
                paper_caption=paper_caption(paper, same_benchmarks(results, paper)),
                laid_out=bool(rows),
            )
        )
    return found
