"""index: the pages over all experiments, reports/README.md and README.md."""

from __future__ import annotations

from merit.config import EXPERIMENTS_DIR, load_params
from merit.errors import MeritError
from merit.eval.report.build import SUMMARY
from merit.eval.report.index import build_index
from merit.eval.stages.report import report_digest
from merit.io.artifacts import REPORTS_DIR, read_json


def run() -> None:
    """Raises MeritError, naming the experiment, where one has no report yet."""
    params = load_params()
    for name in params.experiments:
        digest = report_digest(name)
        if not digest.is_file():
            raise MeritError(f"{digest}: {name} has no report; `dvc repro` writes it")
    once = []
    for name in sorted(path.stem for path in EXPERIMENTS_DIR.glob("*.yaml")):
        if name not in params.experiments and has_report(name):
            if "bases" in read_json(REPORTS_DIR / name / SUMMARY):  # verdicts over bases
                once.append(name)
            else:
                print(
                    f"{REPORTS_DIR / name}: of an earlier version, left out of the pages over all"
                )
    build_index(params.experiments, REPORTS_DIR, once=once)


def has_report(name: str) -> bool:
    """Whether an experiment that is not run by default left a report: it stays in the pages.

    That of another base is brief, without claims, and is part of its family's.
    """
    return all((REPORTS_DIR / name / file).is_file() for file in (SUMMARY, "claims.json"))
