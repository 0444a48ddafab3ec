"""The report: hand-computed table values, unchanged published numbers, words, repeatable bytes."""

from __future__ import annotations

import csv
import io
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from jinja2 import UndefinedError
from safetensors.numpy import save_file

from merit.config import PARAMETERS, Experiment, Method
from merit.errors import MeritError
from merit.eval.commit import git_commit
from merit.eval.paper import PAPER_DIR, load_paper_table
from merit.eval.report import pages
from merit.eval.report.build import build_index, build_report
from merit.eval.report.claims import Case
from merit.eval.report.figures import FigureFile
from merit.eval.report.figures_partition import tsne
from merit.eval.report.figures_training import displacement_gram, load_trajectories
from merit.eval.report.headline import headline, regime_map
from merit.eval.report.intervals import (
    Comparison,
    compare,
    leave_one_out,
    opponents,
    resampled,
    table_cells,
)
from merit.eval.report.render import render
from merit.eval.report.study_sections import StudyResult
from merit.eval.report.style import method_color
from merit.eval.report.tables import caption
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
        root,
        seeds=(1, 2),
        methods=METHODS,
        benchmarks=BENCHMARKS,
        num_questions=4,
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
    readme.write_text(f"# Top\n\n{pages.BEGIN}\nold\n{pages.END}\n\nend\n", encoding="utf-8")
    reports = root / "reports"
    build_report(made[0], made[1], reports)
    build_index([made[0]], reports, readme)
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


def test_comparison_and_leave_one_out(made: tuple[Experiment, Artifacts]) -> None:
    results = load_results(*made)
    found = compare(results, "merit-3d", "joint-1ep")
    # merit-3d: (100 + 50)/2 and (100 + 100)/2; joint-1ep: 50 and 37.5
    assert found.difference == 87.5 - 43.75
    assert (found.seeds_ahead, found.num_seeds) == (2, 2)
    assert found.seeds_p_value == 0.25  # 1 / 2^2
    # paired differences of the seeds: 0, 0, 1, 1 and 0, 1, 1, 1 on mini_scene; 0 and 0.5 on
    # mini_describe, with sqrt(2)/2 of the seeds' difference to either side
    assert found.verdict == "better"
    parts = leave_one_out(results, "merit-3d", "joint-1ep")
    assert {name: part.difference for name, part in parts.items()} == {
        "mini_scene": 25.0,
        "mini_describe": 62.5,
    }
    same = compare(results, "random-8", "base")
    assert (same.difference, same.low, same.high, same.verdict) == (0, 0, 0, "undecided")
    assert (same.seeds_ahead, same.num_seeds) == (0, 2)  # the base stands against every seed


def test_words_say_what_intervals_are_over(
    made: tuple[Experiment, Artifacts], reports: Path
) -> None:
    results = load_results(*made)
    assert resampled(results) == "over seeds and questions together"
    single = dict.fromkeys(("random-8", "joint-shrunk"), (1,))
    some = replace(results, seeds=results.seeds | single)
    words = "over questions alone for random-8, joint-shrunk: one seed each"
    assert f"intervals by bootstrap over seeds and questions together ({words})." in caption(some)
    none = replace(results, seeds={m: () if m == "base" else (1,) for m in results.methods})
    assert resampled(none).startswith("over questions alone: no method has several seeds")
    section = (reports / "synthetic" / "section.md").read_text(encoding="utf-8")
    assert "2 benchmarks, paired bootstrap over seeds and questions together;" in section
    interval = read_json(reports / "synthetic" / "provenance.json")["interval"]
    assert (interval["resampled"], interval["questions_alone"]) == ("seeds and questions", [])


def test_opponents_of_a_merit_method(made: tuple[Experiment, Artifacts]) -> None:
    assert opponents(made[0], "merit-3d") == ["joint-1ep", "base", "random-8", "joint-shrunk"]


@pytest.mark.parametrize(
    ("low", "high", "says", "never"),
    [
        (0.1, 2.0, "**beats**", "not decided"),
        (-0.1, 2.0, "**not decided**", "beats"),
        (-2.0, -0.1, "**is worse than**", "beats"),
        (0.0, 2.0, "**not decided**", "beats"),
    ],
)
def test_words_claim_no_more_than_the_interval(
    low: float, high: float, says: str, never: str
) -> None:
    found = Comparison("merit-3d", "base", (low + high) / 2, low, high, 0.5, 2, 3, 0.25)
    sentence = pages.verdict_sentence(found)
    assert says in sentence
    assert never not in sentence
    assert f"{low:+.1f} to {high:+.1f}" in sentence
    assert "ahead on 2 of 3 seeds" in sentence


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


def test_published_numbers_are_unchanged(reports: Path) -> None:
    source = (PAPER_DIR / f"{PAPER_TABLE}.csv").read_text(encoding="utf-8")
    header, *lines = list(csv.reader(io.StringIO(source)))
    tidy = pd.read_csv(reports / "synthetic" / "table02_tidy.csv", dtype=str)
    paper = tidy[tidy["source"] == "paper"]
    assert paper["mean"].tolist() == [cell for line in lines for cell in line[1:]]
    assert (paper["scale"].str.contains("Qwen2.5-VL-3B")).all()
    markdown = (reports / "synthetic" / "table02.md").read_text(encoding="utf-8")
    assert markdown_table([header, *lines]) in markdown
    assert "another scale" in markdown


def test_latex() -> None:
    assert latex_escape(r"a_b & 5 % \ {x} ~ ^ # $ ±") == (
        r"a\_b \& 5 \% \textbackslash{} \{x\} \textasciitilde{} \textasciicircum{} \# \$ $\pm$"
    )
    table = latex_table([["method", "mini_mcq"], ["base", "1.0 ± 0.5"]], "50 % of **all**", "tab:x")
    assert table.splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{50 \% of all}",
        r"\label{tab:x}",
        r"\resizebox{\textwidth}{!}{%",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"method & mini\_mcq \\",
        r"\midrule",
        r"base & 1.0 $\pm$ 0.5 \\",
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    assert table.endswith("\n")


def test_markdown_tables_are_unpadded_and_escape_bars() -> None:
    table = markdown_table([["method", "p", "p"], ["a|b", "1.0", ""], ["merit-3d", "10", "x"]])
    head, marks, *rows = table.splitlines()
    assert head == "| method | p | p |"
    assert re.fullmatch(r"\|:-+\|-+:\|-+:\|", marks)
    assert rows == [r"| a\|b | 1.0 | |", "| merit-3d | 10 | x |"]
    assert table.endswith("|\n")


def test_a_template_refuses_a_value_that_is_not_given() -> None:
    values = {"scale": "7B", "same": False}
    assert render("paper_caption.md.j2", **values).startswith("Published numbers, **another")
    with pytest.raises(UndefinedError, match="'scale' is undefined"):
        render("paper_caption.md.j2", same=True)


def test_html_is_escaped_and_markdown_is_not() -> None:
    content = {"tasks": ["</script>"]}
    out = render("explorer.html.j2", name="a & b", content=content)
    assert 'id="a &amp; b-task"' in out
    assert r'{"tasks":["\u003c/script\u003e"]}' in out
    values = dict.fromkeys(("ours", "beside", "paper_caption", "published"), "")
    values["caption"] = "a & b"
    assert render("table.md.j2", title="R&D", **values) == "# R&D\n\na & b\n"


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
    assert readme.startswith(f"# Top\n\n{pages.BEGIN}\n### Synthetic")
    assert readme.endswith(f"{pages.END}\n\nend\n")
    assert "\nold\n" not in readme
    assert "- **Precondition**: merge-readiness was not measured here." in readme
    page = reports / "README.md"
    differences = "**merit-3d** **beats** **joint-1ep** by 43.8 points"
    assert differences in page.read_text(encoding="utf-8")
    assert differences not in readme  # the top says it in five lines
    for file in (reports.parent / "README.md", page):
        text = file.read_text(encoding="utf-8")
        links = [part.split(")")[0] for part in text.split("](")[1:]]
        assert len(links) >= 3
        assert [link for link in links if not (file.parent / link).is_file()] == []
    text = page.read_text(encoding="utf-8")
    for figure in ("benchmarks", "average", "similarity", "pca", "tsne", "trajectories"):
        assert f"(synthetic/figures/{figure}.png)" in text
    assert "(synthetic/figures/training.png)" in text
    assert "Leave one benchmark out" in text
    assert "| seeds | joint-1ep 1, 2; random-8 1, 2; merit-3d 1, 2; joint-shrunk 1, 2 |" in text


def study(name: str, summary: dict[str, Any], figures: tuple[str, ...] = ()) -> StudyResult:
    path = f"../studies/synthetic/{name}"
    drawn = f"studies/{name}/figures"
    return StudyResult(name, name, "", summary, {}, figures, path, drawn, "b" * 64, "c" * 40)


def test_the_headline_in_full(made: tuple[Experiment, Artifacts]) -> None:
    best = {"joint-1ep": 0.25, "random-8": 0.5, "merit-3d": 1.0}
    control = {
        **{"method": "merit-3d", "joint": "joint-1ep", "random": "random-8", "best": best},
        "differences": {
            "C1 merit-3d minus joint-1ep": [1.25, -0.5, 3.0],
            "C2 joint-1ep minus base": [9.0, 8.0, 10.0],
            "C4 merit-3d minus random-8": [-2.0, -3.0, -1.0],
        },
    }
    studies = {"control": study("control", control), "regime": study("regime", {}, ("regime",))}
    case = Case(made[0], load_results(*made), studies, "b" * 64)
    lines = headline(case).splitlines()
    assert [line[:22] for line in lines] == [
        "- **Precondition**: me",
        "- **Splitting by confl",
        "- **Against joint trai",
        "- **The control: joint",
        "- **What nobody knows ",
    ]
    assert lines[1].endswith(
        ": not testable here (the run lacks MERIT and random groups at two or more equal K)."
    )
    assert lines[2].startswith("- **Against joint training**: holds at mini scale (merit-3d − ")
    assert lines[3].endswith(
        ". With every method at its own best distance, chosen on validation (factors: joint-1ep "
        "0.25, random-8 0.5, merit-3d 1): C1 merit-3d minus joint-1ep +1.2 [-0.5, +3.0]; C4 "
        "merit-3d minus random-8 -2.0 [-3.0, -1.0]."
    )
    assert regime_map(case) == "studies/regime/figures/regime.png"
    assert regime_map(replace(case, studies={})) == ""


def test_the_map_takes_the_place_of_the_average() -> None:
    average = FigureFile("average", "The average.")
    values = {"headline": "- one", "claims_line": "Two.", "ours": "| a |", "caption": "Three."}
    values |= {"scale": "7B", "average": average, "regime": "", "published": "x", "same": False}
    without = render("summary.md.j2", **values)
    assert without == (
        "- one\n\nTwo.\n\n| a |\n\nThree. The last column is the paper's (7B): another scale.\n\n"
        "![The average.](figures/average.png)\n\nThe average. [PDF](figures/average.pdf)\n"
    )
    summary = render("summary.md.j2", **values | {"regime": "up/regime.png"})
    assert "![When does splitting help? Average" in summary
    assert "weights.](up/regime.png)\n\nWhen does splitting help? Average" in summary
    assert "average.png" not in summary


def test_a_readme_without_markers_is_refused(reports: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# Top\n", encoding="utf-8")
    with pytest.raises(MeritError, match="results:begin"):
        pages.write_pages([("synthetic", "Synthetic")], [], reports, readme)
    assert readme.read_text(encoding="utf-8") == "# Top\n"


def test_the_top_readme_is_short(reports: Path, tmp_path: Path) -> None:
    """The first experiment's table, the others' sentences, a full study only in reports/."""
    copies = tmp_path / "reports"
    for name in ("first", "first-full", "second"):
        shutil.copytree(reports / "synthetic", copies / name)
    readme = tmp_path / "README.md"
    readme.write_text(f"{pages.BEGIN}\n{pages.END}\n", encoding="utf-8")
    experiments = [("first", "One"), ("first-full", "One, all"), ("second", "Two")]
    pages.write_pages(experiments, ["first-full"], copies, readme)
    text = readme.read_text(encoding="utf-8")
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == ["### One (`first`)", "### Two (`second`)"]
    first, second = text.split("### Two")
    assert "| method |" in first
    assert "first/figures/average.png" in first
    assert "| method |" not in second
    assert "**merit-3d** **beats** **joint-1ep** by 43.8 points" in second
    assert "(reports/second/claims.md)" in second
    assert "those of every row and study under `first-full`." in second
    whole = (copies / "README.md").read_text(encoding="utf-8")
    assert [whole.count(f"## {title} (`") for title in ("One", "One, all", "Two")] == [1, 1, 1]


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
    assert not any(b"CreationDate" in first[p] for p in first if p.suffix == ".pdf")


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


def test_trajectories_keep_lengths_and_the_average(made: tuple[Experiment, Artifacts]) -> None:
    view = load_trajectories(made[0], made[1], "merit-3d")
    merge = read_json(made[1].model("merit-3d-s1") / "merge.json")
    assert view.merged == pytest.approx(np.array(merge["merge_weights"]) @ view.branches)
    for k, point in enumerate(view.branches):
        summary = read_json(made[1].branch(f"merit-3d-s1-g{k}") / "summary.json")
        assert np.linalg.norm(point) <= summary["displacement"] + 1e-5  # a projection
    assert view.share[0] >= view.share[1] > 0
    assert view.joint_method == "joint-1ep"


def test_tsne_is_repeatable_and_keeps_neighbours() -> None:
    angles = np.concatenate([np.linspace(0, 0.2, 6), np.linspace(1.5, 1.7, 6)])
    similarity = np.cos(angles[:, None] - angles[None, :])
    points = tsne(similarity)
    assert np.array_equal(points, tsne(similarity))
    distance = np.linalg.norm(points[:, None] - points[None, :], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert ((distance.argmin(axis=1) < 6) == (np.arange(12) < 6)).all()


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
    refused(r"scores\.json: key `scores`: no model 'merit-3d-s2'")
    wrong = scores["scores"] | {"base": {"mini_scene": 30.0, "mini_describe": 50.0}}
    write_json(scores_file, scores | {"scores": wrong})
    refused(r"base\.jsonl: benchmark 'mini_scene': the answers average 25.00")
    write_json(scores_file, scores)
    predictions = artifacts.evaluation / "predictions"
    shutil.move(predictions / "base.jsonl", predictions / "kept")
    refused(r"base\.jsonl: file not found")
    shutil.move(predictions / "kept", predictions / "base.jsonl")
    summary_file = artifacts.branch("merit-3d-s1-g2") / "summary.json"
    summary = read_json(summary_file)
    write_json(summary_file, summary | {"base_hash": "other"})
    refused(r"merit-3d-s1-g2/summary\.json: key `base_hash`: another base")
    write_json(summary_file, summary)
    (artifacts.partition / "similarity.npy").write_bytes(b"cut")
    refused(r"similarity\.npy: not readable")


def with_sweep(root: Path, diverged: str) -> tuple[Experiment, Artifacts]:
    """joint-1ep in two seeds, and a sweep of it over one more learning rate."""
    sweep = {"methods": ["joint-1ep"], "seeds": [1, 2], "learning_rate": [0.1]}
    methods = ("base", "joint-1ep")
    experiment = synthetic.experiment(
        seeds=(1, 2), methods=methods, benchmarks=BENCHMARKS, sweeps={"rates": sweep}
    )
    synthetic.write(root, experiment, num_questions=4, diverged=[diverged])
    return experiment, Artifacts("synthetic", root)


def test_models_of_sweeps_are_no_rows(tmp_path: Path) -> None:
    experiment, artifacts = with_sweep(tmp_path, diverged="joint-1ep-lr0.1-s2")
    stored = read_json(artifacts.evaluation / "scores.json")
    assert "joint-1ep-lr0.1-s1" in stored["scores"]
    assert list(stored["failures"]) == ["joint-1ep-lr0.1-s2"]  # no score, and that is no mistake
    results = load_results(experiment, artifacts)
    assert results.methods == ("base", "joint-1ep")
    assert results.scores["joint-1ep"].tolist() == [
        [stored["scores"][f"joint-1ep-s{seed}"][b] for b in BENCHMARKS] for seed in (1, 2)
    ]


def test_a_row_that_diverged_is_named(tmp_path: Path) -> None:
    experiment, artifacts = with_sweep(tmp_path, diverged="joint-1ep-s2")
    with pytest.raises(
        MeritError,
        match=r"scores\.json: key `failures`: branch joint-1ep-s2: the loss is nan at step 3; so",
    ):
        load_results(experiment, artifacts)


def test_the_index_names_an_experiment_without_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("experiments: [mini_text]\n", encoding="utf-8")
    with pytest.raises(MeritError, match=r"reports/mini_text\.json: mini_text has no report"):
        index.run()


def test_the_index_keeps_what_was_run_once(
    made: tuple[Experiment, Artifacts], reports: Path, tmp_path: Path
) -> None:
    """A report of an experiment that params.yaml does not name; README has the default's alone."""
    copies = tmp_path / "reports"
    for name in ("synthetic", "other"):
        shutil.copytree(reports / "synthetic", copies / name)
    readme = tmp_path / "README.md"
    readme.write_text(f"{pages.BEGIN}\n{pages.END}\n", encoding="utf-8")
    own = made[0].report
    other, absent = (
        made[0].model_copy(
            update={"name": name, "report": own.model_copy(update={"title": name.title()})}
        )
        for name in ("other", "absent")
    )
    build_index([made[0]], copies, readme, others=[absent, other])
    page = (copies / "README.md").read_text(encoding="utf-8")
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        "## Synthetic (`synthetic`)",
        "## Other (run once, not part of the default) (`other`)",
    ]
    html = (copies / "index.html").read_text(encoding="utf-8")
    assert "Other (run once, not part of the default) <code>other</code>" in html
    top = readme.read_text(encoding="utf-8")
    assert "(`synthetic`)" in top
    assert "`other`" not in top


def test_the_index_looks_for_reports_of_other_experiments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("once", "twice_full"):
        (tmp_path / "reports" / folder).mkdir(parents=True)
        (tmp_path / "reports" / folder / "section.md").write_text("x", encoding="utf-8")
    found = [name for name in ("once", "twice", "never") if index.has_report(name)]
    assert found == ["once", "twice"]


def test_an_unknown_paper_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeritError, match=r"table99\.csv: no such table.*table02_vision_flan_3b"):
        load_paper_table("table99", tmp_path)


def test_every_way_of_assigning_tasks_has_a_colour_of_its_own() -> None:
    methods = [
        Method(partition="base"),
        Method(partition="joint"),
        Method(partition="random", groups=2),
        Method(partition="soup", members=2),
        Method(partition="merit", axes=1),
        Method(partition="rawpca", axes=1),
        Method(partition="kmeans", groups=2),
        Method(partition="conflict"),
        Method(partition="shrunk", source="joint", match="merit"),
    ]
    assert {method.partition for method in methods} == set(PARAMETERS)
    assert len({method_color(method) for method in methods}) == len(methods)
    assert method_color(methods[4]) == method_color(Method(partition="merit", axes=3))


def test_a_lock_that_a_pipeline_writes_leaves_the_commit_clean(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = (
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@localhost",
            "-c",
            "commit.gpgsign=false",
        )
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert git_commit(tmp_path) == "unknown"
    git("init", "--quiet")
    experiment = tmp_path / "experiments/mini"
    experiment.mkdir(parents=True)
    (experiment / "plan.yaml").write_text("x: mini\n")
    git("add", ".")
    git("commit", "--quiet", "-m", "one")
    (experiment / "dvc.lock").write_text("stages: {}\n")
    assert git_commit(tmp_path) == git("rev-parse", "HEAD")
    (experiment / "plan.yaml").write_text("x: other\n")
    assert git_commit(tmp_path) == git("rev-parse", "HEAD") + "-dirty"
