"""What the studies left in reports/studies/<experiment>/<name>, as the report shows it.

A study that has not been run is left out: the default run of an experiment has only some.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merit.errors import MeritError
from merit.io.artifacts import read_json
from merit.studies import STUDIES


@dataclass(frozen=True)
class StudyResult:
    """One study that was run: the numbers that decide claims, its sentences, tables, figures.

    `path` is its folder relative to reports/<experiment>/; `tables` has the rows by file stem,
    `figures` are file stems.
    """

    name: str
    title: str
    text: str
    summary: Mapping[str, Any]
    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    figures: tuple[str, ...]
    path: str
    base_hash: str
    commit: str

    def caveat(self, base_hash: str) -> str:
        """A remark where the study was measured on another base than `base_hash`, else ""."""
        if self.base_hash == base_hash:
            return ""
        return f"measured on an earlier/other base {self.base_hash[:8] or 'unknown'}"


def load_studies(experiment: str, reports_dir: Path) -> dict[str, StudyResult]:
    """The experiment's finished studies by name, in the order of `merit.studies.STUDIES`.

    Raises MeritError where a result.json is not JSON or lacks its tables.
    """
    found = {}
    for name, study in STUDIES.items():
        folder = reports_dir / "studies" / experiment / name
        file = folder / "result.json"
        if not file.is_file():
            continue
        stored = read_json(file)
        if not isinstance(stored, dict) or not isinstance(stored.get("tables"), dict):
            raise MeritError(f"{file}: key `tables` is missing; run the study {name!r} again")
        provenance = stored.get("provenance", {})
        found[name] = StudyResult(
            name=name,
            title=stored.get("title", study.title),
            text=stored.get("text", ""),
            summary=stored.get("summary", {}),
            tables=stored["tables"],
            # the study stage replaces the folder as a whole, so nothing stale can be in it
            figures=tuple(sorted(path.stem for path in (folder / "figures").glob("*.png"))),
            path=f"../studies/{experiment}/{name}",
            base_hash=provenance.get("base_hash", ""),
            commit=provenance.get("commit", "unknown"),
        )
    return found


def studies_part(studies: Mapping[str, StudyResult], base_hash: str) -> str:
    """Markdown: every study's sentences with links to its figures and tables.

    Of a timed study the links alone: its sentences hold seconds, which differ from run to run.
    """
    if not studies:
        return ""
    parts = ["### Studies\n"]
    for study in studies.values():
        caveat = study.caveat(base_hash)
        figures = [f"[{name}]({study.path}/figures/{name}.png)" for name in study.figures]
        tables = [f"[{stem}.csv]({study.path}/{stem}.csv)" for stem in study.tables]
        parts.append(f"#### {study.title}\n")
        words = "" if STUDIES[study.name].timed else study.text
        said = [f"*{caveat.capitalize()}.*" if caveat else "", words]
        parts.append(" ".join(part for part in said if part) + "\n" if any(said) else "")
        links = [
            f"{kind}: {', '.join(found)}"
            for kind, found in (("Figures", figures), ("Tables", tables))
            if found
        ]
        if links:
            parts.append(". ".join(links) + ".\n")
    return "\n".join(part for part in parts if part)
