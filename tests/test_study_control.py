"""The study `control`: every method at its best distance, and all of them at one distance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from merit.config import Experiment
from merit.errors import MeritError
from merit.eval.measuring.candidates import Candidate
from merit.eval.studies import Control
from merit.eval.studies.control import measure as control
from merit.io.artifacts import Artifacts
from tests import synthetic
from tests.evaluators import analytic
from tests.scored import Asked, save_model, scripted_scores

METHODS = ["base", "joint-1ep", "random-2", "random-8", "merit-1d", "merit-3d", "joint-shrunk"]
SETTINGS = Control(others=["merit-1d", "random-2"], seeds=[1], scales=[0.5, 1.5])

# method -> its distance from the base; every method moves along an axis of its own
DISTANCES = {"joint-1ep": 8.0, "random-8": 3.0, "merit-3d": 4.0, "merit-1d": 5.0, "random-2": 6.0}
# method -> c -> closed answers that are right, of 20; open-ended ones: four fewer
RIGHT = {
    "joint-1ep": {0.5: 18, 1.0: 6, 1.5: 5},
    "random-8": {0.5: 10, 1.0: 10, 1.5: 8, 4 / 3: 9},  # a tie
    "merit-3d": {0.5: 8, 1.0: 11, 1.5: 12},
    "merit-1d": {0.5: 8, 1.0: 9, 1.5: 4},
    "random-2": {0.5: 8, 1.0: 9, 1.5: 4},
}
BASE = 10
CURVATURE = [1.0, 2.0, 0.5, 1.0, 1.0]  # of the loss along each method's axis


def build(root: Path, benchmarks: Sequence[str]) -> tuple[Experiment, Artifacts]:
    experiment = synthetic.experiment(methods=METHODS, benchmarks=benchmarks)
    paths = Artifacts("synthetic", root)
    # loss and distance know only what is trained: the base itself is at 0 but for its last entry
    start = torch.zeros(synthetic.SHAPE)
    start[-1, -1] = 10.0
    save_model(paths.base, start)
    for i, (name, distance) in enumerate(DISTANCES.items()):
        theta = start.clone()
        theta.view(-1)[i] = distance
        save_model(paths.model(f"{name}-s1"), theta)
    return experiment, paths


def num_right(model: Candidate) -> int:
    """RIGHT at the c at which the model's own tensor stands."""
    if model.name == "base":
        return BASE
    name = model.name.split("-s1-c")[0]
    position = float(model.tensors()["w"].view(-1)[list(DISTANCES).index(name)])
    c = position / DISTANCES[name]
    return next(n for known, n in RIGHT[name].items() if abs(known - c) < 1e-6)


def run(
    root: Path, monkeypatch: pytest.MonkeyPatch, benchmarks: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Asked]]:
    """The result, and what was asked by split."""
    closed, other = benchmarks
    asked = scripted_scores(
        monkeypatch,
        control,
        lambda model: {closed: (num_right(model), 20), other: (num_right(model) - 4, 20)},
    )
    hessian = np.zeros(int(np.prod(synthetic.SHAPE)))
    hessian[: len(CURVATURE)] = CURVATURE
    monkeypatch.setattr(control, "open_evaluator", lambda *args: analytic(np.diag(hessian)))
    found = control.measure(*build(root, benchmarks), SETTINGS)
    return json.loads(json.dumps(found)), {one.split: one for one in asked}


Outcome = tuple[dict[str, Any], dict[str, Asked]]


@pytest.fixture
def outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    return run(tmp_path, monkeypatch, ["mini_mcq", "mini_describe"])


def test_every_point_is_scored_once(outcome: Outcome) -> None:
    _, asked = outcome
    assert list(asked) == ["validation", "test"]
    names = asked["validation"].names
    assert len(names) == len(set(names)) == 1 + 5 * 3
    assert sorted(asked["test"].names) == sorted(
        [
            "base",
            *("joint-1ep-s1-c0.5", "joint-1ep-s1-c1.0"),  # 0.5 is best and merit-3d's distance
            *("random-8-s1-c0.5", "random-8-s1-c1.0", f"random-8-s1-c{4 / 3}"),
            *("merit-3d-s1-c1.0", "merit-3d-s1-c1.5"),
            *("merit-1d-s1-c1.0", "random-2-s1-c1.0"),  # best as they are
        ]
    )


def test_every_method_at_its_best_distance(outcome: Outcome) -> None:
    result, _ = outcome
    assert result["summary"]["best"] == {
        "joint-1ep": 0.5, "random-8": 0.5, "merit-3d": 1.5, "merit-1d": 1.0, "random-2": 1.0,
    }  # fmt: skip
    assert result["summary"]["at_edge"] == ["joint-1ep", "random-8", "merit-3d"]
    rows = {row["method"]: row for row in result["tables"]["control_best"]}
    row = rows["joint-1ep-scaled"]
    assert (row["best_c"], row["distance"], row["distance_best"]) == (0.5, 8.0, 4.0)
    assert row["relative_displacement"] == pytest.approx(4 / 10)
    # (n + n - 4) / 40
    assert (row["validation"], row["validation_best"]) == (pytest.approx(20), pytest.approx(80))
    assert (row["avg"], row["avg_best"]) == (pytest.approx(20), pytest.approx(80))
    assert row["avg_best_low"] < 80 < row["avg_best_high"]
    assert (row["closed_best"], row["open_best"]) == (pytest.approx(90), pytest.approx(70))
    # what remains of the claims
    rows = {row["label"]: row for row in result["tables"]["control_differences"]}
    assert [label.split(" ")[0] for label in rows] == ["C1", "C2", "C2", "C3", "C4", "C4"]
    first = rows["C1 merit-3d minus joint-1ep"]
    assert (first["ours"], first["theirs"]) == ("merit-3d-scaled", "joint-1ep-scaled")
    assert (first["difference"], first["unscaled"]) == (pytest.approx(-30), pytest.approx(25))
    assert (first["verdict"], first["unscaled_verdict"]) == ("behind", "ahead")
    same = rows["C4 merit-1d minus random-2"]
    assert (same["difference"], same["verdict"]) == (0.0, "undecided")
    assert result["summary"]["num_questions"] == 40
    # every question at the best c
    assert [row[:2] for row in result["questions"]] == [[name, 1] for name in DISTANCES]
    joint = result["questions"][0][2]
    assert {name: sum(scores) for name, scores in joint.items()} == {
        "mini_mcq": 18,
        "mini_describe": 14,
    }


def test_all_at_one_distance(outcome: Outcome) -> None:
    result, _ = outcome
    rows = {row["model"]: row for row in result["tables"]["control_equal_distance"]}
    assert list(rows) == ["joint-1ep", "random-8", "merit-3d", "base"]
    for name in ("joint-1ep", "random-8", "merit-3d"):
        assert rows[name]["distance"] == pytest.approx(4.0)
        assert rows[name]["c"] == pytest.approx(4 / DISTANCES[name])
    # 1/2 h d^2 with d = 4
    losses = [row["loss"] for row in rows.values()]
    assert losses == pytest.approx([8.0, 16.0, 4.0, 0.0], rel=1e-6)
    averages = [row["avg"] for row in rows.values()]
    assert averages == pytest.approx([80, 35, 45, 40])  # 18, 9, 11 and 10 right
    assert rows["random-8"]["closed"] == pytest.approx(45)
    assert rows["random-8"]["open"] == pytest.approx(25)
    assert rows["joint-1ep"]["minus_method"] == pytest.approx(35)
    assert rows["merit-3d"]["minus_method"] is None
    assert rows["base"]["minus_method"] == pytest.approx(-5)
    path = [r for r in result["tables"]["control_path"] if r["method"] == "merit-3d"]
    assert [row["c"] for row in path] == [0.0, 0.5, 1.0, 1.5]
    assert [row["distance"] for row in path] == pytest.approx([0, 2, 4, 6])
    assert [row["loss"] for row in path] == pytest.approx([0, 1, 4, 9], rel=1e-6)
    assert [row["validation"] for row in path] == pytest.approx([40, 30, 45, 50])
    thin = [r for r in result["tables"]["control_path"] if r["method"] == "merit-1d"]
    assert [row["loss"] for row in thin] == [0, None, None, None]


def test_without_open_ended_benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = run(tmp_path, monkeypatch, ["mini_places", "mini_hops"])
    tables = result["tables"]
    assert {row["open"] for row in tables["control_path"]} == {None}
    assert {row["open_best"] for row in tables["control_best"]} == {None}
    row = tables["control_equal_distance"][0]
    assert (row["open"], row["open_low"], row["closed"]) == (None, None, pytest.approx(80))
    assert result["summary"]["equal_distance"]["joint-1ep"]["open"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"joint": "merit-3d"}, r"studies\.control\.joint`: found 'merit-3d'"),
        ({"random": "merit-1d"}, r"studies\.control\.random`: found 'merit-1d'"),
        ({"method": "random-8"}, r"studies\.control\.method`: 'random-8'"),
        ({"method": "joint-1ep"}, r"'joint-1ep' has 1 "),
        ({"others": ["merit-2d"]}, r"studies\.control\.others`: found 'merit-2d' with seed 1"),
    ],
)
def test_other_methods_are_refused(options: dict[str, Any], message: str) -> None:
    experiment = synthetic.experiment(methods=METHODS, benchmarks=["mini_mcq"])
    settings = Control.model_validate({"seeds": [1], **options})
    with pytest.raises(MeritError, match=message):
        control.chosen_models(experiment, settings)
