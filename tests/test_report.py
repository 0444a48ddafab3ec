"""The report: hand-computed values, unchanged published numbers, repeatable bytes, refusals."""

from __future__ import annotations

import csv
import io
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from merit.config import PARAMETERS, Experiment, Method
from merit.errors import MeritError
from merit.eval.paper import PAPER_DIR, load_paper_table
from merit.eval.questions import read_questions
from merit.eval.report.build import build_report
from merit.eval.report.cells import table_cells
from merit.eval.report.comparison import compare, comparisons, frame, opponents
from merit.eval.report.figures_training import displacement_gram
from merit.eval.report.index import BEGIN, END, build_index, sentences
from merit.eval.report.style import method_color
from merit.eval.results import load_results
from merit.eval.stages import index
from merit.eval.table_files import latex_escape, latex_table, markdown_table
from merit.io.artifacts import Artifacts, read_json, write_json, write_jsonl
from tests import synthetic

PAPER_TABLE = "table02_vision_flan_3b"
METHODS = ("base", "joint-1ep", "random-8", "merit-3d", "joint-shrunk")
BENCHMARKS = ("mini_scene", "mini_describe")  # one of choice, one open-ended

# question scores by model: (mini_scene, mini_describe); all others answer as the base
ANSWERS: dict[str, tuple[list[float], list[float]]] = {
    "base": ([1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]),
    "joint-1ep-s1": ([1, 1, 0, 0], [0.5, 0.5, 0.5, 0.5]),
    "joint-1ep-s2": ([1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]),
    "merit-3d-s1": ([1, 1, 1, 1], [0.5, 0.5, 0.5, 0.5]),
    "merit-3d-s2": ([1, 1, 1, 1], [1.0, 1.0, 1.0, 1.0]),
}


def make(root: Path) -> tuple[Experiment, Artifacts]:
    experiment = synthetic.build(
        root, seeds=(1, 2), methods=METHODS, benchmarks=BENCHMARKS, num_questions=4
    )
    curves = ["joint-1ep", "random-8", "merit-3d"]
    report = experiment.report.model_copy(update={"paper_table": PAPER_TABLE, "curves": curves})
    experiment = experiment.model_copy(update={"report": report})
    artifacts = Artifacts(experiment.name, root)
    scores = read_json(artifacts.evaluation / "scores.json")
    for model in scores["scores"]:
        answers = ANSWERS.get(model, ANSWERS["base"])
        rows = [
            {"benchmark": name, "index": i, "prediction": "A", "score": float(score)}
            for name, values in zip(BENCHMARKS, answers, strict=True)
            for i, score in enumerate(values)
        ]
        write_jsonl(artifacts.evaluation / "predictions" / f"{model}.jsonl", rows)
        means = [100 * float(np.mean(values)) for values in answers]
        scores["scores"][model] = dict(zip(BENCHMARKS, means, strict=True))
    # a removed method's scores must not come back
    scores["scores"]["removed-s1"] = dict.fromkeys(BENCHMARKS, 99.0)
    write_json(artifacts.evaluation / "scores.json", scores)
    return experiment, artifacts


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Artifacts]:
    return make(tmp_path_factory.mktemp("artifacts"))


@pytest.fixture(scope="module")
def reports(made: tuple[Experiment, Artifacts], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    readme = root / "README.md"
    readme.write_text(f"# Top\n\n{BEGIN}\nold\n{END}\n\nend\n", encoding="utf-8")
    reports = root / "reports"
    build_report(made[0], made[1], reports)
    build_index(["synthetic"], reports, readme)
    return reports


# --- numbers ------------------------------------------------------------------------------------


def test_cells_are_the_hand_computed_ones(made: tuple[Experiment, Artifacts]) -> None:
    results = load_results(*made)
    cells = table_cells(results)
    assert list(cells) == list(METHODS)
    assert list(cells["base"]) == ["mini_scene", "mini_describe", "avg", "avg_closed"]
    joint = cells["joint-1ep"]
    # mini_scene: 50 and 25 on the two seeds; mini_describe: 50 on both
    assert joint["mini_scene"].mean == 37.5
    assert joint["avg"].mean == (37.5 + 50) / 2
    assert joint["avg"].spread == pytest.approx(12.5 / math.sqrt(2))  # of 50 and 37.5
    assert joint["avg_closed"].mean == 37.5
    assert joint["avg"].num_questions == 8
    # With k and l draws of the first two questions the seeds' mean is (k + l/2)/4. Drawn seeds add
    # -+ sqrt(2)/2 (50 % - 25 %) with chances 1/4. No draw of either question has chance 1/16, with
    # the minus sign 1/64; so the 2.5 % quantile has k = 0 and l = 1: 1/8 - sqrt(2)/8, below 0 and
    # cut there for a score.
    assert joint["mini_scene"].low == 0.0
    assert 87.5 <= joint["mini_scene"].high <= 100.0
    assert (joint["mini_describe"].low, joint["mini_describe"].high) == pytest.approx((50.0, 50.0))
    low = 100 * (1 - math.sqrt(2)) / 8
    assert joint["avg"].low == pytest.approx((low + 50) / 2)
    assert joint["avg"].high == pytest.approx((joint["mini_scene"].high + 50) / 2)
    assert cells["base"]["avg"].spread is None
    assert results.open_ended == ("mini_describe",)
    assert results.seeds == {"base": (), **dict.fromkeys(METHODS[1:], (1, 2))}


def test_one_comparison_by_hand(made: tuple[Experiment, Artifacts]) -> None:
    assert opponents(made[0], "merit-3d") == {
        "joint": ["joint-1ep"],
        "base": ["base"],
        "random": ["random-8"],
        "shrunk": ["joint-shrunk"],
    }
    results = load_results(*made)
    compared = comparisons(made[0], [results])
    assert list(compared) == ["joint-1ep", "base", "random-8", "joint-shrunk"]
    found = compared["joint-1ep"]
    # merit-3d: (100 + 50)/2 and (100 + 100)/2; joint-1ep: 50 and 37.5
    assert {column: cell.difference for column, cell in found.items()} == {
        "mini_scene": 62.5,
        "mini_describe": 25.0,
        "avg": 87.5 - 43.75,
        "avg_closed": 62.5,
    }
    assert found["avg"].direction == "ahead"
    same = compare(results, "random-8", "base")
    assert (same.difference, same.low, same.high, same.direction) == (0, 0, 0, "undecided")
    rows = frame("merit-3d", {"joint-1ep": found}).set_index("benchmark")
    assert rows["share_of_gain"].tolist() == ["0.7143", "0.2857"]
    assert rows["num_questions"].tolist() == [4, 4]


# --- tables -------------------------------------------------------------------------------------


def test_wide_and_tidy_tables(reports: Path) -> None:
    wide = pd.read_csv(reports / "synthetic" / "table02.csv")
    assert wide["method"].tolist() == list(METHODS)
    assert wide.columns[:5].tolist() == ["method", *BENCHMARKS, "avg", "avg_closed"]
    joint = wide[wide["method"] == "joint-1ep"].iloc[0]
    values = joint[["avg", "avg_spread", "avg_ci_low", "num_questions"]].tolist()
    assert values == [43.75, 8.84, 22.41, 8]
    assert joint["paper_avg_other_scale"] == 54.3
    tidy = pd.read_csv(reports / "synthetic" / "table02_tidy.csv", dtype=str)
    assert set(tidy["source"]) == {"ours", "paper"}
    ours = tidy[(tidy["source"] == "ours") & (tidy["method"] == "joint-1ep")]
    assert ours["benchmark"].tolist() == [*BENCHMARKS, "avg", "avg_closed"]
    assert ours["seeds"].tolist() == ["1 2"] * 4
    assert ours["parameter_hash"].str.len().tolist() == [64] * 4
    assert read_json(reports / "synthetic" / "metrics.json") == {
        "base": 37.5,
        "joint-1ep": 43.75,
        "random-8": 37.5,
        "merit-3d": 87.5,
        "joint-shrunk": 37.5,
    }
    interval = read_json(reports / "synthetic" / "provenance.json")["interval"]
    assert (interval["resampled"], interval["questions_alone"]) == ("seeds and questions", [])
    summary = read_json(reports / "synthetic" / "summary.json")
    assert summary["bases"] == ["synthetic"]
    assert summary["averages"]["main"]["value"] == 87.5
    assert summary["averages"]["shrunk"]["method"] == "joint-shrunk"


def test_published_numbers_are_unchanged(reports: Path) -> None:
    source = (PAPER_DIR / f"{PAPER_TABLE}.csv").read_text(encoding="utf-8")
    header, *lines = list(csv.reader(io.StringIO(source)))
    tidy = pd.read_csv(reports / "synthetic" / "table02_tidy.csv", dtype=str)
    paper = tidy[tidy["source"] == "paper"]
    assert paper["mean"].tolist() == [cell for line in lines for cell in line[1:]]
    assert (paper["scale"].str.contains("Qwen2.5-VL-3B")).all()
    page = (reports / "synthetic" / "README.md").read_text(encoding="utf-8")
    assert markdown_table([header, *lines]) in page


def test_latex() -> None:
    assert latex_escape(r"a_b & 5 % \ {x} ~ ^ # $ ±") == (
        r"a\_b \& 5 \% \textbackslash{} \{x\} \textasciitilde{} \textasciicircum{} \# \$ $\pm$"
    )
    rows = [["method", "mini_mcq"], ["base", "1.0 ± 0.5"]]
    table = latex_table(rows, "50 % of **all**", "tab:x").splitlines()
    assert {r"\caption{50 \% of all}", r"\label{tab:x}", r"\begin{tabular}{lr}"} < set(table)
    assert table[7:11:3] == [r"method & mini\_mcq \\", r"\bottomrule"]
    assert table[9] == r"base & 1.0 $\pm$ 0.5 \\"


def test_markdown_tables_are_unpadded_and_escape_bars() -> None:
    table = markdown_table([["method", "p", "p"], ["a|b", "1.0", ""], ["merit-3d", "10", "x"]])
    head, marks, *rows = table.splitlines()
    assert head == "| method | p | p |"
    assert re.fullmatch(r"\|:-+\|-+:\|-+:\|", marks)
    assert rows == [r"| a\|b | 1.0 | |", "| merit-3d | 10 | x |"]
    assert table.endswith("|\n")


def test_training_curves_are_the_token_weighted_mean(reports: Path) -> None:
    """Branch g of the synthetic tree has loss (2 + 0.1 g) / (1 + epoch), ten records an epoch."""
    frame = pd.read_csv(reports / "synthetic" / "plots" / "training.csv")
    joint = frame[(frame["method"] == "joint-1ep") & (frame["branch"] != "mean")]
    assert joint["loss"].tolist() == pytest.approx([2 / (1 + k / 10) for k in range(1, 11)], 1e-4)
    merit = frame[frame["method"] == "merit-3d"]
    last = merit.groupby("branch", sort=False)[["num_tokens", "loss"]].last()
    branches = last.drop("mean")
    assert branches["loss"].tolist() == pytest.approx([1 + 0.05 * g for g in range(8)], 1e-4)
    weighted = np.average(branches["loss"], weights=branches["num_tokens"])
    assert last.loc["mean", "loss"] == pytest.approx(weighted, 1e-4)
    assert last.loc["mean", "num_tokens"] == branches["num_tokens"].sum()
    means = pd.read_csv(reports / "synthetic" / "plots" / "training_mean.csv")
    assert means.columns.tolist() == ["epoch", "joint-1ep", "random-8", "merit-3d"]
    assert means["merit-3d"].iloc[-1] == pytest.approx(weighted, 1e-4)


# --- pages --------------------------------------------------------------------------------------


def test_pages_link_to_files_that_exist(reports: Path) -> None:
    readme = (reports.parent / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# Top\n\n{BEGIN}\n- **What holds.** MERIT")
    assert readme.endswith(f"{END}\n\nend\n")
    assert "\nold\n" not in readme
    elsewhere = {
        "paper/",
        "studies/",
        "benchmarks/",
        "eval/report/claims.yaml",
    }  # the repository has them
    for file, least in (("../README.md", 3), ("README.md", 2), ("synthetic/README.md", 10)):
        page = reports / file
        links = [part.split(")")[0] for part in page.read_text("utf-8").split("](")[1:]]
        assert len(links) >= least
        missing = [link for link in links if not (page.parent / link).is_file()]
        assert set(missing) <= elsewhere


def test_claims_are_sorted_by_their_verdicts() -> None:
    def record(verdict: str, num_bases: int) -> dict[str, object]:
        return {"verdict": verdict, "num_bases": num_bases}

    first = {"a": record("holds", 3), "b": record("fails", 5), "c": record("holds", 1)}
    shown = {"it wins": first, "more is better": {"a": record("holds", 3)}}
    said = sentences(shown, "holds")
    assert said == "It wins (`a`, `c`¹); more is better (`a`)."
    assert sentences(shown, "fails") == "That it wins (`b`)."
    assert sentences(shown, "undecided") == ""


@pytest.mark.parametrize("text", ["# Top\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{BEGIN}\n{END}\n"])
def test_a_readme_without_its_markers_is_refused(reports: Path, tmp_path: Path, text: str) -> None:
    copy = shutil.copytree(reports, tmp_path / "reports")
    readme = tmp_path / "README.md"
    readme.write_text(text, encoding="utf-8")
    with pytest.raises(MeritError, match="results:begin"):
        build_index(["synthetic"], copy, readme)
    assert readme.read_text(encoding="utf-8") == text


# --- figures ------------------------------------------------------------------------------------


def test_the_same_artifacts_give_the_same_bytes(
    made: tuple[Experiment, Artifacts], reports: Path, tmp_path: Path
) -> None:
    build_report(made[0], made[1], tmp_path / "reports")
    first, second = (
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (reports / "synthetic", tmp_path / "reports" / "synthetic")
    )
    assert sorted(first) == sorted(second)
    assert [path for path in first if first[path] != second[path]] == []
    images = [path for path in first if path.suffix == ".png"]
    assert len(images) == 7
    assert max(len(first[path]) for path in images) < 300_000


def test_trajectories_by_hand(tmp_path: Path) -> None:
    base = {"a": np.array([1.0, 2.0], np.float32), "b": np.array([[3.0]], np.float32)}
    moves = [(3.0, 0.0, 0.0), (0.0, 4.0, 0.0), (0.0, 4.0, 2.0)]
    save_file(base, tmp_path / "base.safetensors")
    for k, (x, y, z) in enumerate(moves):
        move = {"a": np.array([x, y], np.float32), "b": np.array([[z]], np.float32)}
        moved = {name: base[name] + move[name] for name in base}
        save_file(moved, tmp_path / f"{k}.safetensors")
    files = [tmp_path / f"{k}.safetensors" for k in range(3)]
    expected = np.array(moves) @ np.array(moves).T
    assert displacement_gram(tmp_path / "base.safetensors", files) == pytest.approx(expected)
    save_file({"a": base["a"]}, tmp_path / "1.safetensors")
    with pytest.raises(MeritError, match=r"1\.safetensors: tensors differ .* missing \['b'\]"):
        displacement_gram(tmp_path / "base.safetensors", files)
    (tmp_path / "1.safetensors").write_bytes(b"cut")
    with pytest.raises(MeritError, match="truncated or not a safetensors file"):
        displacement_gram(tmp_path / "base.safetensors", files)


def test_a_brief_report_is_the_scores_and_a_summary(
    made: tuple[Experiment, Artifacts], reports: Path, tmp_path: Path
) -> None:
    brief = made[0].report.model_copy(update={"brief": True})
    build_report(made[0].model_copy(update={"report": brief}), made[1], tmp_path)
    assert sorted(path.name for path in (tmp_path / "synthetic").rglob("*")) == [
        "questions.csv",
        "summary.json",
    ]
    found = read_questions(tmp_path / "synthetic" / "questions.csv")
    assert found.answers["merit-3d"][1].tolist() == [[0.5] * 4, [1.0] * 4]
    whole = read_json(reports / "synthetic" / "summary.json")
    summary = read_json(tmp_path / "synthetic" / "summary.json")
    assert summary == {key: whole[key] for key in summary}


# --- bad input ----------------------------------------------------------------------------------


def test_missing_or_stale_inputs_are_named_and_nothing_is_overwritten(tmp_path: Path) -> None:
    experiment, artifacts = make(tmp_path / "artifacts")
    reports = tmp_path / "reports"
    table = reports / "synthetic" / "table02.csv"
    table.parent.mkdir(parents=True)
    table.write_text("before", encoding="utf-8")
    scores_file = artifacts.evaluation / "scores.json"
    scores = read_json(scores_file)

    def refused(match: str) -> None:
        with pytest.raises(MeritError, match=match):
            build_report(experiment, artifacts, reports)
        assert [p for p in reports.rglob("*") if p.is_file()] == [table]
        assert table.read_text(encoding="utf-8") == "before"

    missing = {name: row for name, row in scores["scores"].items() if name != "merit-3d-s2"}
    write_json(scores_file, scores | {"scores": missing})
    refused(r"scores\.json: key `scores`: .*'merit-3d-s2'")
    wrong = scores["scores"] | {"base": {"mini_scene": 30.0, "mini_describe": 50.0}}
    write_json(scores_file, scores | {"scores": wrong})
    refused(r"base\.jsonl: .*'mini_scene': .*25\.00")
    write_json(scores_file, scores)
    summary_file = artifacts.branch("merit-3d-s1-g2") / "summary.json"
    summary = read_json(summary_file)
    write_json(summary_file, summary | {"base_hash": "other"})
    refused(r"merit-3d-s1-g2/summary\.json: key `base_hash`: another base")
    write_json(summary_file, summary)
    (artifacts.partition / "similarity.npy").write_bytes(b"cut")
    refused(r"similarity\.npy: not readable")


def test_what_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MeritError, match=r"table99\.csv: .*table02_vision_flan_3b"):
        load_paper_table("table99", tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("experiments: [mini_text]\n", encoding="utf-8")
    with pytest.raises(MeritError, match=r"reports/mini_text"):
        index.run()


def test_sweeps_are_no_rows_and_a_row_that_diverged_is_named(tmp_path: Path) -> None:
    """joint-1ep in two seeds, and a sweep of it over one more learning rate."""
    sweep = {"methods": ["joint-1ep"], "seeds": [1, 2], "learning_rate": [0.1]}
    experiment = synthetic.experiment(
        seeds=(1, 2), methods=("base", "joint-1ep"), benchmarks=BENCHMARKS, sweeps={"rates": sweep}
    )
    artifacts = {}
    for diverged in ("joint-1ep-lr0.1-s2", "joint-1ep-s2"):
        artifacts[diverged] = Artifacts("synthetic", tmp_path / diverged)
        synthetic.write(tmp_path / diverged, experiment, num_questions=4, diverged=[diverged])
    found = artifacts["joint-1ep-lr0.1-s2"]
    stored = read_json(found.evaluation / "scores.json")
    assert list(stored["failures"]) == ["joint-1ep-lr0.1-s2"]  # no score, and that is no mistake
    results = load_results(experiment, found)
    assert results.methods == ("base", "joint-1ep")
    assert results.scores["joint-1ep"].tolist() == [
        [stored["scores"][f"joint-1ep-s{seed}"][b] for b in BENCHMARKS] for seed in (1, 2)
    ]
    with pytest.raises(MeritError, match=r"key `failures`: branch joint-1ep-s2: .* step 3"):
        load_results(experiment, artifacts["joint-1ep-s2"])


def test_every_rule_has_a_colour_of_its_own() -> None:
    more = {"random": {"groups": 2}, "soup": {"members": 2}, "merit": {"axes": 1}}
    more |= {"rawpca": {"axes": 1}, "kmeans": {"groups": 2}}
    more |= {"shrunk": {"source": "joint", "match": "merit"}}
    methods = [Method(partition=rule, **more.get(rule, {})) for rule in PARAMETERS]  # type: ignore[arg-type]
    assert len({method_color(method) for method in methods}) == len(methods)
    assert method_color(Method(partition="merit", axes=3)) in map(method_color, methods)
