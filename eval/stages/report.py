"""report: tables, figures and pages of one experiment under reports/."""

from __future__ import annotations

from pathlib import Path

from merit.config import load_experiment
from merit.eval.report.build import build_report
from merit.io.artifacts import (
    ARTIFACTS_DIR,
    REPORTS_DIR,
    Artifacts,
    folder_hash,
    write_json,
)


def run(name: str, item: str | None = None) -> None:
    """Write reports/<name>, and what it hashes to.

    The hash is what the pages over all experiments depend on: DVC cannot list them one by one.
    """
    build_report(load_experiment(name), Artifacts(name), REPORTS_DIR, name)
    write_json(report_digest(name), {"report": name, "hash": folder_hash(REPORTS_DIR / name)})


def report_digest(name: str) -> Path:
    return ARTIFACTS_DIR / "reports" / f"{name}.json"
