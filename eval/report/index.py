"""The pages over all experiments: reports/README.md, and the results in the top README.md.

Both are made of the summary.json that every report leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merit.errors import MeritError
from merit.eval.report.build import SUMMARY
from merit.eval.report.render import points, render
from merit.eval.verdict import VERDICTS
from merit.io.artifacts import atomic_write, read_json

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
KINDS = {  # of methods -> heading
    "base": "base",
    "joint": "joint",
    "random": "random",
    "main": "MERIT",
    "shrunk": "joint shrunk",
}
PICTURE = "pca"  # the figure that stands in the top README

Summary = Mapping[str, Any]


def build_index(
    names: Sequence[str],
    reports_dir: Path,
    readme: Path = Path("README.md"),
    once: Sequence[str] = (),
) -> None:
    """Write `reports_dir`/README.md, and the results in `readme` if it exists.

    Args: names: folders of the reports, in order. once: those that the default does not run.

    Raises MeritError if an experiment has no report yet, or `readme` does not hold the two markers
    once each and in order.
    """
    found = {name: _summary(reports_dir, name) for name in (*names, *once)}
    index = render("index.md.j2", reports=found, once=once, verdicts=VERDICTS)
    block = render(
        "readme.md.j2",
        reports=found,
        kinds=KINDS,
        folder=reports_dir.name,
        picture=next((n for n, s in found.items() if PICTURE in s["figures"]), None),
        picture_name=PICTURE,
        joint=sentences(found, "joint", "avg", "joint training"),
        base=sentences(found, "base", "avg", "the base without training"),
        closed=sentences(found, "joint", "avg_closed", "joint training"),
        shrunk=sentences(found, "shrunk", "avg", "the shrunken joint model"),
    )
    atomic_write(reports_dir / "README.md", index)
    if readme.is_file():
        atomic_write(readme, _replace_block(readme, block))


def sentences(reports: Mapping[str, Summary], kind: str, column: str, other: str) -> str:
    """Where MERIT is ahead of the opponent of this kind, where behind, and where undecided.

    "" if no report has this difference. Args: other: the opponent in words.
    """
    told: dict[str, list[str]] = {"ahead": [], "behind": [], "undecided": []}
    for name, summary in reports.items():
        found = summary["differences"].get(kind, {}).get(column)
        if found:
            shown = points(found["value"], found["low"], found["high"])
            told[found["verdict"]].append(f"`{name}` ({shown})")
    words = {
        "ahead": f"MERIT beats {other} in",
        "behind": f"{other[0].upper()}{other[1:]} beats MERIT in",
        "undecided": "Undecided:",
    }
    return " ".join(f"{words[v]} {', '.join(where)}." for v, where in told.items() if where)


def _summary(reports_dir: Path, name: str) -> Summary:
    path = reports_dir / name / SUMMARY
    if not path.is_file():
        raise MeritError(f"{path}: file not found; `dvc repro` builds the report of {name!r}")
    found: Summary = read_json(path)
    return found


def _replace_block(path: Path, content: str) -> str:
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise MeritError(
            f"{path}: expected the lines {BEGIN} and {END} once each, in this order; "
            "restore them around the results"
        )
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{content}{END}{rest.split(END)[1]}"
