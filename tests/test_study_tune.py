"""The study `tune`: the rule of docs/regime.md on a grid whose numbers the test decides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from merit.config import Experiment
from merit.config.measurements import Readiness, Thresholds, Tune
from merit.errors import MeritError
from merit.eval.measuring.candidates import Candidate
from merit.eval.report.study_sections import sentences
from merit.eval.studies.tune import draw as drawing
from merit.eval.studies.tune import measure as tune
from merit.io.artifacts import Artifacts, write_json
from tests import synthetic
from tests.meters import toy, vector
from tests.scored import Asked, Right, answers, save_model, scripted_scores

METHODS = ["base", "joint-1ep", "random-2", "merit-1d"]
NAMES = ["mini_scene", "mini_describe"]  # one of choice, one open-ended
# the experiment's own settings are rate 1e-3 and batch 4
SWEEP = {"methods": ["joint-1ep", "random-2"], "seeds": [1, 2], "learning_rate": [5e-4, 1e-3]}
OWN, HALF = "lr 0.001, batch 4", "lr 0.0005, batch 4"

# a model's place and those of its branches; the base is at (3, 4), of norm 5
SPLITS = [[(0.0, 0.0), (1.0, 0.0), (-1.0, 0.0)], [(0.0, 1.0), (0.0, 2.0), (0.0, 0.0)]]
PLACES = {
    "joint-1ep-s1": [(3.0, 3.6)],
    "joint-1ep-s2": [(3.0, 3.8)],
    "random-2-s1": SPLITS[0],
    "random-2-s2": SPLITS[1],
    "joint-1ep-lr0.0005-s1": [(3.0, 2.0)],
    "joint-1ep-lr0.0005-s2": [(3.0, 3.0)],
    "random-2-lr0.0005-s1": SPLITS[0],
    "random-2-lr0.0005-s2": SPLITS[1],
}
# right answers of 10 to the questions of choice and to the open-ended ones
RIGHT = {
    "joint-1ep-s1": (3, 3),
    "joint-1ep-s2": (3, 3),
    "random-2-s1": (3, 3),
    "random-2-s2": (3, 3),
    "joint-1ep-lr0.0005-s1": (4, 3),
    "joint-1ep-lr0.0005-s2": (6, 3),
    "random-2-lr0.0005-s1": (7, 2),
    "random-2-lr0.0005-s2": (3, 4),
}


def settings(limits: Mapping[str, float], **more: Any) -> Experiment:
    readiness = {"random": "random-2", "thresholds": limits}
    more = {"sweeps": {"tune": SWEEP}, "studies": {"readiness": readiness, "tune": {}}, **more}
    return synthetic.experiment(seeds=(1, 2), methods=METHODS, benchmarks=NAMES, **more)


@pytest.fixture
def paths(tmp_path: Path) -> Artifacts:
    """A pipeline that has run joint training and random splits at two rates."""
    found = Artifacts("synthetic", tmp_path)
    save_model(found.base, vector(3.0, 4.0))
    for name, (whole, *branches) in PLACES.items():
        save_model(found.model(name), vector(*whole))
        write_json(found.model(name) / "merge.json", {"failure": None})
        for k, place in enumerate(branches):
            save_model(found.branch(f"{name}-g{k}"), vector(*place))
    return found


def diverge(paths: Artifacts, model: str) -> None:
    (paths.model(model) / "model.safetensors").unlink()
    write_json(paths.model(model) / "merge.json", {"failure": "the loss is nan"})


# --- the rule -----------------------------------------------------------------------------------


def row(average: float, ready: bool = True) -> dict[str, Any]:
    return {"joint_avg": average, "merge_ready": ready}


def test_of_the_merge_ready_points_joints_best_average_is_chosen() -> None:
    rows = [row(35.0), row(45.0), row(40.0), row(85.0, ready=False)]
    assert tune.choose(rows) is rows[1]
    assert tune.choose(rows[2:]) is rows[2]
    assert tune.choose(rows[3:]) is None
    assert tune.choose([]) is None


# --- one point ----------------------------------------------------------------------------------


def half_rate(
    paths: Artifacts, limits: Mapping[str, float], **right: tuple[int, int]
) -> dict[str, Any]:
    """The row at rate 5e-4, of L(theta) = |theta|^2 / 2; `right` of the first random split."""
    experiment = settings(limits)
    known = RIGHT | {f"random-2-lr0.0005-{seed}": counts for seed, counts in right.items()}
    scores = {name: answers(asked(counts)) for name, counts in known.items()}
    models = {
        kind: [n for n in PLACES if n.startswith(kind) and "-lr0.0005-" in n]
        for kind in ("joint", "random")
    }
    readiness = Readiness(random="random-2", thresholds=Thresholds.model_validate(limits))
    return tune.grid_row(experiment, paths, toy(0.0, 0.0), readiness, HALF, models, scores)


def asked(right: tuple[int, int]) -> dict[str, tuple[int, int]]:
    return {name: (count, 10) for name, count in zip(NAMES, right, strict=True)}


def test_a_point_by_hand(paths: Artifacts) -> None:
    found = half_rate(paths, {})
    low, high = found.pop("random_minus_joint_low"), found.pop("random_minus_joint_high")
    assert low < 0.0 < high
    assert found == pytest.approx(
        {
            "setting": HALF,
            "joint_displacement": 2 / 5,  # of the farther one
            "loss_base": 12.5,
            "loss_joint": (6.5 + 9.0) / 2,
            "loss_branches_min": 0.0,
            "loss_branches_max": 2.0,
            "loss_merged": (0.0 + 0.5) / 2,
            "barrier_share": 0.0,
            "worst_branch_over_base": 2.0 / 12.5,
            "random_minus_joint": 0.0,  # both have 40 %
            "merge_ready": False,  # joint training moves too far
            "joint_avg": 40.0,
            "joint_mini_scene": 50.0,
            "joint_mini_describe": 30.0,
        }
    )


def test_one_condition_is_enough_to_rule_a_point_out(paths: Artifacts) -> None:
    assert half_rate(paths, {"joint_displacement": 0.4})["merge_ready"] is True
    assert half_rate(paths, {"joint_displacement": 0.39})["merge_ready"] is False
    found = half_rate(paths, {"joint_displacement": 0.4}, s1=(2, 2))  # 27.5 beside 40
    assert found["random_minus_joint"] == pytest.approx(-12.5)
    assert found["merge_ready"] is False
    patient = {"joint_displacement": 0.4, "random_behind": 12.6}
    assert half_rate(paths, patient, s1=(2, 2))["merge_ready"] is True


# --- the whole grid -----------------------------------------------------------------------------


def run(
    paths: Artifacts, monkeypatch: pytest.MonkeyPatch, limits: Mapping[str, float]
) -> tuple[dict[str, Any], list[Asked]]:
    """The result, and what was asked."""

    def right(candidate: Candidate) -> Right:
        assert candidate.tensors()["w"].tolist() == pytest.approx(PLACES[candidate.name][0])
        return asked(RIGHT[candidate.name])

    calls = scripted_scores(monkeypatch, tune, right)
    monkeypatch.setattr(tune, "open_meter", lambda *arguments: toy(0.0, 0.0))
    return json.loads(json.dumps(tune.measure(settings(limits), paths, Tune()))), calls


def test_the_grid_is_that_of_the_sweep(
    paths: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, calls = run(paths, monkeypatch, {})
    assert [one.split for one in calls] == ["validation"]  # never the test split
    # every model once, at the experiment's own rate the experiment's own; none of MERIT
    assert sorted(calls[0].names) == sorted(PLACES)
    rows = {row["setting"]: row for row in result["tables"]["tune"]}
    assert list(rows) == [HALF, OWN]
    assert [row["merge_ready"] for row in rows.values()] == [False, True]
    assert [row["joint_avg"] for row in rows.values()] == pytest.approx([40.0, 30.0])
    assert rows[OWN]["joint_displacement"] == pytest.approx(0.4 / 5)
    searched = {"joint": "joint-1ep", "random": "random-2", "num_examples": 640}
    assert result["summary"] == {"chosen": OWN, "num_points": 2, "seeds": [1, 2]} | searched
    assert sentences("tune", result) == (
        "2 settings; joint-1ep and random-2 with seeds 1, 2 at each, validation questions and "
        f"losses on 640 examples of the mixture. The rule's choice: {OWN}."
    )
    drawing.draw(result, tmp_path / "drawn")
    files = {path.name for path in (tmp_path / "drawn" / "figures").iterdir()}
    assert files == {"tune.png", "tune.pdf"}


@pytest.mark.parametrize(
    ("displacement", "chosen"), [(0.5, HALF), (0.1, OWN), (0.01, "none is merge-ready")]
)
def test_the_choice_follows_the_thresholds(
    displacement: float, chosen: str, paths: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = run(paths, monkeypatch, {"joint_displacement": displacement})
    assert result["summary"]["chosen"] == chosen


def test_a_point_where_a_training_diverged_is_left_out(
    paths: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverge(paths, "random-2-lr0.0005-s2")
    result, calls = run(paths, monkeypatch, {"joint_displacement": 0.4})
    assert [row["setting"] for row in result["tables"]["tune"]] == [OWN]
    assert not any("lr0.0005" in name for name in calls[0].names)
    diverge(paths, "joint-1ep-s1")
    with pytest.raises(MeritError, match=r"sweeps\.tune\.learning_rate`: at no point of the grid"):
        run(paths, monkeypatch, {})


@pytest.mark.parametrize(
    ("more", "missing"),
    [({"sweeps": {}}, "sweeps.tune"), ({"studies": {"tune": {}}}, "studies.readiness")],
)
def test_tune_without_its_settings_is_one_line(
    more: dict[str, Any], missing: str, tmp_path: Path
) -> None:
    with pytest.raises(MeritError) as caught:
        tune.measure(settings({}, **more), Artifacts("synthetic", tmp_path), Tune())
    assert str(caught.value) == (
        f"experiments/synthetic.yaml: key `{missing}` is missing: nothing to search"
    )
