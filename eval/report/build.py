"""The report of one experiment: tables, figures, claims and the page reports/<x>/README.md."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merit.config import Experiment
from merit.eval.paper import load_paper_table
from merit.eval.questions import QUESTIONS, models_of, write_questions
from merit.eval.report.base import base_part
from merit.eval.report.cells import AVERAGE, CLOSED, Cells, resampled, table_cells
from merit.eval.report.comparison import Comparison, comparisons, frame
from merit.eval.report.figures import write_figures
from merit.eval.report.ledger import Case, counts, ledger, readiness, tally, write_ledger
from merit.eval.report.provenance import Provenance, load_provenance
from merit.eval.report.render import points, render
from merit.eval.report.study_sections import draw_study, load_studies, studies_part
from merit.eval.report.style import save
from merit.eval.report.tables import HEADINGS, write_csv, write_table
from merit.eval.results import Results, load_results
from merit.eval.statistics import LEVEL, NUM_RESAMPLES
from merit.eval.studies import reported
from merit.eval.table_files import markdown_table
from merit.io.artifacts import Artifacts, atomic_write, write_json

SUMMARY = "summary.json"  # what the pages over all experiments read of a report


def build_report(
    experiment: Experiment, artifacts: Artifacts, reports_dir: Path, folder: str | None = None
) -> None:
    """Write `reports_dir`/`folder`. Args: folder: the experiment's name unless given.

    Everything is built aside first, so an error (MeritError where a file is missing or does not
    fit the others) leaves the old report as it was. Files of other stages in the folder stay.
    """
    results = load_results(experiment, artifacts)
    cells = table_cells(results)
    compared = comparisons(experiment, results)
    provenance = load_provenance(experiment, artifacts)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        write_questions(out / QUESTIONS, models_of(results))
        summary = {
            "title": experiment.report.title,
            "base_hash": provenance.base_hash,
            "averages": averages(experiment, cells, compared),
            "differences": differences(experiment, compared),
        }
        if not experiment.report.brief:
            summary |= write_pages(
                experiment, artifacts, reports_dir, out, results, cells, compared, provenance
            )
        write_json(out / SUMMARY, summary)
        for path in sorted(p for p in out.rglob("*") if p.is_file()):
            target = reports_dir / (folder or experiment.name) / path.relative_to(out)
            atomic_write(target, path.read_bytes())


def write_pages(
    experiment: Experiment,
    artifacts: Artifacts,
    reports_dir: Path,
    out: Path,
    results: Results,
    cells: Cells,
    compared: Mapping[str, Comparison],
    provenance: Provenance,
) -> dict[str, Any]:
    """Everything that is read, to `out`; returns what the summary says of it."""
    stated = experiment.report
    paper = load_paper_table(stated.paper_table, reports_dir, stated.paper_build)
    further = {
        load_paper_table(name, reports_dir): load_results(experiment, artifacts, benchmarks)
        for name, benchmarks in stated.also_tables.items()
    }
    planned = reported(experiment)
    for name in planned:
        drawn = draw_study(experiment.name, name, reports_dir)
        save(drawn, out / "studies" / name / "figures")
    studies = load_studies(experiment.name, reports_dir, planned, out)
    case = Case(experiment, results, studies, provenance.base_hash)
    records = ledger(case)
    label = f"tab:{experiment.name}"
    table = write_table(stated.title, label, results, cells, paper, provenance, out)
    others = [
        write_table(
            f"The paper's table {int(other.stem.removeprefix('table'))}: {stated.title}",
            *(f"{label}-{other.stem}", found, table_cells(found), other, provenance, out),
        )
        for other, found in further.items()
    ]
    figures = write_figures(experiment, artifacts, results, cells, out)
    if compared:
        write_csv(out / "comparison.csv", frame(stated.partition or "", compared))
    write_ledger(records, case, out)
    write_json(out / "metrics.json", {m: round(c[AVERAGE].mean, 4) for m, c in cells.items()})
    write_json(out / "provenance.json", provenance.record(results))
    page = render(
        "page.md.j2",
        name=experiment.name,
        title=stated.title,
        main=stated.partition,
        table=table,
        others=others,
        base=base_part(experiment, table, paper),
        compared=markdown_table(comparison_table(compared)) if compared else "",
        readiness=readiness(case),
        tally=tally(records, case),
        records=records,
        figures=figures,
        studies=studies_part(studies, provenance.base_hash),
        provenance=provenance,
        seeds=results.seeds,
        num_questions=results.num_questions,
        num_resamples=NUM_RESAMPLES,
        level=LEVEL,
        resampled=resampled(results),
    )
    atomic_write(out / "README.md", page)
    ready = studies["readiness"].summary["merge_ready"] if "readiness" in studies else None
    return {
        "merge_ready": ready,
        "claims": counts(records),
        "figures": list(figures),
    }


def comparison_table(compared: Mapping[str, Comparison]) -> list[list[str]]:
    """The main method minus each opponent: a row per column of the results table, and verdicts."""
    first = next(iter(compared.values()))
    averages = [name for name in (AVERAGE, CLOSED) if name in first]
    order = [*averages, *(name for name in first if name not in averages)]
    return [
        ["minus", *compared],
        ["verdict", *(f"**{c[AVERAGE].direction}**" for c in compared.values())],
        *(
            [HEADINGS.get(name, name), *(points(*c[name][:3]) for c in compared.values())]
            for name in order
        ),
    ]


def averages(
    experiment: Experiment, cells: Cells, compared: Mapping[str, Comparison]
) -> dict[str, dict[str, Any]]:
    """What a method is to the main one ("main", "base", "joint", "random", "shrunk") -> average."""
    main = experiment.report.partition
    named = {experiment.methods[name].partition: name for name in reversed(list(compared))}
    return {
        role: {
            "method": name,
            "value": round(cells[name][AVERAGE].mean, 4),
            "low": round(cells[name][AVERAGE].low, 4),
            "high": round(cells[name][AVERAGE].high, 4),
        }
        for role, name in (({"main": main} if main else {}) | named).items()
    }


def differences(
    experiment: Experiment, compared: Mapping[str, Comparison]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Opponent's kind -> "avg" and "avg_closed" -> the main method's difference to it."""
    return {
        experiment.methods[other].partition: {
            column: {
                "value": round(found[column].difference, 4),
                "low": round(found[column].low, 4),
                "high": round(found[column].high, 4),
                "verdict": found[column].direction,
            }
            for column in (AVERAGE, CLOSED)
            if column in found
        }
        for other, found in reversed(list(compared.items()))
    }
