"""The paper's tables 2, 3, 4 and 10, rendered from recorded scores of the shipped experiments.

What was recorded here are the paper's own numbers, so that every cell is known.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from merit.config import EXPERIMENTS_DIR, Experiment, load_experiment
from merit.config.branches import plan
from merit.eval.benchmarks import BENCHMARKS, Benchmark
from merit.eval.paper import load_paper_table
from merit.eval.report import build
from merit.eval.report.base import described
from merit.eval.report.build import build_report
from merit.io.artifacts import Artifacts, read_json, write_json, write_jsonl
from tests import synthetic

ROOT = Path(__file__).parent.parent
OTHERS = 50.0  # the score of a method that the paper has not


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take seconds, and show nothing of the paper's tables."""
    monkeypatch.setattr(build, "write_figures", lambda *_: {})


Values = dict[str, dict[str, float]]  # method -> the paper's column -> score


def shipped(name: str) -> Experiment:
    """An experiment with one seed a method and without its studies."""
    experiment = load_experiment(name, ROOT / EXPERIMENTS_DIR)
    methods = {
        method: settings.model_copy(update={"seeds": [1] if settings.partition != "base" else []})
        for method, settings in experiment.methods.items()
    }
    return experiment.model_copy(update={"methods": methods, "sweeps": {}, "studies": {}})


def published(name: str, build: str | None = None) -> Values:
    table = load_paper_table(name, ROOT / "reports", build)
    return {
        method: {column: float(cells[column]) for column in table.columns if cells[column]}
        for method, cells in table.by_method().items()
    }


def record(root: Path, experiment: Experiment, values: Values, also: Any = None) -> Artifacts:
    """A finished pipeline in `root` whose scores are `values`, the same at every question."""
    artifacts = Artifacts(experiment.name, root)
    synthetic.write(root, experiment, num_records=2, num_questions=2)
    stored = read_json(artifacts.evaluation / "scores.json")
    for model in plan(experiment).models.values():
        found = {
            name: values.get(model.method, {}).get(BENCHMARKS[name].paper_column, OTHERS)
            for name in experiment.evaluation.benchmarks
        }
        stored["scores"][model.id] = found
        rows = [
            {"benchmark": name, "index": str(i), "prediction": "", "score": score / 100}
            for name, score in found.items()
            for i in range(2)
        ]
        write_jsonl(artifacts.predictions(model.id), rows)
        if also:
            stored.setdefault("also", {})[model.id] = also(values.get(model.method, {}))
    write_json(artifacts.evaluation / "scores.json", stored)
    return artifacts


def read(path: Path) -> list[list[str]]:
    return list(csv.reader(path.read_text(encoding="utf-8").splitlines()))


def assert_laid_out(found: list[list[str]], table: str, build: str | None = None) -> None:
    """The paper's header, methods and cells; its averages are of numbers before rounding."""
    paper = load_paper_table(table, ROOT / "reports", build)
    theirs = list(paper.by_method().values())
    assert found[0] == list(paper.header)
    ours = [dict(zip(found[0], row, strict=True)) for row in found[1:]]
    for column in ("method", *paper.columns):
        assert [row[column] for row in ours] == [row[column] for row in theirs]
    averages = [float(row["avg"]) for row in ours]
    assert averages == pytest.approx([float(row["avg"]) for row in theirs], abs=0.11)


@pytest.mark.parametrize(
    ("name", "table", "build"),
    [
        ("vision_flan_3b_llava", "table02_vision_flan_3b", None),
        ("vision_176_7b_scaled", "table03_vision_176_7b", "scaled-base-vlm-7b"),
        ("text_flan_3b", "table04_text_flan_3b", None),
    ],
)
def test_a_table_is_laid_out_as_in_the_paper(
    tmp_path: Path, name: str, table: str, build: str | None
) -> None:
    experiment = shipped(name)
    artifacts = record(tmp_path / "artifacts", experiment, published(table, build))
    build_report(experiment, artifacts, tmp_path / "reports")
    report = tmp_path / "reports" / name
    stem = table.split("_")[0]
    assert_laid_out(read(report / f"{stem}_paper_layout.csv"), table, build)
    assert not [*report.glob("table10*")]
    page = (report / "README.md").read_text(encoding="utf-8")
    assert described(experiment.base) in page
    base = published(table, build)["base"]
    column, score = next(iter(base.items()))
    assert f"| {column} | {score:.1f} | {score:.1f} | +0.0 |" in page
    assert "another scale" not in page


def test_tables_2_and_10_of_one_run(tmp_path: Path) -> None:
    """The full experiment asks table 10's benchmarks, which are no part of table 2's averages."""
    experiment = shipped("vision_flan_3b_full")
    assert experiment.table_benchmarks == experiment.evaluation.benchmarks[:8]
    assert experiment.evaluation.benchmarks[8:] == ["mme", "hallusion", "miabench", "docvqa"]
    table2, table10 = published("table02_vision_flan_3b"), published("table10_clustering_ablation")
    values = {m: table2.get(m, {}) | table10.get(m, {}) for m in experiment.methods}
    values["base"] = table2["base"] | {"mmmu": 53.1, "ai2d": 68.8}  # as if it were another model

    def also(columns: dict[str, float]) -> Any:
        raw = columns.get("mme_raw", 23 * OTHERS)
        return {"mme": {"raw": raw, "perception": 0.75 * raw}, "hallusion": {"kit_mean": 33.3}}

    artifacts = record(tmp_path / "artifacts", experiment, values, also)
    build_report(experiment, artifacts, tmp_path / "reports")
    report = tmp_path / "reports" / "vision_flan_3b_full"
    assert_laid_out(read(report / "table10_paper_layout.csv"), "table10_clustering_ablation")
    layout = read(report / "table02_paper_layout.csv")
    assert layout[0] == read(ROOT / "reports" / "paper" / "table02_vision_flan_3b.csv")[0]
    assert [row[0] for row in layout[1:]] == list(table2)
    assert [row[1:-1] for row in layout[2:]] == [
        [f"{x:.1f}" for x in row.values()] for row in list(table2.values())[1:]
    ]
    averages = read_json(report / "metrics.json")
    assert averages["merit-3d"] == pytest.approx(sum(table2["merit-3d"].values()) / 8)

    page = (report / "README.md").read_text(encoding="utf-8")
    assert "on mmmu (+11.9)." in page  # ai2d's 5.0 are not more than 5
    assert "| ai2d | 68.8 | 63.8 | +5.0 |" in page
    assert "| merit-3d | 1404.6 | 1872.8 | 33.3 |" in page
    tidy = read(report / "table10_tidy.csv")
    (line,) = (r for r in tidy if r[0] == "ours" and r[2:4] == ["kmeans-4", "mme_raw"])
    found = dict(zip(tidy[0], line, strict=True))
    assert (found["mean"], found["ci_low"], found["num_seeds"]) == ("1853.4000", "", "1")
    assert "mme_raw" not in {row[3] for row in read(report / "table02_tidy.csv")}


# --- one's own ------------------------------------------------------------------------------------

OWN = ("arithmetic", "syllogisms")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Experiment, Artifacts]:
    """Generated answers, benchmarks that stand for none of the paper's, one seed, no table."""
    for name in OWN:
        made = Benchmark(name=name, kind="generation", category="Problem solving")
        monkeypatch.setitem(BENCHMARKS, name, made)
    values: Any = synthetic.experiment("own").model_dump(mode="json")
    values["data"] = {"source": "jsonl", "folder": "own/mixture", "held_out": 0.1}
    values["base"] = {"checkpoint": "own/model"}
    values["evaluation"] = {"benchmarks": list(OWN)}
    values["report"] = {"title": "Own", "partition": "merit-3d", "curves": ["joint-1ep"]}
    values["studies"] = {"retention": {}}
    experiment = Experiment.model_validate(values)
    synthetic.write(tmp_path / "artifacts", experiment, num_records=4)
    return experiment, Artifacts("own", tmp_path / "artifacts")


def test_a_report_without_a_table_of_the_paper(
    own: tuple[Experiment, Artifacts], tmp_path: Path
) -> None:
    experiment, artifacts = own
    kept = [{"model": "base", "loss": 2.0, "words": 1.0}]
    tables = {"retention": kept, "answers": [{"prompt": "a", "base": "b"}]}
    summary = {"num_prompts": 1, "loss": {"base": 2.0}, "words": {"base": 1.0}}
    stored = {"tables": tables, "summary": summary, "title": "Kept"}
    write_json(tmp_path / "reports" / "studies" / "own" / "retention" / "result.json", stored)
    build_report(experiment, artifacts, tmp_path / "reports")
    report = tmp_path / "reports" / "own"
    header = read(report / "results.csv")[0]
    assert header[:4] == ["method", *OWN, "avg"]
    assert "paper_avg_other_scale" not in header
    assert {row[0] for row in read(report / "results_tidy.csv")[1:]} == {"ours"}
    assert not [*report.glob("*layout*")]
    page = (report / "README.md").read_text(encoding="utf-8")
    assert "`own/model`" in page
    assert "Published numbers" not in page
    assert "### Kept" in page
    assert (report / "results.tex").read_text(encoding="utf-8").count(r"\begin{table}") == 1
    claims = {row["id"]: row for row in read_json(report / "claims.json")}
    assert claims["C1"]["table"] == "results.csv"
