"""index: the pages over all experiments, reports/README.md and reports/index.html, and README."""

from __future__ import annotations

from merit.config import EXPERIMENTS_DIR, load_experiment, load_params
from merit.errors import MeritError
from merit.eval.report.build import build_index
from merit.eval.stages.report import report_digest
from merit.io.artifacts import REPORTS_DIR


def run() -> None:
    """Raises MeritError, naming the experiment, where one has no report yet."""
    params = load_params()
    for name in params.experiments:
        digest = report_digest(name)
        if not digest.is_file():
            raise MeritError(f"{digest}: {name} has no report; `dvc repro` writes it")
    known = {path.stem for path in EXPERIMENTS_DIR.glob("*.yaml")}
    others = sorted(known - set(params.experiments))
    build_index(
        [load_experiment(name) for name in params.experiments],
        REPORTS_DIR,
        others=[load_experiment(name) for name in others if has_report(name)],
    )


def has_report(name: str) -> bool:
    """Whether an experiment that is not run by default left a report: it stays in the pages."""
    return (REPORTS_DIR / name / "section.md").is_file()
