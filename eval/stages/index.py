"""index: the pages over all experiments, reports/README.md and reports/index.html, and README."""

from __future__ import annotations

from merit.config import EXPERIMENTS_DIR, load_experiment, load_params
from merit.errors import MeritError
from merit.eval.report.build import build_index
from merit.eval.stages.report import report_digest
from merit.io.artifacts import REPORTS_DIR, report_name


def run() -> None:
    """Raises MeritError, naming the experiment, where one has no report yet."""
    params = load_params()
    for name in params.experiments:
        digest = report_digest(report_name(name, params.level))
        if not digest.is_file():
            raise MeritError(f"{digest}: {name} has no report; `dvc repro` writes it")
    known = {name.partition("-")[0] for name in params.experiments}
    others = sorted(p.stem for p in EXPERIMENTS_DIR.glob("*.yaml") if p.stem not in known)
    build_index(
        [load_experiment(name) for name in params.experiments],
        REPORTS_DIR,
        others=[load_experiment(name) for name in others if has_report(name)],
    )


def has_report(name: str) -> bool:
    """Whether an experiment that is not run by default left a report: it stays in the pages."""
    folders = (report_name(name, level) for level in ("default", "full"))
    return any((REPORTS_DIR / folder / "section.md").is_file() for folder in folders)
