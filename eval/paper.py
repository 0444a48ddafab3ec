"""The paper's published numbers (reports/paper/*.csv), shown beside ours as another scale.

The cells stay the strings of the CSV, so that no digit is added or lost on the way.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from merit.errors import MeritError

PAPER_DIR = Path(__file__).absolute().parents[2] / "reports" / "paper"

SCALES = {
    "table02": "Qwen2.5-VL-3B-Instruct, 136 Vision-FLAN tasks, the public benchmarks",
    "table03": "7B vision-language models, 176 sources, the public benchmarks",
    "table04": "Qwen2.5-3B, 66 FLAN tasks, the public benchmarks",
    "table10": "Qwen2.5-VL-3B-Instruct, 136 Vision-FLAN tasks, eleven public benchmarks",
}


LABELS = ("build", "method", "train_examples", "run")  # columns that are no scores


@dataclass(frozen=True)
class PaperTable:
    """One published table: `header`, and `rows` of as many strings each; UNPUBLISHED has neither.

    `build` is the model in the column `build` that the experiment stands for, where there is one.
    """

    name: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    build: str | None = None

    @property
    def stem(self) -> str:
        """ "table02" of "table02_vision_flan_3b": what our own table is called."""
        return self.name.split("_")[0]

    @property
    def published(self) -> bool:
        return bool(self.header)

    @property
    def columns(self) -> list[str]:
        """The columns of benchmarks, without their average."""
        return [head for head in self.header if head not in (*LABELS, "avg")]

    @property
    def scale(self) -> str:
        """Models, data and benchmarks behind the numbers, in words."""
        return SCALES.get(self.stem, "the paper's models, data and public benchmarks")

    def averages(self) -> dict[str, str]:
        """Published average by method; methods that stand in several rows are left out."""
        if "avg" not in self.header:
            return {}
        return {method: cells["avg"] for method, cells in self.by_method().items()}

    def by_method(self) -> dict[str, dict[str, str]]:
        """{method: {column: cell}} of `build`; methods that stand in several rows are left out."""
        if "method" not in self.header:
            return {}
        rows = [dict(zip(self.header, row, strict=True)) for row in self.rows]
        own = [row for row in rows if self.build is None or row["build"] == self.build]
        names = [row["method"] for row in own]
        return {row["method"]: row for row in own if names.count(row["method"]) == 1}


UNPUBLISHED = PaperTable("results", (), ())  # of an experiment that stands for none of the paper's


def load_paper_table(name: str | None, reports_dir: Path, build: str | None = None) -> PaperTable:
    """`reports_dir`/paper/<name>.csv, or the repository's copy where that folder is missing.

    Without a name UNPUBLISHED. Raises MeritError where there is no such table, a row has another
    number of cells, or no row is about `build`.
    """
    if name is None:
        return UNPUBLISHED
    folder = reports_dir / "paper"
    folder = folder if folder.is_dir() else PAPER_DIR
    path = folder / f"{name}.csv"
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in folder.glob("table*.csv"))) or "none"
        raise MeritError(
            f"{path}: no such table (key `report.paper_table` of the experiment). Known: {known}."
        ) from None
    for number, line in enumerate(lines, start=1):
        if len(line) != len(lines[0]):
            raise MeritError(
                f"{path}, line {number}: {len(line)} cells, the header has {len(lines[0])}"
            )
    rows = tuple(tuple(line) for line in lines[1:])
    if build is not None:
        column = lines[0].index("build") if "build" in lines[0] else None
        builds = sorted({row[column] for row in rows}) if column is not None else []
        if build not in builds:
            raise MeritError(
                f"{path}: no row is about {build!r} (key `report.paper_build` of the experiment). "
                f"Known: {', '.join(builds) or 'none, the table has no column `build`'}."
            )
    return PaperTable(name, tuple(lines[0]), rows, build)
