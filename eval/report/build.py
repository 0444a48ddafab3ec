"""The report stage's two functions: one experiment's report, and the pages over all of them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from merit.config import Experiment
from merit.eval.paper import load_paper_table
from merit.eval.report.claims import Case, claims_line, ledger, short_part, write_ledger
from merit.eval.report.comparison import comparison_part, comparisons, glance, write_comparison
from merit.eval.report.explorer import load_explorer, write_explorer
from merit.eval.report.figures import write_figures
from merit.eval.report.headline import headline, regime_map
from merit.eval.report.html import write_html
from merit.eval.report.intervals import table_cells
from merit.eval.report.pages import score_values, write_pages, write_sections
from merit.eval.report.provenance import load_provenance
from merit.eval.report.published import base_part, further_tables, layout, write_layout
from merit.eval.report.study_sections import draw_studies, load_studies, studies_part
from merit.eval.report.tables import write_tables
from merit.eval.results import load_results
from merit.eval.studies import settings_of
from merit.io.artifacts import Artifacts, atomic_write

FULL = "_full"  # <name>_full: the experiment <name> with all rows and studies
ONCE = " (run once, not part of the default)"


def build_report(
    experiment: Experiment, artifacts: Artifacts, reports_dir: Path, folder: str | None = None
) -> None:
    """Write `reports_dir`/`folder`: tables, figures, claims, metrics and page fragments.

    Args: folder: the experiment's name where not given.

    Everything is built aside first, so an error (MeritError where a file is missing or does not
    fit the others) leaves the old report as it was. Files of other stages in the folder stay.
    """
    paper = load_paper_table(
        experiment.report.paper_table, reports_dir, experiment.report.paper_build
    )
    results = load_results(experiment, artifacts)
    provenance = load_provenance(experiment, artifacts)
    cells = table_cells(results)
    compared = comparisons(experiment, results)
    with tempfile.TemporaryDirectory() as scratch:
        out, planned = Path(scratch), settings_of(experiment)
        draw_studies(experiment.name, reports_dir, planned, out)
        studies = load_studies(experiment.name, reports_dir, planned, out)
        case = Case(experiment, results, studies, provenance.base_hash)
        records = ledger(case)
        figures = write_figures(experiment, artifacts, results, cells, out)
        write_layout(layout(results, cells, paper), paper, out)
        further = further_tables(experiment, artifacts, reports_dir, provenance, out)
        values = score_values(experiment, results, cells, paper) | {
            "base": base_part(experiment, results, cells, paper),
            "further": further,
            "headline": headline(case),
            "regime": regime_map(case),
            "claims_line": claims_line(records, case),
            "claims": short_part(records, case),
            "glance": glance(compared),
            "comparison": comparison_part(compared),
            "studies": studies_part(studies, provenance.base_hash),
            "figures": figures,
            "average": next((f for f in figures if f.name == "average"), figures[0]),
            "provenance": provenance,
        }
        write_sections(values, out)
        write_tables(experiment, results, cells, paper, provenance, out)
        write_comparison(compared, out)
        write_ledger(records, case, out)
        write_explorer(load_explorer(experiment, artifacts), out)
        for path in sorted(p for p in out.rglob("*") if p.is_file()):
            target = reports_dir / (folder or experiment.name) / path.relative_to(out)
            atomic_write(target, path.read_bytes())


def build_index(
    experiments: Sequence[Experiment],
    reports_dir: Path,
    readme: Path = Path("README.md"),
    others: Sequence[Experiment] = (),
) -> None:
    """README.md and index.html in `reports_dir` from the finished reports; `readme`'s results.

    <name>_full stands beside <name>. The reports of `others`, which params.yaml does not name,
    follow; `readme` lacks them.
    """
    full = {e.name: e for e in others if e.name.removesuffix(FULL) in {x.name for x in experiments}}
    beside = [e for x in experiments for e in (x, full.get(f"{x.name}{FULL}")) if e is not None]
    rest = [e for e in others if e.name not in full]
    titles = _titles(beside, reports_dir)
    once = [(folder, f"{title}{ONCE}") for folder, title in _titles(rest, reports_dir)]
    fuller = [name for name, _ in titles if name in full]
    write_pages(titles, fuller, reports_dir, readme, once)
    write_html([*titles, *once], reports_dir)


def _titles(experiments: Sequence[Experiment], reports_dir: Path) -> list[tuple[str, str]]:
    """(folder, title) of every report that there is, in order."""
    return [
        (e.name, e.report.title)
        for e in experiments
        if (reports_dir / e.name / "section.md").is_file()
    ]
