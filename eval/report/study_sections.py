"""What the studies left in reports/studies/<experiment>/<name>, as the report shows it.

Which ones there are is the experiment's to say: what an earlier run has left is not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from merit.errors import MeritError
from merit.eval.measuring.scores import Row
from merit.eval.report.render import render
from merit.eval.report.style import styled
from merit.eval.studies import STUDIES, draw_of
from merit.io.artifacts import read_json


@dataclass(frozen=True)
class StudyResult:
    """One study that was run: the numbers that decide claims, its sentences, tables, figures.

    `path` is its folder relative to reports/<experiment>/, `drawn` likewise that of its figures;
    `tables` has the rows by file stem, `figures` are file stems.
    """

    name: str
    title: str
    text: str
    summary: Row
    tables: Mapping[str, Sequence[Row]]
    figures: tuple[str, ...]
    path: str
    drawn: str
    base_hash: str

    def caveat(self, base_hash: str) -> str:
        """A remark where the study was measured on another base than `base_hash`, else ""."""
        if self.base_hash == base_hash:
            return ""
        return f"measured on an earlier/other base {self.base_hash[:8] or 'unknown'}"


def load_studies(
    experiment: str, reports_dir: Path, names: Iterable[str], report: Path
) -> dict[str, StudyResult]:
    """These studies of the experiment, in their order; `report` holds their figures.

    Raises MeritError where a result.json is missing, is not JSON or lacks its tables.
    """
    found = {}
    for name in names:
        file, drawn = _result_file(reports_dir, experiment, name), f"studies/{name}/figures"
        stored = read_json(file)
        if not isinstance(stored, dict) or not isinstance(stored.get("tables"), dict):
            raise MeritError(f"{file}: key `tables` is missing; run the study {name!r} again")
        found[name] = StudyResult(
            name=name,
            title=stored.get("title", STUDIES[name].title),
            text=sentences(name, stored),
            summary=stored.get("summary", {}),
            tables=stored["tables"],
            # DVC empties the report's folder before the stage, so nothing stale can be in it
            figures=tuple(sorted(path.stem for path in (report / drawn).glob("*.png"))),
            path=f"../studies/{experiment}/{name}",
            drawn=drawn,
            base_hash=stored.get("provenance", {}).get("base_hash", ""),
        )
    return found


def _result_file(reports_dir: Path, experiment: str, study: str) -> Path:
    return reports_dir / "studies" / experiment / study / "result.json"


def sentences(name: str, result: Mapping[str, Any]) -> str:
    """What a study found, in one paragraph: merit/eval/studies/<name>/text.md.j2 over its result.

    The template sees `summary`, `tables` and the study's `settings`.
    """
    page = render(
        f"{name}/text.md.j2",
        summary=result.get("summary", {}),
        tables=result["tables"],
        settings=result.get("provenance", {}).get("settings", {}),
    )
    return " ".join(page.split())


def draw_study(experiment: str, study: str, reports_dir: Path) -> dict[str, Figure]:
    """The study's figures by name, drawn from what it stored and nothing else."""
    stored = read_json(_result_file(reports_dir, experiment, study))
    with styled():
        figures: dict[str, Figure] = draw_of(study)(stored)
    return figures


def studies_part(studies: Mapping[str, StudyResult], base_hash: str) -> str:
    """Markdown: every study's sentences with links to its figures and tables; "" without any."""
    shown = [(study, study.caveat(base_hash)) for study in studies.values()]
    return render("studies.md.j2", studies=shown) if shown else ""
