"""index: the pages over all experiments, reports/README.md and reports/index.html, and README."""

from __future__ import annotations

from eval.report.build import build_index
from eval.stages.report import report_digest
from merit.config import load_experiment, load_params
from merit.errors import MeritError
from merit.io.artifacts import REPORTS_DIR, report_name


def run() -> None:
    """Raises MeritError, naming the experiment, where one has no report yet."""
    params = load_params()
    for name in params.experiments:
        digest = report_digest(report_name(name, params.level))
        if not digest.is_file():
            raise MeritError(f"{digest}: {name} has no report; `dvc repro` writes it")
    build_index([load_experiment(name) for name in params.experiments], REPORTS_DIR)
