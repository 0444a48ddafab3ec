"""The report stage's two functions: one experiment's report, and the pages over all of them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from eval.report.figures import write_figures
from eval.report.intervals import table_cells
from eval.report.pages import write_pages, write_sections
from eval.report.paper import load_paper_table
from eval.report.provenance import load_provenance
from eval.report.results import load_results
from eval.report.tables import write_tables
from merit.config import Experiment
from merit.io.artifacts import Artifacts, atomic_write


def build_report(experiment: Experiment, artifacts: Artifacts, reports_dir: Path) -> None:
    """Write `reports_dir`/<experiment>/: tables, figures, plots, metrics and page fragments.

    Everything is built aside first, so an error (MeritError where a file is missing or does not
    fit the others) leaves the old report as it was. Files of other stages in the folder stay.
    """
    paper = load_paper_table(experiment.report.paper_table, reports_dir)
    results = load_results(experiment, artifacts)
    provenance = load_provenance(experiment, artifacts)
    cells = table_cells(results)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        figures = write_figures(experiment, artifacts, results, cells, out)
        write_tables(experiment, results, cells, paper, provenance, out)
        write_sections(experiment, results, cells, paper, provenance, figures, out)
        for path in sorted(p for p in out.rglob("*") if p.is_file()):
            target = reports_dir / experiment.name / path.relative_to(out)
            atomic_write(target, path.read_bytes())


def build_index(
    experiments: Sequence[Experiment], reports_dir: Path, readme: Path = Path("README.md")
) -> None:
    """`reports_dir`/README.md from the finished reports, and the results block of `readme`."""
    write_pages([(e.name, e.report.title) for e in experiments], reports_dir, readme)
