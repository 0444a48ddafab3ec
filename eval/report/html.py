"""reports/index.html: one self-contained page over all experiments, from files under reports/.

Style, script and pictures are inside the page, so it opens from disk and without network. Words and
tables come from section.md; claims.json, explorer.json and the studies' folders feed the parts that
Markdown cannot show. Their HTML stands in templates/.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from merit.errors import MeritError
from merit.eval.report.claims import shown_verdict
from merit.eval.report.markdown import line_to_html, picture, to_html
from merit.eval.report.render import TEMPLATES, render
from merit.eval.report.study_sections import StudyResult, load_studies
from merit.eval.studies import STUDIES
from merit.eval.verdict import OUTSIDE, VERDICTS
from merit.io.artifacts import atomic_write, read_json

# parts that begin folded: long
CLOSED = ("Benchmark by benchmark", "Leave one benchmark out", "Intervals of every score")
EXPLORER = "Partition explorer"
PROVENANCE = "Where the numbers come from"
FULL = "_full"
PRECONDITION = "precondition"  # filtered apart from the verdicts that are counted
MARKS = dict(zip(VERDICTS, ("✓", "✗", "≈", "–"), strict=True)) | {OUTSIDE: "·", PRECONDITION: "·"}


def write_html(experiments: Sequence[tuple[str, str]], reports_dir: Path) -> None:
    """`reports_dir`/index.html for the experiments ((name, title), in order).

    Raises MeritError where an experiment has no report yet.
    """
    page = render(
        "page.html.j2",
        experiments=[(name, title, _parts(reports_dir / name)) for name, title in experiments],
        closed=CLOSED,
        style=Markup((TEMPLATES[0] / "page.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES[0] / "page.js").read_text(encoding="utf-8")),
    )
    atomic_write(reports_dir / "index.html", page + "\n")


def _parts(folder: Path) -> list[tuple[str, str, str]]:
    """(id, heading, content) of one experiment: its section.md, three parts made interactive."""
    head, *parts = re.split(r"^### ", _read(folder / "section.md"), flags=re.MULTILINE)
    found: dict[str, str] = {"Results": to_html(head, folder)}
    for part in parts:
        heading, _, body = part.partition("\n")
        if heading == PROVENANCE:
            content = read_json(folder / "explorer.json")
            found[EXPLORER] = render("explorer.html.j2", name=folder.name, content=content)
        found[heading] = _content(heading, body, folder)
    return [(part_id(folder.name, heading), heading, text) for heading, text in found.items()]


def _content(heading: str, body: str, folder: Path) -> str:
    if heading == "Claims":
        words, _, _ = body.partition("\n|")  # merge-readiness and the tally
        records = read_json(folder / "claims.json")
        return to_html(words, folder) + claims_table(records, folder)
    if heading == "Studies":
        full = folder.with_name(f"{folder.name}{FULL}")
        return studies_part(folder, full if full.is_dir() else None)
    text = to_html(body, folder)
    return Markup('<div class="figures">{}</div>').format(text) if heading == "Figures" else text


def part_id(name: str, heading: str) -> str:
    """What a link to this part of an experiment leads to."""
    slug = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")
    return f"{name}-{slug}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MeritError(f"{path}: file not found; `dvc repro` writes it") from None


def claims_table(records: Sequence[dict[str, Any]], folder: Path) -> str:
    """The ledger: every claim, filtered by verdict and sorted by column where scripts run."""
    filed = [  # the button that shows the claim
        PRECONDITION if record.get("role") == PRECONDITION else str(record["verdict"])
        for record in records
    ]
    counts = Counter(filed)
    notes = [line_to_html(record["note"], folder) for record in records]
    return render(
        "claims.html.j2",
        name=folder.name,
        marks=MARKS,
        counts={
            verdict: counts[verdict] for verdict in MARKS if verdict in VERDICTS or counts[verdict]
        },
        claims=list(zip(records, filed, map(shown_verdict, records), notes, strict=True)),
    )


def studies_part(folder: Path, full: Path | None) -> str:
    """Text, figures and tables of every study; of a timed one links, as its seconds change.

    Where a `full` run's report stands beside this one, a link to its studies: once is enough, as
    pictures are most of the page.
    """
    known = read_json(folder / "provenance.json")
    base_hash, name = known["base_hash"], folder.name.removesuffix(FULL)
    studies = load_studies(name, folder.parent, known["studies"], folder).values()
    return render(
        "studies.html.j2",
        name=folder.name,
        full=part_id(full.name, "Studies") if full else "",
        studies=[] if full else [_study(study, folder, base_hash) for study in studies],
    )


def _study(study: StudyResult, folder: Path, base_hash: str) -> dict[str, Any]:
    here, timed = folder / study.path, STUDIES[study.name].timed
    figures = [] if timed else study.figures
    tables = () if timed else study.tables
    return {
        "found": study,
        "source": f"{folder.name}/{study.path}",
        "drawn": f"{folder.name}/{study.drawn}",
        "caveat": study.caveat(base_hash),
        "timed": timed,
        "text": line_to_html(study.text, folder),
        "figures": [(stem, *picture(folder / study.drawn / f"{stem}.png")) for stem in figures],
        "tables": {stem: to_html(_read(here / f"{stem}.md"), folder) for stem in tables},
    }
