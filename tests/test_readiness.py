"""Is the base merge-ready? Losses, barriers and the four conditions on hand-made numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merit.errors import MeritError
from merit.eval.measuring.candidates import Candidate
from merit.eval.studies.readiness import Readiness, Thresholds
from merit.eval.studies.readiness import measure as readiness
from merit.eval.studies.readiness.geometry import CONDITIONS, Split, conditions, geometry
from merit.eval.studies.readiness.measure import outcome, reference_models
from merit.io.artifacts import Artifacts
from tests import synthetic
from tests.evaluators import analytic, vector
from tests.scored import Right, scripted_scores

SETTINGS = Readiness(joint="joint-1ep", random="random-2", num_points=5)
BEHIND = (2.0, 1.0, 3.0)  # random - joint in points, with its interval
NAMES = ["mini_scene", "mini_describe"]  # one of choice, one open-ended


# --- the four conditions ------------------------------------------------------------------------


def model(kind: str, name: str, loss: float, relative: float) -> dict[str, Any]:
    return {
        "kind": kind,
        "model": name,
        "displacement": 10 * relative,
        "relative_displacement": relative,
        "loss": loss,
        "loss_se": 0.01,
    }


def path_row(name: str, share: float) -> dict[str, Any]:
    """Ends with losses 1 and 3: mean 2."""
    return {
        "path": name,
        "loss_at_0": 1.0,
        "loss_max": 3.0 + share,
        "loss_at_1": 3.0,
        "barrier": 2 * share,
        "barrier_share": share,
    }


def found(
    share: float = 0.0, branch: float = 2.0, joint: float = 0.05
) -> dict[str, list[dict[str, Any]]]:
    """Measured as in `geometry`; the arguments are what decides (a), (b) and (c)."""
    return {
        "models": [
            model("base", "base", 4.0, 0.0),
            model("joint", "joint-1ep-s1", 0.5, joint),
            model("joint", "joint-1ep-s2", 0.7, joint / 2),
            model("branch", "random-2-s1-g0", 1.0, 0.03),
            model("branch", "random-2-s1-g1", branch, 0.05),
            model("merged", "random-2-s1", 1.6, 0.02),
        ],
        "paths": [path_row("g0 to g1", 0.0), path_row("g0 to merged", share)],
    }


def holding(behind: tuple[float, float, float] = BEHIND, **measured: float) -> str:
    """The letters of the conditions that hold."""
    rows = conditions(found(**measured), behind, Thresholds())
    return "".join(row["condition"] for row in rows if row["holds"])


def test_conditions_by_hand() -> None:
    rows = conditions(found(share=0.004), BEHIND, Thresholds())
    assert [(r["condition"], r["value"], r["low"], r["high"], r["bound"]) for r in rows] == [
        ("a", 0.004, None, None, 0.01),
        ("b", 0.5, None, None, 1.0),  # the worst branch's 2 of the base's 4
        ("c", 0.05, None, None, 0.10),  # the farther of two joint runs
        ("d", 2.0, 1.0, 3.0, -1.0),
    ]
    assert [row["holds"] for row in rows] == [True] * 4
    assert [row["measured"] for row in rows] == list(CONDITIONS.values())


@pytest.mark.parametrize(
    ("behind", "measured", "expected"),
    [
        (BEHIND, {"share": 0.01}, "abcd"),  # exactly at the threshold holds
        (BEHIND, {"share": 0.0101}, "bcd"),
        (BEHIND, {"branch": 4.0}, "acd"),  # no lower than the base is not lower
        (BEHIND, {"joint": 0.10}, "abcd"),
        (BEHIND, {"joint": 0.1001}, "abd"),
        ((-1.0, -2.0, 0.0), {}, "abcd"),
        ((-1.01, -2.0, 0.0), {}, "abc"),
        ((-0.5, -9.0, 9.0), {}, "abcd"),  # the value decides, not its interval
        ((-5.0, -9.0, 9.0), {"share": 1.0, "branch": 5.0, "joint": 1.0}, ""),
    ],
)
def test_every_condition_around_its_threshold(
    behind: tuple[float, float, float], measured: dict[str, float], expected: str
) -> None:
    assert holding(behind, **measured) == expected


# --- the outcome --------------------------------------------------------------------------------


def outcome_of(behind: tuple[float, float, float] = BEHIND, **measured: float) -> dict[str, Any]:
    return outcome(found(**measured), behind, SETTINGS, num_questions=120, num_batches=40)


def test_the_summary_by_hand() -> None:
    result = outcome_of(share=0.004)
    summary = result["summary"]
    assert summary == {
        "merge_ready": True,
        "failed": [],
        "decided_by_d": True,  # without (d) it would be the other conditions' to decide
        "loss_base": 4.0,
        "loss_joint": pytest.approx(0.6),
        "loss_branches": [1.0, 2.0],
        "loss_merged": 1.6,
        "worst_branch_over_merged": 1.25,
        "joint_over_merged": pytest.approx(0.375),
        "max_barrier_share": 0.004,
        "relative_displacement": {
            "joint": pytest.approx(0.0375),
            "branch": pytest.approx(0.04),
            "merged": 0.02,
        },
        "random_minus_joint": [2.0, 1.0, 3.0],
        "joint": "joint-1ep",
        "random": "random-2",
        "num_examples": 640,
        "num_batches": 40,
        "num_questions": 120,
        "verdict": summary["verdict"],
    }
    assert list(result["tables"]) == ["readiness", "readiness_models", "readiness_paths"]
    assert result["tables"]["readiness"] == conditions(
        found(share=0.004), BEHIND, SETTINGS.thresholds
    )
    assert result["tables"]["readiness_models"] == found()["models"]
    assert json.loads(json.dumps(result)) == result  # nothing of numpy's or torch's
    for behind, share, failed, by_d in (
        ((-3.0, -4.0, -2.0), 0.0, "d", True),
        ((-3.0, -4.0, -2.0), 0.2, "ad", False),
    ):
        summary = outcome_of(behind, share=share)["summary"]
        assert (summary["failed"], summary["decided_by_d"]) == (list(failed), by_d)
        assert summary["merge_ready"] is False


# --- losses, distances, barriers ----------------------------------------------------------------


BASE = vector(3.0, 4.0)  # of norm 5
TWO = Split("random-2-s1", [vector(1.0, 0.0), vector(-1.0, 0.0)], vector(0.0, 0.0))


def test_losses_and_displacements_by_hand() -> None:
    """L = |theta|^2 / 2, from a base at (3, 4)."""
    second = Split("random-2-s2", [vector(3.0, 0.0), vector(0.0, 4.0)], vector(1.5, 2.0))
    joints = {"joint-1ep-s1": vector(3.0, 2.0)}
    rows = geometry(analytic(np.eye(2), noise=0.1), BASE, joints, [TWO, second], 5)["models"]
    losses = [12.5, 6.5, 0.5, 0.5, 0.0, 4.5, 8.0, 3.125]
    distances = [0.0, 2.0, 20**0.5, 32**0.5, 5.0, 4.0, 3.0, 2.5]
    assert [r["loss"] for r in rows] == pytest.approx(losses)
    assert [r["displacement"] for r in rows] == pytest.approx(distances)
    assert [r["relative_displacement"] for r in rows] == pytest.approx([d / 5 for d in distances])
    assert [r["loss_se"] for r in rows] == pytest.approx([0.1] * 8)


def test_a_bump_between_two_branches_is_a_barrier() -> None:
    """A bump of height 2 in the middle: 2 there, 1/2 at both branches, exp(-20) elsewhere."""
    paths = geometry(analytic(np.eye(2), bump=2.0), BASE, {}, [TWO], 3)["paths"]
    first, second, third = paths
    assert first["loss_max"] == pytest.approx(2.0)
    assert first["barrier"] == pytest.approx(2.0 - 0.5)
    assert first["barrier_share"] == pytest.approx(1.5 / 0.5)
    # downhill to the bump's top, where the average lies: no more than the straight line there
    for entry in (second, third):
        assert (entry["loss_at_1"], entry["barrier"]) == (pytest.approx(2.0), 0.0)
    rows = conditions({"models": found()["models"], "paths": paths}, BEHIND, Thresholds())
    assert (rows[0]["value"], rows[0]["holds"]) == (pytest.approx(3.0), False)


# --- the study on a pipeline's output -----------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [("random", "random-8"), ("random", "merit-3d"), ("joint", "random-2"), ("joint", "none")],
)
def test_no_such_method_is_one_line_with_the_key(key: str, value: str) -> None:
    """An experiment without random splits (here: random-8), or with another kind in its place."""
    experiment = synthetic.experiment(methods=["base", "joint-1ep", "random-2", "merit-3d"])
    with pytest.raises(MeritError) as caught:
        reference_models(experiment, SETTINGS.model_copy(update={key: value}))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"experiments/synthetic.yaml: key `studies.readiness.{key}`: ")
    assert repr(value) in line


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The study on two seeds; a model's answers are right by its name."""
    experiment = synthetic.build(
        tmp_path, seeds=(1, 2), methods=["base", "joint-1ep", "random-2", "merit-1d"]
    )

    def right(candidate: Candidate) -> Right:
        assert set(candidate.tensors()) == {"w"}
        count = 25 if candidate.name.startswith("random") else 20
        return {name: (count, 50) for name in NAMES}

    asked = scripted_scores(monkeypatch, readiness, right)
    monkeypatch.setattr(readiness, "open_evaluator", lambda *arguments: analytic(np.eye(30)))
    result = readiness.measure(experiment, Artifacts("synthetic", tmp_path), SETTINGS)
    assert [one.split for one in asked] == ["validation"]  # never the test split
    assert asked[0].names == ["joint-1ep-s1", "joint-1ep-s2", "random-2-s1", "random-2-s2"]
    return result


def test_the_study_measures_joint_and_random_models_alone(measured: dict[str, Any]) -> None:
    tables, summary = measured["tables"], measured["summary"]
    kinds = [row["kind"] for row in tables["readiness_models"]]
    assert kinds == ["base", "joint", "joint", *(["branch", "branch", "merged"] * 2)]
    assert not any("merit" in row["model"] for row in tables["readiness_models"])
    assert len(tables["readiness_paths"]) == 1 + 2
    value, low, high = summary["random_minus_joint"]
    assert value == pytest.approx(10.0)
    assert low <= value <= high
    assert (summary["num_questions"], summary["num_batches"]) == (100, 2)
    base, *rest = tables["readiness_models"]
    assert base["displacement"] == 0.0
    assert all(row["displacement"] > 0 for row in rest)
