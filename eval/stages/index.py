"""index: the pages over all experiments, reports/README.md and reports/index.html, and README."""

from __future__ import annotations

from eval.report.build import build_index
from eval.stages.report import report_digest
from merit.config import load_experiment, load_params
from merit.errors import MeritError
from merit.io.artifacts import REPORTS_DIR


def run() -> None:
    """Raises MeritError, naming the experiment, where one has no report yet."""
    names = load_params().experiments
    for name in names:
        if not report_digest(name).is_file():
            raise MeritError(f"{report_digest(name)}: {name} has no report; `dvc repro` writes it")
    build_index([load_experiment(name) for name in names], REPORTS_DIR)
