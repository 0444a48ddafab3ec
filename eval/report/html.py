"""reports/index.html: one self-contained page over all experiments, from files under reports/.

Style, script and pictures are inside the page, so it opens from disk and without network. Words and
tables come from section.md; claims.json, explorer.json and the studies' folders feed the parts that
Markdown cannot show.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from eval.report.claims import shown_verdict
from eval.report.claims_evidence import OUTSIDE, VERDICTS
from eval.report.html_markdown import Picture, Rewrite, blocks, figure, inline
from eval.report.studies import StudyResult, load_studies
from eval.report.tables import DASH
from merit.errors import MeritError
from merit.io.artifacts import atomic_write, read_json, report_name
from merit.studies import STUDIES

HERE = Path(__file__).parent
# parts that begin folded: long
CLOSED = ("Benchmark by benchmark", "Leave one benchmark out", "Intervals of every score")
EXPLORER = "Partition explorer"
FULL = report_name("", "full")
PIXELS = 1.3  # of a picture for one of CSS: 150 dpi drawn for print, 8-point letters stay readable
PRECONDITION = "precondition"  # filtered apart from the verdicts that are counted
MARKS = dict(zip(VERDICTS, ("✓", "✗", "≈", "–"), strict=True)) | {OUTSIDE: "·", PRECONDITION: "·"}


def write_html(experiments: Sequence[tuple[str, str]], reports_dir: Path) -> None:
    """`reports_dir`/index.html for the experiments ((name, title), in order).

    Raises MeritError where an experiment has no report yet.
    """
    links = "".join(f'<a href="#{name}">{html.escape(title)}</a>' for name, title in experiments)
    sections = "\n".join(_experiment(name, title, reports_dir) for name, title in experiments)
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>MERIT, reproduced</title>
<style>
{(HERE / "page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<header>
<h1>MERIT, reproduced</h1>
<p>Conflict-aware splitting and weight merging, measured again: results with their uncertainty,
every claim with its verdict, beside the published numbers. Generated; nothing is typed by hand.</p>
<nav aria-label="experiments">{links}</nav>
</header>
<main id="main">
{sections}
</main>
<script>
{(HERE / "page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""
    atomic_write(reports_dir / "index.html", page)


def _experiment(name: str, title: str, reports_dir: Path) -> str:
    """One experiment: the parts of its section.md, with three of them made interactive."""
    folder = reports_dir / name
    head, *parts = re.split(r"^### ", _read(folder / "section.md"), flags=re.MULTILINE)
    base_hash = read_json(folder / "provenance.json")["base_hash"]
    records = read_json(folder / "claims.json")

    def link(target: str) -> str:
        return target if "://" in target else f"{name}/{target}"

    def image(file: str) -> tuple[str, int]:
        return picture(folder / file)

    sections = {"Results": blocks(head, link, image)}
    for part in parts:
        heading, _, body = part.partition("\n")
        match heading.strip():
            case "Claims":
                words, _, _ = body.partition("\n|")  # merge-readiness and the tally
                content = blocks(words, link, image) + claims_table(records, name)
            case "Studies" if (full := reports_dir / report_name(name, "full")).is_dir():
                # once is enough: pictures are most of the page
                content = f'<p>In <a href="#{_id(full.name, "studies")}">the full run</a>.</p>'
            case "Studies":
                studies = load_studies(name.removesuffix(FULL), reports_dir).values()
                content = "".join(_study(study, folder, base_hash) for study in studies)
            case "Figures":
                # the caption is the picture's; its own line with the link to the PDF stays
                body = re.sub(r"!\[[^\]]*\]\(([^)]+)\)\n\n(.+)", r"![\2](\1)", body)
                content = f'<div class="figures">{_figures(body, link, image)}</div>'
            case _:
                content = blocks(body, link, image)
        if heading.startswith("Where the numbers"):
            sections[EXPLORER] = _explorer(name, folder)
        sections[heading.strip()] = content
    nav = "".join(
        f'<a href="#{_id(name, heading)}">{html.escape(heading)}</a>' for heading in sections
    )
    return (
        f'<section class="experiment" id="{name}" aria-labelledby="{name}-title">\n'
        f'<h2 id="{name}-title">{html.escape(title)} <code>{name}</code></h2>\n'
        f'<nav aria-label="{html.escape(title, quote=True)}">{nav}</nav>\n'
        + "\n".join(_part(name, heading, content) for heading, content in sections.items())
        + "\n</section>"
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MeritError(f"{path}: file not found; `dvc repro` writes it") from None


def _id(name: str, heading: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")
    return f"{name}-{slug}"


def _part(name: str, heading: str, content: str) -> str:
    """A part that can be folded away; long tables of detail begin folded."""
    state = "" if heading in CLOSED else " open"
    return (
        f'<details id="{_id(name, heading)}"{state}><summary><h3>{html.escape(heading)}</h3>'
        f"</summary>\n{content}\n</details>"
    )


# --- pictures -----------------------------------------------------------------------------------


def picture(path: Path) -> tuple[str, int]:
    """(data URI, width in CSS pixels); as lossless WebP where that is smaller than the PNG.

    Raises MeritError where there is no such file.
    """
    try:
        content, kind = path.read_bytes(), "png"
    except FileNotFoundError:
        raise MeritError(f"{path}: file not found; build the report again") from None
    packed, opened = io.BytesIO(), Image.open(io.BytesIO(content))
    opened.convert("RGB").save(packed, "webp", lossless=True, method=4)
    if len(packed.getvalue()) < len(content):
        content, kind = packed.getvalue(), "webp"
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return uri, round(opened.width / PIXELS)


def _figures(body: str, link: Rewrite, image: Picture) -> str:
    found = re.findall(r"!\[(.*)\]\(([^)]+)\)", body)
    return "".join(figure(*image(file), caption, link) for caption, file in found)


# --- claims -------------------------------------------------------------------------------------


def claims_table(records: Sequence[dict[str, Any]], name: str) -> str:
    """The ledger: every claim, filtered by verdict and sorted by column where scripts run."""
    counts = Counter(map(_filed, records))
    buttons = "".join(
        f'<button type="button" data-verdict="{verdict}" aria-pressed="false">'
        f"{mark} {verdict} ({counts[verdict]})</button>"
        for verdict, mark in MARKS.items()
        if verdict in VERDICTS or counts[verdict]
    )
    everything = (
        f'<button type="button" data-verdict="" aria-pressed="true">all ({len(records)})</button>'
    )
    body = "\n".join(_claim(record, name) for record in records)
    return (
        "<p>A claim holds where its interval lies wholly on its side, does not hold where it lies "
        "wholly on the other side; several parts hold together or not at all. What decides each "
        "claim was written down before the data were seen.</p>\n"
        f'<div class="filter" role="group" aria-label="filter by verdict">{everything}{buttons}'
        "</div>\n"
        '<div class="scroll" role="region" aria-label="claims" tabindex="0">'
        '<table class="claims sortable"><thead><tr><th scope="col" data-sort="number">claim</th>'
        '<th scope="col">what is claimed, and what decides it</th>'
        '<th scope="col" data-sort="verdict">verdict</th>'
        '<th scope="col">found</th><th scope="col" data-sort="number">n</th></tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _filed(record: dict[str, Any]) -> str:
    """The button that shows the claim."""
    return PRECONDITION if record.get("role") == PRECONDITION else str(record["verdict"])


def _claim(record: dict[str, Any], name: str) -> str:
    def link(target: str) -> str:
        return f"{name}/{target}"

    verdict = record["verdict"]
    kind = verdict.replace(" ", "-")
    links = "".join(
        f"<li>{html.escape(part['label'])}: {html.escape(part['text'])} "
        f"<small>({html.escape(part['claimed'])} claimed: {part['verdict']})</small></li>"
        for part in record["links"]
    )
    several = len(record["links"]) > 1
    parts = f"<details><summary>all parts</summary><ul>{links}</ul></details>" if several else ""
    value = f"{html.escape(record['label'])}: <strong>{html.escape(record['text'])}</strong>"
    found = value if record["links"] else ""
    note = f"<small>{inline(record['note'], link)}</small>" if record["note"] else ""
    source = (
        f'<small><a href="{name}/{record["table"]}">{Path(record["table"]).name}</a></small>'
        if record["table"]
        else ""
    )
    number = DASH if record["n"] is None else f"{record['n']}"
    order = list(MARKS).index(verdict)
    return (
        f'<tr data-verdict="{_filed(record)}"><th scope="row" data-value="{record["id"][1:]}">'
        f"{record['id']}</th><td>{html.escape(record['claim'])}<small>"
        f"{html.escape(record['statistic'])}</small></td>"
        f'<td data-value="{order}"><span class="verdict {kind}">{MARKS[verdict]} '
        f"{shown_verdict(record)}</span></td><td>{found}{parts}{note}{source}</td>"
        f'<td data-value="{record["n"] or 0}">{number}</td></tr>'
    )


# --- studies ------------------------------------------------------------------------------------


def _study(study: StudyResult, folder: Path, base_hash: str) -> str:
    """Text, figures and tables of one study; of a timed one links, as its seconds change."""
    caveat = study.caveat(base_hash)
    mark = f'<p class="caveat">{html.escape(caveat.capitalize())}.</p>' if caveat else ""
    head = f"<h4>{html.escape(study.title)}</h4>{mark}"
    source = f"{folder.name}/{study.path}"
    closing = (
        f"<p><small>Study <code>{study.name}</code>, commit <code>{study.commit[:8]}</code>, base "
        f"<code>{study.base_hash[:8]}</code></small></p></article>\n"
    )
    if STUDIES[study.name].timed:
        files = [f"figures/{name}.png" for name in study.figures]
        files += [f"{stem}.{kind}" for stem in study.tables for kind in ("csv", "md", "tex")]
        links = "".join(f'<li><a href="{source}/{file}">{file}</a></li>' for file in files)
        return (
            f'<article class="study">{head}<p>Its numbers differ from run to run and stand in its '
            f"own files:</p><ul>{links}</ul>{closing}"
        )
    pictures = "".join(
        figure(*picture(folder / study.path / "figures" / f"{name}.png"), f"{study.title}: {name}")
        for name in study.figures
    )
    tables = []
    for stem in study.tables:
        content = blocks(_read(folder / study.path / f"{stem}.md"))
        csv, tex = f"{source}/{stem}.csv", f"{source}/{stem}.tex"
        tables.append(
            f"<details><summary>Table <code>{stem}</code></summary>{content}"
            f'<p><a href="{csv}">CSV</a>, <a href="{tex}">LaTeX</a></p></details>'
        )
    return (
        f'<article class="study">{head}<p>{inline(study.text, str)}</p>'
        f'<div class="figures">{pictures}</div>{"".join(tables)}{closing}'
    )


# --- partition explorer -------------------------------------------------------------------------


def _explorer(name: str, folder: Path) -> str:
    """A form that the script fills from the embedded explorer.json."""
    content = json.dumps(read_json(folder / "explorer.json"), separators=(",", ":"))
    content = content.replace("</", "<\\/")  # nothing inside may end the script element
    return (
        f'<div class="explorer" data-source="{name}-explorer"><p>Choose a task: its group in every '
        "partition, and the tasks that its gradient agrees and conflicts with most.</p>"
        f'<label for="{name}-task">Task</label> <select id="{name}-task"></select>'
        '<div class="explored" aria-live="polite"></div>'
        "<noscript><p>The explorer needs JavaScript; the groups are in "
        f'<a href="{name}/plots/partition.csv">partition.csv</a>.</p></noscript>'
        f'<script type="application/json" id="{name}-explorer">{content}'
        "</script></div>"
    )
