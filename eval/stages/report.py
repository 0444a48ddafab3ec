"""report: tables, figures and pages of one experiment under reports/."""

from __future__ import annotations

from eval.report.build import build_report
from merit.config import load_experiment, load_params
from merit.io.artifacts import REPORTS_DIR, Artifacts, report_name


def run(name: str, item: str | None = None) -> None:
    """Write reports/<name> (reports/<name>-full with `studies: full`).

    The pages over all experiments follow at the end of `merit repro`.
    """
    folder = report_name(name, load_params().studies)
    build_report(load_experiment(name), Artifacts(name), REPORTS_DIR, folder)
