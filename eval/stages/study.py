"""study: one of the paper's measurements besides its main tables (merit.eval.studies)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from merit.config import load_experiment
from merit.eval.measuring.scores import Row
from merit.eval.questions import QUESTIONS, write_questions
from merit.eval.studies import STUDIES, measure_of, settings_of
from merit.eval.table_files import markdown_table, write_csv
from merit.io.artifacts import (
    Artifacts,
    atomic_folder,
    atomic_write,
    read_json,
    study_folder,
    value_hash,
    write_json,
)


def run(name: str, item: str | None = None) -> None:
    """Write reports/studies/<name>/<item>."""
    assert item is not None
    write_study(name, item, study_folder(name, item))


def write_study(name: str, item: str, folder: Path) -> None:
    """The study's result.json and tables, to `folder`."""
    experiment, paths = load_experiment(name), Artifacts(name)
    settings = settings_of(experiment)[item]
    result = measure_of(item)(experiment, paths, settings)
    result["provenance"] = {
        "base_hash": read_json(paths.base / "base.json")["base_hash"],
        "settings": settings.model_dump(mode="json"),
        "settings_hash": value_hash(settings.model_dump(mode="json")),
    }
    result = json.loads(json.dumps(result))  # what is drawn is what is stored
    result["title"] = STUDIES[item].title
    with atomic_folder(folder) as out:
        if "questions" in result:
            write_questions(out / QUESTIONS, result.pop("questions"))
        write_json(out / "result.json", result)
        for stem, rows in result["tables"].items():
            write_table(out, stem, rows)


def write_table(out: Path, stem: str, rows: Sequence[Row]) -> None:
    """<stem>.csv and .md; the columns are those of the first row."""
    header = list(rows[0])
    cells = [[_cell(row[column]) for column in header] for row in rows]
    write_csv(out / f"{stem}.csv", pd.DataFrame(cells, columns=header))
    atomic_write(out / f"{stem}.md", markdown_table([header, *cells]))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
