"""Scores of every question as a file, and differences pooled over bases: values by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from merit.config import Experiment, load_experiment
from merit.errors import MeritError
from merit.eval import statistics as s
from merit.eval.questions import (
    from_models,
    models_of,
    packed,
    read_questions,
    unpacked,
    write_questions,
)
from merit.eval.report.bases import load_bases, load_best, other_bases
from merit.eval.report.claims import Case
from merit.eval.report.comparison import contrast
from merit.eval.report.index import forest_rows, write_bases
from merit.eval.report.ledger import ledger
from merit.eval.results import Results
from merit.io.artifacts import write_json
from tests import synthetic

SCORES = [
    ("base", None, {"mini_scene": [1.0, 0.0, 1.0], "mini_describe": [1 / 3, 1.0, 6 / 7]}),
    ("merit-1d", 1, {"mini_scene": [0.0, 0.0, 0.0], "mini_describe": [0.0, 1.0, 0.0]}),
    ("merit-1d", 2, {"mini_scene": [1.0, 1.0, 1.0], "mini_describe": [0.1234567, 5.0, 0.0]}),
]


# --- the table ----------------------------------------------------------------------------------


def test_scores_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "questions.csv"
    write_questions(path, SCORES)
    assert path.read_text(encoding="utf-8").splitlines() == [
        "method,seed,benchmark,scores",
        "base,,mini_scene,101",
        "base,,mini_describe,1/3 1 6/7",
        "merit-1d,1,mini_scene,000",
        "merit-1d,1,mini_describe,010",
        "merit-1d,2,mini_scene,111",
        "merit-1d,2,mini_describe,0.1234567 5.0 0",
    ]
    found = read_questions(path)
    assert found.benchmarks == ("mini_scene", "mini_describe")
    assert found.open_ended == ("mini_describe",)
    assert found.seeds == {"base": (), "merit-1d": (1, 2)}
    assert found.answers["base"][1].tolist() == [[1 / 3, 1.0, 6 / 7]]
    assert found.scores["merit-1d"][:, 0].tolist() == [0.0, 100.0]
    again = [(m, s, {n: list(v) for n, v in scores.items()}) for m, s, scores in models_of(found)]
    assert again == SCORES


@pytest.mark.parametrize("values", [[11.0], [1.0], [0.0, 1.0], [100 / 19, 0.05], [2.0, 1.0]])
def test_no_score_is_mistaken_for_digits(values: list[float]) -> None:
    assert unpacked(packed(values)).tolist() == values


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("method,seed", "method,need", "line 1: expected the columns"),
        ("1/3 1 6/7", "1/3 1 6/x", "line 3: "),
        ("merit-1d,1,mini_scene,000", "merit-1d,one,mini_scene,000", "line 4: "),
        ("base,,mini_scene,101", "base,,mini_scene,1011", "different questions"),
        ("base,,mini_scene,101\n", "", "different questions"),
    ],
)
def test_a_table_that_does_not_fit_is_named(tmp_path: Path, old: str, new: str, named: str) -> None:
    path = tmp_path / "questions.csv"
    write_questions(path, SCORES)
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(MeritError, match=rf"questions\.csv.*{named}"):
        read_questions(path)
    with pytest.raises(MeritError, match=r"none\.csv: file not found"):
        read_questions(tmp_path / "none.csv")


# --- over bases -----------------------------------------------------------------------------------


def term(values: list[float], num: int = 20) -> s.Scores:
    """One row per seed, all questions alike: no noise of questions."""
    return {"mini_scene": np.repeat(np.array(values)[:, None], num, axis=1)}


def pooled(*bases: s.Terms) -> s.Difference:
    return s.contrast_bootstrap(*bases)[1]


def test_bases_that_agree_are_one_base() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = ({"mini_scene": rng.integers(0, 2, (3, 40))} for _ in range(2))
    one = [(1.0, ours), (-1.0, theirs)]
    found = pooled(one, one, one)
    assert found[:3] == pytest.approx(pooled(one)[:3])
    assert (found.num_bases, pooled(one).num_bases) == (3, 1)


def test_two_bases_by_hand() -> None:
    # differences 0.1 and 0.3: counts (0, 2), (1, 1), (2, 0) move the mean by 0.1 sqrt(2)
    bases = [[(1.0, term([0.5 + d] * 2)), (-1.0, term([0.5] * 2))] for d in (0.1, 0.3)]
    half = 0.1 * math.sqrt(2)
    found = pooled(*bases)
    assert found[:3] == pytest.approx((0.2, 0.2 - half, 0.2 + half))
    assert [pooled(base).low for base in bases] == pytest.approx([0.1, 0.3])
    assert found.direction == "ahead"
    wide = [[(1.0, term([0.5 + d])), (-1.0, term([0.5]))] for d in (-0.1, 0.4)]
    assert pooled(*wide).direction == "undecided"


def test_variances_of_bases_seeds_and_questions_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # additive scores; a seed is the same draw on every base
    rng = np.random.default_rng(3)
    effects = [rng.uniform(-0.1, 0.1, 4), rng.uniform(-0.1, 0.1, 3), rng.uniform(0.3, 0.7, 50)]
    bases, seeds, questions = effects
    scores = [{"a": b + seeds[:, None] + questions[None, :]} for b in bases]
    monkeypatch.setattr(s, "_percentile", lambda draws: s.Interval(draws.std(), 0.0))
    found = s.contrast_bootstrap(*([(1.0, x)] for x in scores), num_resamples=20_000)[1]
    expected = np.var(bases, ddof=1) / 4 + np.var(seeds, ddof=1) / 3 + np.var(questions) / 50
    assert found.low == pytest.approx(math.sqrt(expected), rel=0.03)


def test_bases_need_the_same_seeds_and_questions() -> None:
    two, three = ([(1.0, term([0.5] * n))] for n in (2, 3))
    with pytest.raises(MeritError, match="different seeds"):
        pooled(two, three)
    with pytest.raises(MeritError, match="not the same questions"):
        pooled(two, [(1.0, term([0.5] * 2, num=7))])


# --- a family -------------------------------------------------------------------------------------

MERIT = {"a": 0.75, "a_2": 0.875, "a_3": 0.625}  # joint training has 0.5 everywhere


def results(merit: float, seeds: tuple[int, ...] = (1, 2)) -> Results:
    scores = {"base": 0.25, "joint-1ep": 0.5, "merit-3d": merit}
    of = {m: (None,) if m == "base" else seeds for m in scores}
    return from_models((m, x, {"mini_scene": [v] * 8}) for m, v in scores.items() for x in of[m])


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Three bases: YAMLs, and the tables and summaries that their reports left."""
    monkeypatch.chdir(tmp_path)
    experiment = synthetic.experiment(
        "a", seeds=(1, 2), methods=("base", "joint-1ep", "merit-3d"), benchmarks=["mini_scene"]
    )
    values = experiment.model_dump(mode="json", exclude_unset=True, exclude={"name"})
    values["report"] |= {"family": "a"}
    Path("experiments").mkdir()
    for name, merit in MERIT.items():
        brief = {"report": values["report"] | {"brief": name != "a"}}
        Path("experiments", f"{name}.yaml").write_text(yaml.safe_dump(values | brief))
        write_questions(Path("reports", name, "questions.csv"), models_of(results(merit)))
        write_json(Path("reports", name, "summary.json"), {"base_hash": name, "merge_ready": True})
    return load_experiment("a")


def test_claims_are_decided_over_the_bases(family: Experiment) -> None:
    others = other_bases(family)
    assert others == ["a_2", "a_3"]
    assert other_bases(load_experiment("a_2")) == []
    bases = load_bases(family, results(MERIT["a"]), "a", Path("reports"), others)
    records = {r["id"]: r for r in ledger(Case(family, bases, {}, "a"))}
    found = records["C1"]  # 25, 37.5, 12.5 points: sample variance 156.25
    # 2.5 % of all draws: one base three times, 25 -+ 12.5 sqrt(3/2)
    half = 12.5 * math.sqrt(1.5)
    assert [found[key] for key in ("value", "low", "high", "num_bases")] == pytest.approx(
        [25.0, 25.0 - half, 25.0 + half, 3]
    )
    assert found["verdict"] == "holds"
    assert {b: one["links"][0]["value"] for b, one in found["by_base"].items()} == {
        "a": 25.0, "a_2": 37.5, "a_3": 12.5,
    }  # fmt: skip
    assert records["C22"]["verdict"] == "not tested"  # no base has the study `control`
    rows = forest_rows(found)
    assert [row["base"] for row in rows] == ["a", "a_2", "a_3", "all"]
    assert [row["num_bases"] for row in rows] == [1, 1, 1, 3]


def test_at_the_best_distance_the_study_s_scores_decide(family: Experiment) -> None:
    for name, merit in {"a": 0.5, "a_2": 0.25}.items():
        table = Path("reports/studies", name, "control/questions.csv")
        write_questions(table, models_of(results(merit)))
    asked = family.model_copy(update={"studies": {"control": {}}})
    best = load_best(asked, Path("reports"), ["a_2", "a_3"])
    assert list(best) == ["a", "a_2"]
    assert load_best(family, Path("reports"), ["a_2"]) == {}
    case = Case(asked, {"a": results(0.75)}, {}, "a", best)
    found = {r["id"]: r for r in ledger(case)}
    assert (found["C1"]["value"], found["C1"]["num_bases"]) == (25.0, 1)
    assert (found["C22"]["value"], found["C22"]["num_bases"]) == (-12.5, 2)


def test_a_base_counts_where_it_has_the_methods_and_seeds() -> None:
    own, fewer, other = results(0.75, (1, 2, 3)), results(0.625, (1, 2)), results(0.5, (7, 8))
    found = contrast([own, fewer, other], {"merit-3d": 1.0, "joint-1ep": -1.0})
    assert (found.difference, found.num_bases) == (pytest.approx(18.75), 2)
    found = contrast([own, fewer, other], {"base": 1.0})
    assert (found.difference, found.num_bases) == (25.0, 3)


def test_bases_that_cannot_be_compared_are_named(family: Experiment) -> None:
    with pytest.raises(MeritError, match=r"a_3/summary\.json: key `base_hash`: the base of a;"):
        load_bases(family, results(0.5), "a_3", Path("reports"), ["a_2", "a_3"])
    path = Path("experiments/a_2.yaml")
    path.write_text(path.read_text().replace("num_images: 50", "num_images: 51"))
    with pytest.raises(MeritError, match=r"a_2\.yaml: key `data`"):
        other_bases(family)


@pytest.mark.parametrize("num", [1, 3])
def test_the_pages_over_bases(family: Experiment, num: int) -> None:
    bases = {name: results(merit) for name, merit in list(MERIT.items())[:num]}
    records = ledger(Case(family, bases, {}, "a"))
    summary = {**{"title": "A", "bases": list(bases), "records": {r["id"]: r for r in records}}}
    write_bases({"a": summary}, Path("reports"))
    folder = Path("reports/bases")
    rows = pd.read_csv(folder / "differences.csv")
    assert len(rows) == (2 if num == 1 else 2 * 4)  # C1 and C23: joint training, the base
    assert set(rows["base"]) == {*bases, *(["all"] if num > 1 else [])}
    verdicts = pd.read_csv(folder / "verdicts.csv").set_index("claim")
    assert verdicts["bases_holds"].to_dict() == {"C1": num, "C23": num}
    assert f"Merge-ready: {num} of {num}." in (folder / "README.md").read_text()
    assert ("One base only" in (folder / "README.md").read_text()) == (num == 1)
    assert (folder / "figures/a.png").is_file()
