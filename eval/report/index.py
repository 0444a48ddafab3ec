"""The pages over all experiments: reports/README.md, reports/bases, the results in README.md.

They are made of the summary.json and claims.json that every report leaves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from merit.errors import MeritError
from merit.eval.report.bases import SUMMARY
from merit.eval.report.figure_bases import ALL, draw_forest
from merit.eval.report.ledger import claims
from merit.eval.report.render import render
from merit.eval.report.style import save, styled
from merit.eval.table_files import write_csv
from merit.eval.verdict import VERDICTS
from merit.io.artifacts import atomic_write, read_json

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
KINDS = {  # of methods -> heading
    "base": "base", "joint": "joint", "random": "random", "main": "MERIT", "shrunk": "joint shrunk",
}  # fmt: skip
PICTURE = "pca"  # the figure that stands in the top README

Summary = Mapping[str, Any]


def build_index(
    names: Sequence[str],
    reports_dir: Path,
    readme: Path = Path("README.md"),
    once: Sequence[str] = (),
) -> None:
    """Write `reports_dir`/README.md and bases/, and the results in `readme` if it exists.

    Args: names: folders of the reports, in order. once: those that the default does not run.

    Raises MeritError if an experiment has no report yet, or `readme` does not hold the two markers
    once each and in order.
    """
    found = {name: _summary(reports_dir, name) for name in (*names, *once)}
    shown = {
        claim.shown: {name: summary["records"][claim.id] for name, summary in found.items()
                      if claim.id in summary["records"]}
        for claim in claims().values() if claim.shown
    }  # fmt: skip
    index = render("index.md.j2", reports=found, once=once, verdicts=VERDICTS, claims=shown)
    block = render(
        "readme.md.j2",
        reports=found,
        kinds=KINDS,
        folder=reports_dir.name,
        picture=next((n for n, s in found.items() if PICTURE in s["figures"]), None),
        picture_name=PICTURE,
        **{verdict: sentences(shown, verdict) for verdict in VERDICTS[:3]},
    )
    replaced = _replace_block(readme, block) if readme.is_file() else None
    write_bases({name: s for name, s in found.items() if s["family"] == name}, reports_dir)
    atomic_write(reports_dir / "README.md", index)
    if replaced is not None:
        atomic_write(readme, replaced)


def sentences(shown: Mapping[str, Mapping[str, Any]], verdict: str) -> str:
    """The claims with this verdict, each with its experiments; ¹: on one base only."""
    words = {"holds": "", "fails": "that ", "undecided": "whether "}[verdict]
    told = []
    for claim, records in shown.items():
        found = {name: r["num_bases"] for name, r in records.items() if r["verdict"] == verdict}
        places = [f"`{name}`{'¹' if bases == 1 else ''}" for name, bases in found.items()]
        if found:
            told.append(f"{words}{claim} ({', '.join(places)})")
    text = "; ".join(told)
    return text[:1].upper() + text[1:] + ("." if text else "")


def write_bases(families: Mapping[str, Summary], reports_dir: Path) -> None:
    """bases/: README.md, differences.csv, verdicts.csv and a forest plot per family."""
    folder, differences, verdicts = reports_dir / "bases", [], []
    for name, summary in families.items():
        records = [r for r in summary["records"].values() if r.get("by_base")]
        unique: dict[tuple[str, str], dict[str, Any]] = {}  # two claims may share a comparison
        for row in (row for record in records for row in forest_rows(record)):
            unique.setdefault((row["comparison"], row["base"]), {"family": name} | row)
        rows = list(unique.values())
        if rows:
            with styled():  # without differences of differences
                forest = draw_forest([r for r in rows if not r["comparison"].startswith("(")])
            save({name: forest}, folder / "figures")
        differences += rows
        for record in records:
            each = Counter(one["verdict"] for one in record["by_base"].values())
            verdicts.append({
                **{"family": name, "claim": record["id"], "shown": record["shown"]},
                **{key: record[key] for key in ("verdict", "label", "text", "num_bases")},
                **{f"bases_{verdict}": each[verdict] for verdict in VERDICTS[:3]},
            })  # fmt: skip
    if differences:
        write_csv(folder / "differences.csv", pd.DataFrame(differences), "%.4f")
        write_csv(folder / "verdicts.csv", pd.DataFrame(verdicts))
    ready = {
        name: [found for base in summary["bases"]
               if (found := read_json(reports_dir / base / SUMMARY)["merge_ready"]) is not None]
        for name, summary in families.items()
    }  # fmt: skip
    page = render("bases.md.j2", families=families, verdicts=verdicts, ready=ready)
    atomic_write(folder / "README.md", page)


def forest_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per link of a claim and base, and one over all bases, `base` ALL."""
    rows = []
    for link in record["links"]:
        each = {
            base: found
            for base, one in record["by_base"].items()
            for found in one["links"] if found["label"] == link["label"]
        }  # fmt: skip
        pooled = {ALL: link} if link["num_bases"] > 1 else {}
        best = ", best distance" if record["distance"] == "best" else ""
        closed = ", not open-ended" if record["benchmarks"] == "closed" else ""
        rows += [
            {"claim": record["id"], "comparison": f"{link['label']}{best}{closed}", "base": base}
            | {key: found[key] for key in ("value", "low", "high", "verdict")}
            | {"num_bases": link["num_bases"] if base == ALL else 1}
            for base, found in (each | pooled).items()
        ]
    return rows


def _summary(reports_dir: Path, name: str) -> dict[str, Any]:
    """The summary, and its claims by id as `records`."""
    path = reports_dir / name / SUMMARY
    if not path.is_file():
        raise MeritError(f"{path}: file not found; `dvc repro` builds the report of {name!r}")
    summary, records = read_json(path), read_json(path.with_name("claims.json"))
    if "bases" not in summary:
        raise MeritError(f"{path}: key `bases` is missing; run the report of {name!r} again")
    return summary | {"records": {record["id"]: record for record in records}}


def _replace_block(path: Path, content: str) -> str:
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise MeritError(
            f"{path}: expected the lines {BEGIN} and {END} once each, in this order; "
            "restore them around the results"
        )
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{content}{END}{rest.split(END)[1]}"
