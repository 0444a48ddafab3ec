"""report: tables, figures and pages of one experiment under reports/."""

from __future__ import annotations

from pathlib import Path

from merit.config import load_experiment, load_params
from merit.eval.report.build import build_report
from merit.io.artifacts import (
    ARTIFACTS_DIR,
    REPORTS_DIR,
    Artifacts,
    folder_hash,
    report_name,
    write_json,
)


def run(name: str, item: str | None = None) -> None:
    """Write reports/<name> (reports/<name>-full at the full level), and what it hashes to.

    The hash is what the pages over all experiments depend on: DVC cannot list them one by one.
    """
    folder = report_name(name, load_params().level)
    build_report(load_experiment(name), Artifacts(name), REPORTS_DIR, folder)
    digest = {"report": folder, "hash": folder_hash(REPORTS_DIR / folder)}
    write_json(report_digest(folder), digest)


def report_digest(folder: str) -> Path:
    return ARTIFACTS_DIR / "reports" / f"{folder}.json"
