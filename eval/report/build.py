"""The report of one experiment: tables, figures, claims and the page reports/<x>/README.md."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merit.config import Experiment
from merit.eval.paper import load_paper_table
from merit.eval.questions import QUESTIONS, models_of, write_questions
from merit.eval.report.base import base_part
from merit.eval.report.bases import SUMMARY, load_bases, load_best
from merit.eval.report.cells import AVERAGE, CLOSED, resampled, table_cells
from merit.eval.report.comparison import Comparison, comparisons, contrast, frame, opponents
from merit.eval.report.figures import write_figures
from merit.eval.report.ledger import Case, counts, ledger, readiness, tally, write_ledger
from merit.eval.report.own import write_held_out_report
from merit.eval.report.provenance import Provenance, load_provenance
from merit.eval.report.render import points, render
from merit.eval.report.study_sections import draw_study, load_studies, studies_part
from merit.eval.report.style import save
from merit.eval.report.tables import HEADINGS, write_table
from merit.eval.results import Results, load_results
from merit.eval.statistics import LEVEL, NUM_RESAMPLES
from merit.eval.studies import reported
from merit.eval.table_files import markdown_table, write_csv
from merit.io.artifacts import Artifacts, atomic_write, read_json, write_json


def build_report(
    experiment: Experiment, artifacts: Artifacts, reports_dir: Path, others: Sequence[str] = ()
) -> None:
    """Write `reports_dir`/<name>: of a brief report only the questions' scores and the summary.

    Everything is built aside first, so an error (MeritError where a file is missing or does not
    fit the others) leaves the old report as it was. Files of other stages in the folder stay.

    Args: others: the family's other bases, over which differences and verdicts are taken too.
    """
    provenance = load_provenance(experiment, artifacts)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        if not experiment.evaluation.benchmarks:
            planned = draw_studies(experiment, reports_dir, out)
            write_held_out_report(experiment, artifacts, reports_dir, out, provenance, planned)
        else:
            write_scored(experiment, artifacts, reports_dir, out, others, provenance)
        for path in sorted(p for p in out.rglob("*") if p.is_file()):
            target = reports_dir / experiment.name / path.relative_to(out)
            atomic_write(target, path.read_bytes())


def write_scored(
    experiment: Experiment,
    artifacts: Artifacts,
    reports_dir: Path,
    out: Path,
    others: Sequence[str],
    provenance: Provenance,
) -> None:
    """The report of an experiment with benchmarks, to `out`."""
    results = load_results(experiment, artifacts)
    bases = load_bases(experiment, results, provenance.base_hash, reports_dir, others)
    write_questions(out / QUESTIONS, models_of(results))
    summary = {
        "title": experiment.report.title,
        "family": experiment.report.family or experiment.name,
        "base_hash": provenance.base_hash,
        "bases": list(bases),
        "averages": averages(experiment, list(bases.values())),
        "merge_ready": merge_ready(experiment, reports_dir),
    }
    if not experiment.report.brief:
        best = load_best(experiment, reports_dir, others)
        summary |= write_pages(experiment, artifacts, reports_dir, out, bases, best, provenance)
    write_json(out / SUMMARY, summary)


def draw_studies(experiment: Experiment, reports_dir: Path, out: Path) -> list[str]:
    """The figures of all studies, to `out`; their names."""
    planned = reported(experiment)
    for name in planned:
        drawn = draw_study(experiment.name, name, reports_dir)
        save(drawn, out / "studies" / name / "figures")
    return planned


def write_pages(
    experiment: Experiment,
    artifacts: Artifacts,
    reports_dir: Path,
    out: Path,
    bases: Mapping[str, Results],
    best: Mapping[str, Results],
    provenance: Provenance,
) -> dict[str, Any]:
    """Everything that is read, to `out`; returns what the summary says of it."""
    results = bases[experiment.name]
    cells, compared = table_cells(results), comparisons(experiment, list(bases.values()))
    stated = experiment.report
    paper = load_paper_table(stated.paper_table, reports_dir, stated.paper_build)
    further = {
        load_paper_table(name, reports_dir): load_results(experiment, artifacts, benchmarks)
        for name, benchmarks in stated.also_tables.items()
    }
    planned = draw_studies(experiment, reports_dir, out)
    studies = load_studies(experiment.name, reports_dir, planned, out)
    case = Case(experiment, bases, studies, provenance.base_hash, best)
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
    figures = write_figures(experiment, artifacts, results, out)
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
        bases=list(bases),
    )
    atomic_write(out / "README.md", page)
    return {"claims": counts(records), "figures": list(figures)}


def comparison_table(compared: Mapping[str, Comparison]) -> list[list[str]]:
    """The main method minus each opponent: a row per column of the results table, and verdicts."""
    first = next(iter(compared.values()))
    order = sorted(first, key=lambda name: {AVERAGE: 0, CLOSED: 1}.get(name, 2))
    rows = [
        [HEADINGS.get(name, name), *(points(*c[name][:3]) for c in compared.values())]
        for name in order
    ]
    verdicts = [f"**{c[AVERAGE].direction}**" for c in compared.values()]
    return [["minus", *compared], ["verdict", *verdicts], *rows]


def averages(experiment: Experiment, bases: Sequence[Results]) -> dict[str, dict[str, Any]]:
    """What a method is to the main one ("main", "base", ...) -> average over benchmarks, bases."""
    main = experiment.report.partition
    if main is None:
        return {}
    others = opponents(experiment, main)
    named = {"main": main} | {kind: names[0] for kind, names in others.items() if names}
    found = {}
    for role, name in named.items():
        value, low, high, *_ = contrast(bases, {name: 1.0})
        interval = {"value": value, "low": max(0.0, low), "high": min(100.0, high)}
        found[role] = {"method": name} | {key: round(x, 4) for key, x in interval.items()}
    return found


def merge_ready(experiment: Experiment, reports_dir: Path) -> bool | None:
    """What the study `readiness` found; None if the experiment does not run it."""
    if experiment.studies.get("readiness") is None:
        return None
    result = reports_dir / "studies" / experiment.name / "readiness" / "result.json"
    return bool(read_json(result)["summary"]["merge_ready"])
