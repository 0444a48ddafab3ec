"""report: tables, figures and pages of one experiment under reports/."""

from __future__ import annotations

from eval.report.build import build_report
from merit.config import load_experiment
from merit.io.artifacts import REPORTS_DIR, Artifacts


def run(name: str, item: str | None = None) -> None:
    """Write reports/<name>; the pages over all experiments follow at the end of `merit repro`."""
    build_report(load_experiment(name), Artifacts(name), REPORTS_DIR)
