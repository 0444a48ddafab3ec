"""report: tables, figures and pages of one experiment under reports/; the table on the screen."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from merit.config import load_experiment
from merit.eval.report.bases import other_bases
from merit.eval.report.build import build_report
from merit.eval.report.own import REPORT
from merit.eval.stages.study import write_study
from merit.eval.studies import STUDIES, settings_of
from merit.io.artifacts import (
    ARTIFACTS_DIR,
    REPORTS_DIR,
    Artifacts,
    folder_hash,
    read_json,
    write_json,
)


def run(name: str, item: str | None = None) -> None:
    """Write reports/<name>, and what it hashes to; and what the last runs here took, untracked.

    The hash is what the pages over all experiments depend on: DVC cannot list them one by one.
    """
    experiment, folder = load_experiment(name), REPORTS_DIR / name
    build_report(experiment, Artifacts(name), REPORTS_DIR, other_bases(experiment))
    for study in settings_of(experiment):
        if STUDIES[study].timed:
            write_study(name, study, Artifacts(name).folder / "timings" / study)
    write_json(report_digest(name), {"report": name, "hash": folder_hash(folder)})
    if not experiment.evaluation.benchmarks:
        told = read_json(folder / REPORT).get("recommendation", {}).get("words", "")
        print(f"{told}\n{folder / 'README.md'}".strip(), flush=True)
    elif not experiment.report.brief:
        table = pd.read_csv(folder / f"{experiment.report.stem}.csv")
        shown = table.loc[:, :"avg_ci_high"].to_string(index=False, float_format="%.1f", na_rep="")
        print(f"{experiment.report.title} ({folder / 'README.md'})\n{shown}", flush=True)


def report_digest(name: str) -> Path:
    return ARTIFACTS_DIR / "reports" / f"{name}.json"
