"""Pages for a code host: reports/README.md and the results block of the top README.md.

Every experiment leaves `verdicts.md` (a few sentences), `summary.md` (these, the table, one figure)
and `section.md` (the whole) in its own folder, with links relative to it; the pages join these and
adjust the links. Their words stand in templates/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merit.config import Experiment
from merit.errors import MeritError
from merit.eval.paper import PaperTable
from merit.eval.report.intervals import (
    Cells,
    Comparison,
    compare,
    holm_p_values,
    leave_one_out,
    opponents,
    resampled,
)
from merit.eval.report.render import points, render
from merit.eval.report.tables import (
    DASH,
    HEADINGS,
    beside_table,
    caption,
    paper_caption,
    published_part,
    same_benchmarks,
    text_table,
)
from merit.eval.results import Results
from merit.eval.statistics import LEVEL, NUM_RESAMPLES
from merit.eval.table_files import markdown_table
from merit.io.artifacts import atomic_write

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

Rows = list[list[str]]


def verdict_sentence(found: Comparison) -> str:
    """One comparison in words that claim no more than its interval."""
    return render("verdict.md.j2", found=found, level=LEVEL).rstrip()


def write_sections(values: Mapping[str, Any], out: Path) -> None:
    """`verdicts.md`, `summary.md` and `section.md` of one experiment."""
    for page in ("verdicts", "summary", "section"):
        atomic_write(out / f"{page}.md", render(f"{page}.md.j2", **values))


def score_values(
    experiment: Experiment, results: Results, cells: Cells, paper: PaperTable
) -> dict[str, Any]:
    """What the pages say of the scores, by the templates' names.

    `method` is "" and the parts on its differences are empty without a main method.
    """
    method = experiment.report.partition or ""
    others = opponents(experiment, method) if method else []
    found = [compare(results, method, other) for other in others]
    parts = {c.other: leave_one_out(results, method, c.other) for c in found}
    several = len(results.benchmarks) > 1
    return {
        "ours": markdown_table(text_table(results, cells, paper)),
        "caption": caption(results),
        "beside": beside_table(results),
        "published": published_part(paper),
        "paper_caption": paper_caption(paper, same_benchmarks(results, paper)),
        "same": same_benchmarks(results, paper),
        "scale": paper.scale,
        "stem": paper.stem,
        "method": method if found else "",
        "verdicts": [verdict_sentence(comparison) for comparison in found],
        "tests": markdown_table(comparison_rows(found)),
        "left_out": markdown_table(left_out_rows(found, parts)) if found and several else "",
        "turned": turned(found, parts),
        "intervals": markdown_table(interval_rows(cells)),
        "level": LEVEL,
        "num_resamples": NUM_RESAMPLES,
        "resampled": resampled(results),
        "num_seeds": max((c.num_seeds for c in found), default=0),
        "seeds": results.seeds,
        "num_questions": results.num_questions,
    }


def comparison_rows(found: Sequence[Comparison]) -> Rows:
    """Every comparison with its interval and tests."""
    adjusted = holm_p_values(found)
    return [
        ["against", "difference", "p", "p (Holm)", "seeds ahead", "p over seeds (Wilcoxon)"],
        *(
            [
                c.other,
                points(c.difference, c.low, c.high),
                f"{c.p_value:.4f}",
                f"{adjusted[c.other]:.4f}",
                f"{c.seeds_ahead} of {c.num_seeds}",
                DASH if c.seeds_p_value is None else f"{c.seeds_p_value:.3f}",
            ]
            for c in found
        ),
    ]


def left_out_rows(
    found: Sequence[Comparison], parts: Mapping[str, Mapping[str, Comparison]]
) -> Rows:
    """Difference of the averages without each benchmark in turn: {opponent: {benchmark: ...}}."""
    benchmarks = next(iter(parts.values()), {})
    wholes = {"nothing": found} | {
        name: [table[name] for table in parts.values()] for name in benchmarks
    }
    return [
        ["left out", *(f"{c.method} − {c.other}" for c in found)],
        *(
            [name, *(points(c.difference, c.low, c.high) for c in row)]
            for name, row in wholes.items()
        ),
    ]


def turned(
    found: Sequence[Comparison], parts: Mapping[str, Mapping[str, Comparison]]
) -> dict[str, list[str]]:
    """{opponent: the benchmarks without which the verdict is another one}, where there are any."""
    hanging = {
        c.other: [name for name, part in parts[c.other].items() if part.verdict != c.verdict]
        for c in found
    }
    return {other: names for other, names in hanging.items() if names}


def interval_rows(cells: Cells) -> Rows:
    """The bootstrap interval of every cell of the results table."""
    return [
        ["method", *(HEADINGS.get(name, name) for name in next(iter(cells.values())))],
        *(
            [method, *(f"[{cell.low:.1f}, {cell.high:.1f}]" for cell in row.values())]
            for method, row in cells.items()
        ),
    ]


def write_pages(
    experiments: Sequence[tuple[str, str]],
    fuller: Sequence[str],
    reports_dir: Path,
    readme: Path,
    once: Sequence[tuple[str, str]] = (),
) -> None:
    """Join the experiments ((name, title), in order) into reports/README.md and the top README.

    The top README shows the first one's table and figure and what the others found; `fuller` names
    those of them that are another one's full study. These it leaves to reports/README.md, and
    `once`, too, those that are not run by default.
    `readme` is left alone where it does not exist. Raises MeritError where an experiment has no
    report yet, or `readme` does not hold the two markers once each and in order.
    """
    sections = [
        (n, title, _part(reports_dir, n, "section.md", "")) for n, title in (*experiments, *once)
    ]
    atomic_write(reports_dir / "README.md", render("results.md.j2", experiments=sections))
    if readme.is_file():
        shown = [(name, title) for name, title in experiments if name not in fuller]
        words = [
            (name, title, _part(reports_dir, name, file, f"{reports_dir.name}/"))
            for i, (name, title) in enumerate(shown)
            for file in ("verdicts.md" if i else "summary.md",)
        ]
        page = f"{reports_dir.name}/README.md"
        block = render("readme.md.j2", experiments=words, page=page, fuller=fuller)
        atomic_write(readme, _replace_block(readme, block))


def _part(reports_dir: Path, name: str, file: str, prefix: str) -> str:
    path = reports_dir / name / file
    if not path.is_file():
        raise MeritError(f"{path}: file not found; `dvc repro` builds the report of {name!r}")
    text = path.read_text(encoding="utf-8").replace("](", f"]({prefix}{name}/")
    return text.replace(f"]({prefix}{name}/../", f"]({prefix}")  # what lies beside the report


def _replace_block(path: Path, content: str) -> str:
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise MeritError(
            f"{path}: expected the lines {BEGIN} and {END} once each, in this order; "
            "restore them around the results"
        )
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{content}{END}{rest.split(END)[1]}"
