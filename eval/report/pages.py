"""Pages for a code host: reports/README.md and the results block of the top README.md.

Every experiment leaves `verdicts.md` (a few sentences), `summary.md` (these, the table, one figure)
and `section.md` (the whole) in its own folder, with links relative to it; the pages join these and
adjust the links.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.report.figures import FigureFile
from eval.report.intervals import (
    LEVEL,
    NUM_RESAMPLES,
    Cells,
    Comparison,
    compare,
    holm_p_values,
    leave_one_out,
    opponents,
    resampled,
)
from eval.report.paper import PaperTable
from eval.report.provenance import Provenance
from eval.report.results import Results
from eval.report.tables import DASH, HEADINGS, caption, markdown_table, paper_caption, text_table
from merit.config import Experiment
from merit.errors import MeritError
from merit.io.artifacts import atomic_write

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


@dataclass(frozen=True)
class Parts:
    """What other modules add to an experiment's pages, as Markdown; "" where there is nothing."""

    headline: str = ""  # five lines in plain words, for the summary
    regime: str = ""  # the map of where splitting helps, a figure
    claims_line: str = ""  # one sentence for the summary
    glance: str = ""  # which benchmarks carry the differences, a list
    claims: str = ""
    comparison: str = ""
    studies: str = ""


def verdict_sentence(found: Comparison) -> str:
    """One comparison in words that claim no more than its interval."""
    limits = f"{LEVEL:.0%} interval {found.low:+.1f} to {found.high:+.1f}"
    seeds = f"ahead on {found.seeds_ahead} of {found.num_seeds} seeds"
    if found.num_seeds == 0:
        seeds = "no seed in common"
    ours, other = f"**{found.method}**", f"**{found.other}**"
    if found.verdict == "undecided":
        return (
            f"{ours} and {other}: **not decided** "
            f"(difference {found.difference:+.1f} points, {limits}; {seeds})."
        )
    word = "beats" if found.verdict == "better" else "is worse than"
    return f"{ours} **{word}** {other} by {abs(found.difference):.1f} points ({limits}; {seeds})."


def write_sections(
    experiment: Experiment,
    results: Results,
    cells: Cells,
    paper: PaperTable,
    provenance: Provenance,
    figures: Sequence[FigureFile],
    parts: Parts,
    out: Path,
) -> None:
    """`verdicts.md`, `summary.md` and `section.md` of one experiment."""
    ours = markdown_table(text_table(results, cells, paper))
    stem = paper.stem
    first = next(iter(figures))
    method = experiment.report.partition
    found = (
        [compare(results, method, other) for other in opponents(experiment, method)]
        if method
        else []
    )
    sentences = "".join(f"- {verdict_sentence(comparison)}\n" for comparison in found)
    differences = ""
    if found:
        differences = (
            f"### Differences of {method}\n\n{sentences}{parts.glance}\n"
            f"Averages over {len(results.benchmarks)} benchmarks, paired bootstrap "
            f"{resampled(results)}; other data are another matter.\n"
        )
    summary = [
        parts.headline,
        parts.claims_line,
        parts.regime,
        ours,
        f"{caption(results)} The last column is the paper's ({paper.scale}): another scale.\n",
        # one figure is enough at the top: the map where there is one
        "" if parts.regime else _image(next((f for f in figures if f.name == "average"), first)),
    ]
    atomic_write(out / "verdicts.md", f"{sentences}\n{parts.claims_line}")
    atomic_write(out / "summary.md", "\n".join(part for part in summary if part))
    links = ", ".join(f"[{suffix}]({stem}{suffix})" for suffix in (".csv", "_tidy.csv", ".tex"))
    section = [
        *summary[:-1],
        f"The table as files: {links}; [metrics.json](metrics.json).\n",
        "### The paper's table\n",
        paper_caption(paper) + "\n",
        markdown_table([list(paper.header), *map(list, paper.rows)]),
        parts.claims,
        differences,
        _tests_part(found),
        parts.comparison,
        _leave_one_out_part(results, found),
        _intervals_part(results, cells),
        "### Figures\n",
        *(_image(figure) for figure in figures),
        parts.studies,
        _provenance_part(results, provenance),
    ]
    atomic_write(out / "section.md", "\n".join(part for part in section if part))


def _intervals_part(results: Results, cells: Cells) -> str:
    """A table: the bootstrap interval of every cell of the results table."""
    head = ["method", *(HEADINGS.get(name, name) for name in next(iter(cells.values())))]
    rows = [
        [method, *(f"[{cell.low:.1f}, {cell.high:.1f}]" for cell in row.values())]
        for method, row in cells.items()
    ]
    return (
        f"### Intervals of every score\n\n{LEVEL:.0%} intervals in percent, by bootstrap "
        f"{resampled(results)}.\n\n{markdown_table([head, *rows])}"
    )


def _image(figure: FigureFile) -> str:
    link = f"[PDF](figures/{figure.name}.pdf)"
    return f"![{figure.caption}](figures/{figure.name}.png)\n\n{figure.caption} {link}\n"


def _tests_part(found: Sequence[Comparison]) -> str:
    """A table: every comparison with its interval and tests, and a note on their number."""
    if not found:
        return ""
    adjusted = holm_p_values(found)
    head = ["against", "difference", "p", "p (Holm)", "seeds ahead", "p over seeds (Wilcoxon)"]
    rows = [head]
    for c in found:
        seeds = DASH if c.seeds_p_value is None else f"{c.seeds_p_value:.3f}"
        tests = [f"{c.p_value:.4f}", f"{adjusted[c.other]:.4f}"]
        rows.append([c.other, _cell(c), *tests, f"{c.seeds_ahead} of {c.num_seeds}", seeds])
    num_seeds = max(c.num_seeds for c in found)
    return (
        f"### {found[0].method} against the controls\n\n{markdown_table(rows)}\n"
        "All tests are one-sided, for a positive difference. p: share of the bootstrap resamples "
        f"without one; Holm: adjusted for {len(found)} comparisons. With {num_seeds} seeds "
        f"Wilcoxon's p cannot fall below {0.5**num_seeds:.3f}.\n"
    )


def _leave_one_out_part(results: Results, found: Sequence[Comparison]) -> str:
    """A table: difference of the averages without each benchmark in turn, with its interval."""
    if not found or len(results.benchmarks) < 2:
        return ""
    method = found[0].method
    tables = {c.other: leave_one_out(results, method, c.other) for c in found}
    rows = [["left out", *(f"{method} − {other}" for other in tables)]]
    rows.append(["nothing", *map(_cell, found)])
    for name in results.benchmarks:
        rows.append([name, *(_cell(table[name]) for table in tables.values())])
    notes = []
    for whole in found:
        table = tables[whole.other]
        turned = [name for name, part in table.items() if part.verdict != whole.verdict]
        if turned:
            notes.append(f"- against {whole.other}, the verdict hangs on {', '.join(turned)}\n")
    remark = "".join(notes) or "No verdict changes when any single benchmark is left out.\n"
    return (
        "### Leave one benchmark out\n\n"
        "Difference of the averages in points and its paired interval. An average that rests on "
        "one benchmark loses its verdict here.\n\n"
        f"{markdown_table(rows)}\n{remark}"
    )


def _cell(found: Comparison) -> str:
    return f"{found.difference:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"


def _provenance_part(results: Results, provenance: Provenance) -> str:
    seeds = "; ".join(
        f"{method} {', '.join(map(str, values))}"
        for method, values in results.seeds.items()
        if values
    )
    counts = ", ".join(f"{name} {n}" for name, n in results.num_questions.items())
    rows = [
        ["what", "value"],
        ["commit", f"`{provenance.commit}`"],
        ["parameter hash", f"`{provenance.parameter_hash}`"],
        ["base hash", f"`{provenance.base_hash}`"],
        ["seeds", seeds],
        ["questions", counts],
        ["intervals", f"{LEVEL:.0%}, {NUM_RESAMPLES} bootstrap draws {resampled(results)}"],
    ]
    table = markdown_table(rows).replace("---:|", "---|")
    return f"### Where the numbers come from\n\n{table}"


def write_pages(
    experiments: Sequence[tuple[str, str]], fuller: Sequence[str], reports_dir: Path, readme: Path
) -> None:
    """Join the experiments ((name, title), in order) into reports/README.md and the top README.

    The top README shows the first one's table and figure and what the others found; `fuller` names
    those of them that are another one's full study, which it leaves to reports/README.md.
    `readme` is left alone where it does not exist. Raises MeritError where an experiment has no
    report yet, or `readme` does not hold the two markers once each and in order.
    """
    page = ["# Results\n", "Generated by the report stage; nothing here is typed by hand.\n"]
    block: list[str] = []
    for name, title in experiments:
        heading = f"{title} (`{name}`)\n"
        page.append(f"## {heading}\n{_part(reports_dir, name, 'section.md', '')}")
        if name not in fuller:
            file = "verdicts.md" if block else "summary.md"
            block.append(f"### {heading}\n{_part(reports_dir, name, file, f'{reports_dir.name}/')}")
    atomic_write(reports_dir / "README.md", "\n".join(page))
    if readme.is_file():
        where = f"{reports_dir.name}/README.md"
        link = f"Every table and figure is in [{where}]({where})"
        named = ", ".join(f"`{name}`" for name in fuller)
        link += f", those of every row and study under {named}.\n" if fuller else ".\n"
        atomic_write(readme, _replace_block(readme, "\n".join([*block, link])))


def _part(reports_dir: Path, name: str, file: str, prefix: str) -> str:
    path = reports_dir / name / file
    if not path.is_file():
        raise MeritError(f"{path}: file not found; `dvc repro` builds the report of {name!r}")
    return path.read_text(encoding="utf-8").replace("](", f"]({prefix}{name}/")


def _replace_block(path: Path, content: str) -> str:
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise MeritError(
            f"{path}: expected the lines {BEGIN} and {END} once each, in this order; "
            "restore them around the results"
        )
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{content}{END}{rest.split(END)[1]}"
